"""Original weights of DINO and DINOv2 (timm-style names) for ``transformers``.

They are converted into a folder with ``config.json`` and ``model.safetensors`` under the hub's
tensor names.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from primaps.support.errors import PrimapsError
from primaps.support.files import atomic_path, cache_dir, sha256, write_json
from primaps.support.foreign import UnsafeFileError, read_foreign

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
        WeightsError: a tensor is missing, or one has a name that these models do not have.
    """
    missing = [key for key in _STEM if key not in original and key != "mask_token"]
    if missing:
        raise WeightsError(f"not a DINO or DINOv2 ViT: the state dict lacks {', '.join(missing)}")
    dinov2 = any(".ls1." in key for key in original)
    width = original["cls_token"].shape[-1]
    patch = original["patch_embed.proj.weight"].shape[-1]
    depth = 1 + max((int(k.split(".")[1]) for k in original if k.startswith("blocks.")), default=-1)
    parts = _DINOV2_BLOCK if dinov2 else _VIT_BLOCK

    names = {k: v for k, v in _STEM.items() if k != "mask_token" or dinov2}
    renamed: dict[str, Tensor] = {}
    for i in range(depth):
        source, target = f"blocks.{i}", f"encoder.layer.{i}"
        for old, new in parts.items():
            for kind in ("weight", "bias"):
                names[f"{source}.{old}.{kind}"] = f"{target}.{new}.{kind}"
        if dinov2:
            for j in (1, 2):
                names[f"{source}.ls{j}.gamma"] = f"{target}.layer_scale{j}.lambda1"
        for kind in ("weight", "bias"):
            if (key := f"{source}.attn.qkv.{kind}") in original:
                for name, part in zip(
                    ("query", "key", "value"), original[key].chunk(3), strict=True
                ):
                    renamed[f"{target}.attention.attention.{name}.{kind}"] = part
            else:
                names[key] = key  # reported as missing below

    qkv = {f"blocks.{i}.attn.qkv.{kind}" for i in range(depth) for kind in ("weight", "bias")}
    if dinov2 and "mask_token" not in original:  # unused at inference, and absent from exports
        original = {**original, "mask_token": torch.zeros(1, width)}
    if missing := sorted(names.keys() - original.keys()):
        raise WeightsError(f"the state dict lacks {len(missing)} tensors, first {missing[0]}")
    if surplus := sorted(original.keys() - names.keys() - qkv):
        raise WeightsError(
            f"the state dict has {len(surplus)} tensors that the model lacks, first {surplus[0]}"
        )
    renamed |= {new: original[old] for old, new in names.items()}
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
    hidden = original["blocks.0.mlp.fc1.weight"].shape[0]
    config |= {"mlp_ratio": hidden // width} if dinov2 else {"intermediate_size": hidden}
    return {k: v.contiguous().clone() for k, v in renamed.items()}, config


def write_folder(folder: Path, original: dict[str, Tensor]) -> Path:
    """Convert a timm-style state dict into a folder for ``transformers``; returns the folder."""
    tensors, config = to_hub_names(original)
    with atomic_path(folder / "model.safetensors") as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    write_json(folder / "config.json", config)  # last: its presence says that the folder is whole
    return folder


def convert_pth(path: Path) -> Path:
    """Convert an original DINO or DINOv2 ``.pth`` file once; returns the folder in our cache.

    Nothing that the file contains is executed.
    """
    folder = cache_dir() / "converted" / sha256(path)[:16]
    if (folder / "config.json").exists():
        return folder
    try:
        state = read_foreign(path)
    except UnsafeFileError as error:
        raise WeightsError(f"{path} cannot be read as PyTorch weights ({error})") from error
    for wrapper in ("teacher", "state_dict", "model"):  # training checkpoints
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise WeightsError(f"{path} holds no state dict of tensors")
    state = {k.removeprefix("module.").removeprefix("backbone."): v for k, v in state.items()}
    state = {k: v for k, v in state.items() if not k.startswith(("head.", "dino_head."))}
    try:
        return write_folder(folder, state)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
