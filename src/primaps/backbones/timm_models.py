"""Backbones of timm, which is an extra."""

from __future__ import annotations

from typing import Any

from torch import nn

from primaps.backbones.preprocessing import Normalization
from primaps.backbones.weights import WeightsError, hub_reachable, in_hub_cache
from primaps.utils.errors import MissingPackageError, reason

PREFIX = "timm:"
"""Start of the name of a backbone of timm."""
_ANY_SIZE: tuple[dict[str, Any], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})
"""Options by which families of timm accept images of any size."""


def load_timm(name: str) -> tuple[nn.Module, int | None, Normalization, str]:
    """Load a model of timm with its pretrained weights.

    Args:
        name: name of the model with or without a tag: ``vit_small_patch16_dinov3.lvd1689m``.

    Returns:
        The model, its patch size (None if it is not a ViT), the normalization of its weights, and a
        description of their source.

    Raises:
        MissingPackageError: timm is not installed.
        WeightsError: the model is unknown, or its weights cannot be loaded.
    """
    try:
        import timm
    except (ImportError, RuntimeError) as error:  # torchvision of another torch: RuntimeError
        raise MissingPackageError(
            f"{PREFIX}{name} needs timm ({reason(error)}): pip install 'primaps[timm]', with a "
            "torchvision that fits torch"
        ) from error
    config: Any = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if config is None or not (config.hf_hub_id or config.url or config.file):
        raise WeightsError(
            f"timm has no pretrained model {name!r}; choose one of timm.list_pretrained()"
        )
    hub_id = config.hf_hub_id
    if hub_id and not config.file and not in_hub_cache(hub_id) and not hub_reachable():
        raise WeightsError(
            f"no weights for {PREFIX}{name}: they are not in the hub cache, and the Hugging Face "
            "hub cannot be reached; connect to the network once"
        )
    model = _create(timm, name)
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    square = isinstance(patch, tuple) and len(set(patch)) == 1
    settings = model.pretrained_cfg
    normalization = Normalization(tuple(settings["mean"]), tuple(settings["std"]))
    source = f"timm {name}" + (f", hub {hub_id}" if hub_id else "")
    return model, int(patch[0]) if square else None, normalization, source  # type: ignore[index]


def _create(timm: Any, name: str) -> Any:
    """Create the model for images of any size, with its weights."""
    problem: Exception | None = None
    for options in _ANY_SIZE:
        try:
            return timm.create_model(name, pretrained=True, num_classes=0, **options).eval()
        except TypeError as error:  # the family does not have the option
            problem = error
        except Exception as error:  # timm raises errors of many types
            raise WeightsError(
                f"{PREFIX}{name} cannot be loaded by timm: {reason(error)}"
            ) from error
    raise WeightsError(f"{PREFIX}{name} cannot be loaded by timm: {reason(problem or Exception())}")
