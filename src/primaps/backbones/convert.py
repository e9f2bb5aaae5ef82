"""Original weights of DINO and DINOv2 (timm-style names) for ``transformers``.

They are converted into a folder with ``config.json`` and ``model.safetensors`` under the hub's
tensor names.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from primaps.utils.errors import PrimapsError
from primaps.utils.files import atomic_path, cache_dir, sha256, write_json
from primaps.utils.torch_files import UnsafeFileError, read_torch_file

# Original name of a block's part -> the hub's name, for DINO (model type "vit") and DINOv2.
_VIT_BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_DINOV2_BLOCK = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_STEM = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "mask_token": "embeddings.mask_token",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
MOST_BLOCKS, HEAD = 100, 64
"""Blocks that a ViT may have, the largest of the literature having 56; channels of a head."""


class WeightsError(PrimapsError, RuntimeError):
    """Weights that cannot be found, or are not what they should be; the message says which."""


def to_hub_names(original: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Rename a timm-style ViT state dict to the hub's names and read its configuration off it.

    Args:
        original: ``cls_token``, ``pos_embed``, ``patch_embed.proj.*``, ``blocks.{i}.*``,
            ``norm.*``; DINOv2 has ``blocks.{i}.ls{1,2}.gamma`` besides.

    Returns:
        The renamed tensors and the content of ``config.json``.

    Raises:
        WeightsError: a tensor is missing, has a name that these models do not have, or a shape that
            does not fit the others.
    """
    missing = [key for key in _STEM if key not in original and key != "mask_token"]
    if missing:
        raise WeightsError(f"not a DINO or DINOv2 ViT: the state dict lacks {', '.join(missing)}")
    dinov2 = any(".ls1." in key for key in original)
    width, patch, hidden, depth = _dimensions(original)
    parts = _DINOV2_BLOCK if dinov2 else _VIT_BLOCK

    names = {k: v for k, v in _STEM.items() if k != "mask_token" or dinov2}
    for i in range(depth):
        source, target = f"blocks.{i}", f"encoder.layer.{i}"
        for old, new in parts.items():
            for kind in ("weight", "bias"):
                names[f"{source}.{old}.{kind}"] = f"{target}.{new}.{kind}"
        if dinov2:
            for j in (1, 2):
                names[f"{source}.ls{j}.gamma"] = f"{target}.layer_scale{j}.lambda1"
    qkv = [f"blocks.{i}.attn.qkv.{kind}" for i in range(depth) for kind in ("weight", "bias")]
    if dinov2 and "mask_token" not in original:  # unused at inference, and absent from exports
        original = {**original, "mask_token": torch.zeros(1, width)}
    if missing := sorted({*names, *qkv} - original.keys()):
        raise WeightsError(f"the state dict lacks {len(missing)} tensors, first {missing[0]}")
    if surplus := sorted(original.keys() - {*names, *qkv}):
        raise WeightsError(
            f"the state dict has {len(surplus)} tensors that the model lacks, first {surplus[0]}"
        )
    _check_shapes(original, width, patch, hidden)
    renamed = {new: original[old] for old, new in names.items()}
    for key in qkv:
        target = key.replace("blocks.", "encoder.layer.", 1).replace(".qkv", ".attention.{}")
        for name, part in zip(("query", "key", "value"), original[key].chunk(3), strict=True):
            renamed[target.replace(".attn.", ".attention.").format(name)] = part
    config: dict[str, object] = {
        "architectures": ["Dinov2Model" if dinov2 else "ViTModel"],
        "model_type": "dinov2" if dinov2 else "vit",
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": width // 64,
        "patch_size": patch,
        "image_size": math.isqrt(original["pos_embed"].shape[1] - 1) * patch,
        "layer_norm_eps": 1e-6,
        "qkv_bias": True,
    }
    config |= {"mlp_ratio": hidden // width} if dinov2 else {"intermediate_size": hidden}
    return {k: v.contiguous().clone() for k, v in renamed.items()}, config


def _dimensions(original: dict[str, Tensor]) -> tuple[int, int, int, int]:
    """Width, patch size, width of the MLP, and number of blocks."""
    numbers = {key.split(".")[1] for key in original if key.startswith("blocks.")}
    depth = len(numbers)
    if numbers != {str(i) for i in range(depth)} or not 1 <= depth <= MOST_BLOCKS:
        raise WeightsError(
            "the state dict must have blocks with the numbers 0, 1, ..., and not more than "
            f"{MOST_BLOCKS} of them"
        )
    patches, between = original["patch_embed.proj.weight"], original.get("blocks.0.mlp.fc1.weight")
    if between is None:
        raise WeightsError("the state dict lacks blocks.0.mlp.fc1.weight")
    width, hidden = original["norm.weight"].numel(), len(between) if between.ndim else 0
    if (
        not width
        or width % HEAD
        or not hidden
        or hidden % width
        or patches.ndim != 4
        or not patches.numel()
    ):
        raise WeightsError(
            f"a width of {width}, {hidden} in the MLP and patches of shape "
            f"{tuple(patches.shape)} are not of a ViT"
        )
    return width, patches.shape[-1], hidden, depth


def _check_shapes(original: dict[str, Tensor], width: int, patch: int, hidden: int) -> None:
    """Refuse tensors that are not of one ViT: it is built from these numbers."""
    positions = original["pos_embed"].shape[1] if original["pos_embed"].ndim == 3 else 0
    stem = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, math.isqrt(max(0, positions - 1)) ** 2 + 1, width),
        "mask_token": (1, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
    }
    block = {
        "attn.qkv.weight": (3 * width, width),
        "attn.qkv.bias": (3 * width,),
        "attn.proj.weight": (width, width),
        "mlp.fc1.weight": (hidden, width),
        "mlp.fc1.bias": (hidden,),
        "mlp.fc2.weight": (width, hidden),
    }
    for key, tensor in original.items():
        part = key.split(".", 2)[2] if key.startswith("blocks.") and key.count(".") > 1 else key
        shape = stem.get(key) or block.get(part) or (width,)
        if tuple(tensor.shape) != shape or not tensor.is_floating_point():
            raise WeightsError(
                f"{key} is {tensor.dtype} of the shape {tuple(tensor.shape)}; it must be floating "
                f"point of the shape {shape}"
            )
        if not bool(tensor.isfinite().all()):
            raise WeightsError(f"{key} has NaN or infinity")


