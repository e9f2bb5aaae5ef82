"""Vision transformers of ``transformers``, with a check of every file and tensor."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from inspect import signature
from pathlib import Path
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from primaps.backbones.weights import WeightsError
from primaps.config import Positions
from primaps.utils.errors import InputError, reason
from primaps.utils.inputs import read_json
from primaps.utils.torch_files import UnsafeFileError, checked_archive

# Heads that are in some checkpoints only; patch features do not depend on them.
_HEADS = ("pooler.", "classifier.", "head.")
MAX_LAYERS, MAX_NUMBER = 1000, 1 << 20
"""Maximum of the numbers in a ``config.json``: of layers, and of anything else."""
SIZES = ("hidden_size", "intermediate_size", "image_size", "patch_size", "num_channels",
         "num_hidden_layers", "num_attention_heads", "mlp_ratio")  # fmt: skip
"""Numbers in a ``config.json`` that must be at least 1."""


class PatchTokens(nn.Module):
    """Patch tokens of a ``transformers`` vision model as a feature map.

    Args:
        model: the vision model.
        patch_size: side of a patch in pixels.
        positions: interpolation of the position embeddings: ``exact``, as in transformers, or
            ``scaled``, by the factors of the programs of DINO and DINOv2.

    Raises:
        WeightsError: the model has no position embeddings that can be scaled.
    """

    def __init__(self, model: nn.Module, patch_size: int, positions: Positions = "exact") -> None:
        super().__init__()
        self.model, self.patch_size = model, patch_size
        if positions == "scaled":
            embeddings = getattr(model, "embeddings", None)
            if not hasattr(embeddings, "interpolate_pos_encoding"):
                raise WeightsError(
                    f"a {type(model).__name__} has no position embeddings to scale; use "
                    "positions='exact'"
                )
            # A bound method: a copy of the model scales the embeddings of the copy.
            embeddings.interpolate_pos_encoding = MethodType(  # type: ignore[union-attr]
                scaled_positions, embeddings
            )
        # Models with position embeddings interpolate them only on request.
        option = "interpolate_pos_encoding"
        self.options = {option: True} if option in signature(model.forward).parameters else {}
        width = getattr(getattr(model, "config", None), "hidden_size", 0)
        self.bytes_per_token = 32 * width  # lower bound: activations after attention

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]:
        h, w = (side // self.patch_size for side in images.shape[-2:])
        tokens = self.model(pixel_values=images, **self.options).last_hidden_state
        # Class and register tokens come before the patch tokens.
        return tokens[:, tokens.shape[1] - h * w :].transpose(1, 2).reshape(len(images), -1, h, w)


def weight_files(folder: Path) -> list[Path]:
    """Return the files of a folder that may hold weights."""
    return sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])


def check_files(folder: Path) -> None:
    """Check that the files of a folder are not damaged and declare no more than they have.

    Raises:
        WeightsError: the message names the file.
    """
    try:
        numbers = list(_numbers(read_json(folder / "config.json", dict[str, Any])))
    except OSError as error:
        raise WeightsError(f"{folder} has no config.json ({error.strerror})") from None
    except InputError as error:
        raise WeightsError(str(error)) from None
    for name, number in numbers:
        maximum = MAX_LAYERS if "layers" in name else MAX_NUMBER
        if abs(number) > maximum or (name in SIZES and number < 1):
            raise WeightsError(
                f"{folder / 'config.json'}: {name} is {number}, which is out of range for a ViT"
            )
    for path in weight_files(folder):
        try:
            if path.suffix == ".safetensors":
                with safe_open(path, "pt"):  # the header alone
                    pass
            elif zipfile.is_zipfile(path):  # files of PyTorch < 1.6 are not zip files
                with checked_archive(path):
                    pass
        except (SafetensorError, UnsafeFileError, InputError, OSError) as error:
            raise WeightsError(
                f"{path} is damaged ({error}); delete the folder, and primaps downloads or "
                "converts the weights again"
            ) from None


def _declared(config: Any) -> int:
    """Count the parameters of a model by its configuration; 0 if that needs memory."""
    from transformers import AutoModel

    try:
        with torch.device("meta"):
            skeleton = AutoModel.from_config(config, trust_remote_code=False)
    except Exception:  # some models need real tensors; loading reports errors
        return 0
    return sum(parameter.numel() for parameter in skeleton.parameters())


def _numbers(content: dict[str, Any]) -> Iterator[tuple[str, int | float]]:
    """Yield the name and value of each number in a configuration."""
    for name, value in content.items():
        if isinstance(value, dict):
            yield from _numbers(value)
        elif isinstance(value, int | float):
            yield name, value


def _folder(folder_or_id: str) -> Path | None:
    """Return the folder of the files on this machine; None if they are not downloaded."""
    from huggingface_hub import try_to_load_from_cache

    if Path(folder_or_id).is_dir():
        return Path(folder_or_id)
    found = try_to_load_from_cache(folder_or_id, "config.json")
    return Path(found).parent if isinstance(found, str) else None


def scaled_positions(
    embeddings: nn.Module, tokens: Tensor, height: int, width: int
) -> Float[Tensor, "1 n c"]:
    """Interpolate position embeddings to an image size, as in the programs of DINO and DINOv2.

    The programs add 0.1 to the number of rows and columns against rounding errors, and interpolate
    by the resulting factor: 40.1 / 28 for 320 px in patches of 8, 23.1 / 37 for 322 px in patches
    of 14.

    The argument ``tokens`` belongs to the signature in transformers; it is not used.
    """
    table, patch = embeddings.position_embeddings, embeddings.patch_size
    assert isinstance(table, Tensor)
    patch = patch if isinstance(patch, int) else patch[0]  # type: ignore[index]
    side, rows, columns = math.isqrt(table.shape[1] - 1), height // int(patch), width // int(patch)
    if rows == columns == side:
        return table
    grid = table[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2).float()
    factors = ((rows + 0.1) / side, (columns + 0.1) / side)
    grid = F.interpolate(grid, scale_factor=factors, mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1], grid.flatten(2).transpose(1, 2).to(table.dtype)], 1)


def load_vit(folder_or_id: str, local: bool) -> tuple[nn.Module, int]:
    """Load a model, and check that no tensor is missing or surplus.

    Args:
        folder_or_id: folder, or id on the Hugging Face hub.
        local: do not use the network.

    Returns:
        The model and its patch size.

    Raises:
        WeightsError: the weights cannot be loaded, or do not belong to a supported ViT.
    """
    from transformers import AutoConfig, AutoModel
    from transformers import logging as hf_logging

    folder = _folder(folder_or_id)
    if folder is not None:
        check_files(folder)
    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()  # we report missing and surplus tensors ourselves
    if local:
        hf_logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(
            folder_or_id, local_files_only=local, trust_remote_code=False
        )
        config = getattr(config, "vision_config", config)
        if folder is not None:
            declared = _declared(config)
            if declared > sum(path.stat().st_size for path in weight_files(folder)) > 0:
                raise ValueError(
                    f"config.json declares {declared:,} parameters, more than its files hold"
                )
        model, loading = AutoModel.from_pretrained(
            folder_or_id,
            config=config,
            local_files_only=local,
            output_loading_info=True,
            trust_remote_code=False,  # nothing in a folder of weights is executed
        )
    except Exception as error:  # transformers raises errors of many types
        raise WeightsError(
            f"{folder_or_id} cannot be loaded by transformers: {reason(error)}"
        ) from error
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()
    for kind, word in (("missing_keys", "lacks"), ("unexpected_keys", "has surplus")):
        keys = sorted(key for key in loading.get(kind, ()) if not key.startswith(_HEADS))
        if keys:
            raise WeightsError(f"{folder_or_id} {word} {len(keys)} tensors, first {keys[0]}")
    if getattr(model, "pooler", None) is not None:
        model.pooler = None  # not needed for patch tokens, and random if the checkpoint has none
    if mismatched := loading.get("mismatched_keys"):
        raise WeightsError(f"{folder_or_id} has tensors of unexpected shapes: {mismatched}")
    patch = getattr(config, "patch_size", None)
    if not isinstance(patch, int):
        raise WeightsError(
            f"{folder_or_id} is a {config.model_type}, not a ViT with square patches"
        )
    return model, patch
