"""Vision models of ``transformers`` and timm, with a check of every file and tensor."""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from primaps.backbones.layout import Layout, find_layout
from primaps.backbones.weights import WeightsError
from primaps.config import Positions
from primaps.utils.errors import InputError, MissingPackageError, reason
from primaps.utils.inputs import read_json
from primaps.utils.torch_files import UnsafeFileError, checked_archive

# Heads that are in some checkpoints only; patch features do not depend on them.
_HEADS = ("pooler.", "classifier.", "head.", "visual_projection.")
_PARTS = ("vision_config", "vision_encoder_config", "backbone_config", "detector_config")
"""Fields of a configuration that lead to that of the vision model."""
MAX_NESTED = 4
"""Maximum depth of the configuration of a vision model in that of a whole model."""
MAX_LAYERS, MAX_NUMBER = 1000, 1 << 20
"""Maximum of the numbers in a ``config.json``: of layers, and of anything else."""
SIZES = ("hidden_size", "intermediate_size", "image_size", "patch_size", "num_channels",
         "num_hidden_layers", "num_attention_heads", "mlp_ratio")  # fmt: skip
"""Numbers in a ``config.json`` that must be at least 1."""


class PatchTokens(nn.Module):
    """Output of a vision model of ``transformers`` as a feature map.

    Args:
        model: the vision model.
        patch_size: side of a patch in pixels; None if it is not known.
        positions: interpolation of the position embeddings: ``exact``, as in transformers, or
            ``scaled``, by the factors of the programs of DINO and DINOv2.
        layout: layout of the output; None finds it by a probe.

    Attributes:
        layout: layout of the output, with the stride of the feature map.

    Raises:
        WeightsError: the model has no position embeddings that can be scaled.
        LayoutError: the output of the model is not understood.
    """

    def __init__(
        self,
        model: nn.Module,
        patch_size: int | None = None,
        positions: Positions = "exact",
        layout: Layout | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        if positions == "scaled":
            _scale_positions(model)
        # Models with position embeddings interpolate them only on request.
        option = "interpolate_pos_encoding"
        self.options = {option: True} if option in signature(model.forward).parameters else {}
        self.layout = layout or self.probe(patch_size)

    def probe(self, patch_size: int | None) -> Layout:
        """Find the layout of the output by a run on small images.

        Raises:
            LayoutError: the output is not understood.
        """
        dtype = next((p.dtype for p in self.parameters() if p.is_floating_point()), torch.float32)
        return find_layout(self.output, patch_size, dtype)

    @property
    def bytes_per_token(self) -> int:
        """Lower bound of the memory for a token in bytes: activations after attention."""
        config: Any = getattr(self.model, "config", None)
        return 32 * (getattr(config, "hidden_size", None) or 0)

    def output(self, images: Float[Tensor, "b 3 H W"]) -> Tensor:
        """Return the last hidden state of the model: tokens or a map."""
        options: dict[str, Any] = dict(self.options)
        if getattr(self.model.config, "model_type", "") == "vit_mae":
            # All patches in their order, instead of a random quarter.
            self.model.config.mask_ratio = 0.0  # type: ignore[union-attr]
            patch = int(self.model.config.patch_size)  # type: ignore[union-attr, arg-type]
            patches = math.prod(side // patch for side in images.shape[-2:])
            options["noise"] = torch.arange(patches, device=images.device).expand(len(images), -1)
        found = self.model(pixel_values=images, **options).last_hidden_state
        assert isinstance(found, Tensor)
        return found

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]:
        return self.layout.feature_map(self.output(images), images)


class TimmFeatures(PatchTokens):
    """Output of a model of timm, before its pooling, as a feature map."""

    def output(self, images: Float[Tensor, "b 3 H W"]) -> Tensor:
        found = self.model.forward_features(images)  # type: ignore[operator]
        assert isinstance(found, Tensor)
        return found

    @property
    def bytes_per_token(self) -> int:
        return 32 * int(getattr(self.model, "num_features", 0))


def _scale_positions(model: nn.Module) -> None:
    """Let a model interpolate its position embeddings by :func:`scaled_positions`."""
    embeddings = getattr(model, "embeddings", None)
    kind = getattr(getattr(model, "config", None), "model_type", "")
    if not hasattr(embeddings, "interpolate_pos_encoding") or "registers" in kind:
        what = "interpolates its positions exactly" if "registers" in kind else "has none"
        raise WeightsError(
            f"positions of a {type(model).__name__} cannot be scaled (the original program {what});"
            " use positions='exact'"
        )
    # A bound method: a copy of the model scales the embeddings of the copy.
    embeddings.interpolate_pos_encoding = MethodType(  # type: ignore[union-attr]
        scaled_positions, embeddings
    )


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


def load_vit(folder_or_id: str, local: bool) -> tuple[nn.Module, int | None]:
    """Load a vision model, or that of a whole model of images and text.

    No tensor of the vision model may be missing or surplus.

    Args:
        folder_or_id: folder, or id on the Hugging Face hub.
        local: do not use the network.

    Returns:
        The model and its patch size; None if its configuration has none.

    Raises:
        WeightsError: the weights cannot be loaded.
    """
    folder = _folder(folder_or_id)
    if folder is not None:
        check_files(folder)
    with _quiet(local):
        try:
            config, whole = _vision_config(folder_or_id, local)
            if folder is not None:
                declared = _declared(config)
                if declared > sum(path.stat().st_size for path in weight_files(folder)) > 0:
                    raise ValueError(
                        f"config.json declares {declared:,} parameters, more than its files hold"
                    )
            model, loading = _from_pretrained(folder_or_id, config, local, {})
            # transformers knows the names in most whole models, but not in all of them.
            if whole and model.state_dict().keys() <= set(loading["missing_keys"]):
                names = _tower_names(loading)
                model, loading = _from_pretrained(folder_or_id, config, local, names)
        except Exception as error:  # transformers raises errors of many types
            raise WeightsError(
                f"{folder_or_id} cannot be loaded by transformers: {reason(error)}"
            ) from error
    _check_tensors(folder_or_id, model, loading, whole)
    pooler = getattr(model, "pooler", None)
    if isinstance(pooler, nn.Module) and any(True for _ in pooler.parameters()):
        model.pooler = None  # type: ignore[assignment]  # not needed for patch tokens, and random if the checkpoint has none
    return model, _patch_size(config)


@contextmanager
def _quiet(bars: bool) -> Iterator[None]:
    """Switch off the messages of transformers, and its progress bars if ``bars`` is set."""
    try:
        from transformers import AutoModel  # noqa: F401
        from transformers import logging as hf_logging
    except ImportError as error:
        raise MissingPackageError(
            f"transformers cannot be imported ({reason(error.__cause__ or error)}); a version of "
            "torchvision that does not fit torch is a common cause: reinstall or uninstall it"
        ) from error
    level, shown = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()  # we report missing and surplus tensors ourselves
    if bars:
        hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if shown:
            hf_logging.enable_progress_bar()


def _vision_config(folder_or_id: str, local: bool) -> tuple[Any, bool]:
    """Return the configuration of the vision model, and whether it is a part of another model."""
    from transformers import AutoConfig

    config = found = AutoConfig.from_pretrained(
        folder_or_id, local_files_only=local, trust_remote_code=False
    )
    for _ in range(MAX_NESTED):
        names = [name for name in _PARTS if isinstance(getattr(found, name, None), _config_type())]
        if not names:
            break
        found = getattr(found, names[0])
    return found, found is not config


def _config_type() -> Any:
    from transformers import PretrainedConfig

    return PretrainedConfig


def _from_pretrained(
    folder_or_id: str, config: Any, local: bool, names: dict[str, str]
) -> tuple[nn.Module, dict[str, Any]]:
    """Load a model and return it with the names of tensors that do not fit."""
    from transformers import AutoModel

    options: dict[str, Any] = {"key_mapping": names} if names else {}
    model, loading = AutoModel.from_pretrained(
        folder_or_id,
        config=config,
        local_files_only=local,
        output_loading_info=True,
        trust_remote_code=False,  # nothing in a folder of weights is executed
        **options,
    )
    return model, loading


def _tower_names(loading: dict[str, Any]) -> dict[str, str]:
    """Return a replacement of the prefix that the tensors of a vision model have in a whole model.

    Raises:
        ValueError: there is no such prefix.
    """
    missing, surplus = sorted(loading["missing_keys"]), set(loading["unexpected_keys"])
    for name in sorted(surplus):
        prefix = name.removesuffix(missing[0])
        if prefix != name and all(prefix + other in surplus for other in missing):
            return {f"^{re.escape(prefix)}": ""}
    raise ValueError(f"the vision model lacks {len(missing)} tensors, first {missing[0]}")


def _check_tensors(
    folder_or_id: str, model: nn.Module, loading: dict[str, Any], whole: bool
) -> None:
    """Check that no tensor is missing, and none is surplus or has another shape.

    A whole model has tensors that do not belong to its vision model: those outside of the modules
    of the vision model.
    """
    modules = tuple(f"{name}." for name, _ in model.named_children())
    for kind, word in (("missing_keys", "lacks"), ("unexpected_keys", "has surplus")):
        keys = sorted(key for key in loading.get(kind, ()) if not key.startswith(_HEADS))
        if whole and kind == "unexpected_keys":
            keys = [key for key in keys if key.startswith(modules)]
        if keys:
            raise WeightsError(f"{folder_or_id} {word} {len(keys)} tensors, first {keys[0]}")
    if mismatched := loading.get("mismatched_keys"):
        raise WeightsError(f"{folder_or_id} has tensors of unexpected shapes: {mismatched}")


def _patch_size(config: Any) -> int | None:
    """Return the side of a patch in pixels, if the configuration has one."""
    patch = getattr(config, "patch_size", None)
    if isinstance(patch, list | tuple) and len(set(patch)) == 1:
        patch = patch[0]
    return patch if isinstance(patch, int) else None
