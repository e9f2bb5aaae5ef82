"""Vision transformers of ``transformers``, checked tensor by tensor."""

from __future__ import annotations

from inspect import signature

from jaxtyping import Float
from torch import Tensor, nn

from primaps.backbones.convert import WeightsError

# Heads that some checkpoints carry or lack; patch features do not depend on them.
_HEADS = ("pooler.", "classifier.", "head.")


class PatchTokens(nn.Module):
    """Patch tokens of a ``transformers`` vision model as a map."""

    def __init__(self, model: nn.Module, patch_size: int) -> None:
        super().__init__()
        self.model, self.patch_size = model, patch_size
        # Models with a table of positions interpolate it only on request.
        option = "interpolate_pos_encoding"
        self.options = {option: True} if option in signature(model.forward).parameters else {}

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]:
        h, w = (side // self.patch_size for side in images.shape[-2:])
        tokens = self.model(pixel_values=images, **self.options).last_hidden_state
        # Class and register tokens come before the patches.
        return tokens[:, tokens.shape[1] - h * w :].transpose(1, 2).reshape(len(images), -1, h, w)


def load_vit(folder_or_id: str, local: bool) -> tuple[nn.Module, int]:
    """The model, checked for missing and surplus tensors, and its patch size."""
    from transformers import AutoConfig, AutoModel
    from transformers import logging as hf_logging

    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()  # we report missing and surplus tensors ourselves
    if local:
        hf_logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(
            folder_or_id, local_files_only=local, trust_remote_code=False
        )
        config = getattr(config, "vision_config", config)
        model, loading = AutoModel.from_pretrained(
            folder_or_id,
            config=config,
            local_files_only=local,
            output_loading_info=True,
            trust_remote_code=False,  # a folder of weights runs no program of its own
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise WeightsError(f"{folder_or_id} cannot be loaded by transformers: {reason}") from error
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()
    for kind, word in (("missing_keys", "lacks"), ("unexpected_keys", "has surplus")):
        keys = sorted(key for key in loading.get(kind, ()) if not key.startswith(_HEADS))
        if keys:
            raise WeightsError(f"{folder_or_id} {word} {len(keys)} tensors, first {keys[0]}")
    if getattr(model, "pooler", None) is not None:
        model.pooler = None  # random where the checkpoint has none, and not needed for patches
    if mismatched := loading.get("mismatched_keys"):
        raise WeightsError(f"{folder_or_id} has tensors of another shape: {mismatched}")
    patch = getattr(config, "patch_size", None)
    if not isinstance(patch, int):
        raise WeightsError(
            f"{folder_or_id} is a {config.model_type}, not a ViT with square patches"
        )
    return model, patch