def write_folder(folder: Path, original: dict[str, Tensor]) -> Path:
    """Convert a timm-style state dict into a folder for ``transformers``; returns the folder."""
    tensors, config = to_hub_names(original)
    with atomic_path(folder / "model.safetensors") as temporary:
        temporary.write_bytes(save(tensors, {"format": "pt"}))
    write_json(folder / "config.json", config)  # last: its presence says that the folder is whole
    return folder


def read_pth(path: Path) -> dict[str, Tensor]:
    """The tensors of a ViT in a PyTorch file, under their original names; nothing is executed.

    Raises:
        WeightsError: it holds no state dict of tensors.
    """
    try:
        state = read_torch_file(path)
    except UnsafeFileError as error:
        raise WeightsError(f"{path} cannot be read as PyTorch weights ({error})") from error
    for wrapper in ("teacher", "state_dict", "model"):  # training checkpoints
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    tensors = isinstance(state, dict) and all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()
    )
    if not tensors:
        raise WeightsError(f"{path} holds no state dict of tensors")
    state = {k.removeprefix("module.").removeprefix("backbone."): v for k, v in state.items()}
    return {k: v.detach() for k, v in state.items() if not k.startswith(("head.", "dino_head."))}


def convert_pth(path: Path) -> Path:
    """Convert an original DINO or DINOv2 ``.pth`` file once; returns the folder in our cache.

    Nothing that the file contains is executed.
    """
    folder = cache_dir() / "converted" / sha256(path)[:16]
    if (folder / "config.json").exists():
        return folder
    state = read_pth(path)
    try:
        return write_folder(folder, state)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
