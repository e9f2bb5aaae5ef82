"""Frozen backbones, and the features of 8-bit images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from primaps.backbones.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from primaps.config import DEFAULT_SIZE, Engine, Positions, Precision, Size
from primaps.utils.errors import InputError
from primaps.utils.memory import check_memory
from primaps.utils.validation import validate, validated


class Backbone(nn.Module):
    """A frozen network that maps an image batch to a feature map per image.

    Attributes:
        features: network or callable that maps normalized images (B, 3, H, W) to features
            (B, C, h, w).
        patch_size: side of a patch in pixels, or the stride of a feature map; image sides must be
            multiples of it.
        name: name that was given to :func:`primaps.load_backbone`, or the name of the callable.
        source: description of where the weights come from.
        mean: mean of each channel, which is subtracted from images in [0, 1].
        std: standard deviation of each channel, by which images are divided.
        precision: precision of the network, ``float32`` or ``bfloat16``; features are float32.
        positions: scaling of position embeddings, ``exact`` or ``scaled``; see
            :func:`primaps.load_backbone`.
        engine: library that computes the layers, ``torch`` or ``openvino`` (on a CPU only).
        weights: SHA-256 of the weights, independent of their names and order; None for a callable
            without weights.
        digest: SHA-256 of everything that determines the features: the weights, the normalization,
            and the scaling of position embeddings.
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
        positions: Positions = "exact",
        engine: Engine = "torch",
        weights: str | None = None,
    ) -> None:
        super().__init__()
        self.precision: Precision = validate(precision, Precision, "precision")
        self.features = features
        self.name, self.patch_size, self.source = name, patch_size, source
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.positions, self._engine, self.weights = positions, engine, weights
        if weights is None and isinstance(features, nn.Module):
            self.weights = weights_digest(features)
        self.digest = self.weights
        if self.weights:
            self.digest = self._features_digest(self.weights)
        self.requires_grad_(False).eval()

    def _features_digest(self, weights: str) -> str:
        """Return :attr:`digest`: that of the weights, unless an option differs from its default."""
        text = weights if self.positions == "exact" else f"{weights} positions {self.positions}"
        for name, value, default in (
            ("mean", self.mean, IMAGENET_MEAN),
            ("std", self.std, IMAGENET_STD),
        ):
            if not torch.equal(value.flatten(), torch.tensor(default)):
                text += f" {name} {value.flatten().tolist()}"
        return weights if text == weights else hashlib.sha256(text.encode()).hexdigest()

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return self.mean.device

    @property
    def engine(self) -> Engine:
        """Library that computes the layers; OpenVINO computes on a CPU only."""
        return self._engine if self.device.type == "cpu" else "torch"

    @property
    def arithmetic(self) -> str:
        """Precision and engine, which change the last bits of features."""
        return self.precision + (f" {self.engine}" if self.engine != "torch" else "")

    @property
    def _dtype(self) -> torch.dtype:
        """Type of the parameters; a network of the user may have double precision."""
        found = next((p.dtype for p in self.parameters() if p.is_floating_point()), None)
        return found or torch.float32

    @property
    def default_size(self) -> int:
        """Shorter image side of the paper: the multiple of the patch size nearest to 320 px."""
        return max(1, round(DEFAULT_SIZE / self.patch_size)) * self.patch_size

    @validated
    @torch.no_grad()
    def forward(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]:
        """Compute features of the last layer after its final layer norm, without special tokens.

        Args:
            images: RGB in [0, 1]; sides are multiples of ``patch_size``.

        Returns:
            Features with ``h = H / patch_size`` and ``w = W / patch_size``, not normalized.

        Raises:
            InputError: images or features have a wrong shape.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise InputError(f"images must be (B, 3, H, W), got {tuple(images.shape)}")
        height, width = images.shape[-2:]
        if height % self.patch_size or width % self.patch_size or not height * width:
            raise InputError(
                f"image size {height}x{width} is not a multiple of the patch size "
                f"{self.patch_size} of {self.name}"
            )
        reduced = self.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=reduced):
            features = self.features(((images - self.mean) / self.std).to(self._dtype))
        grid = (height // self.patch_size, width // self.patch_size)
        shape = tuple(features.shape) if isinstance(features, Tensor) else ()
        if len(shape) != 4 or shape[0] != len(images) or shape[2:] != grid or not shape[1]:
            raise InputError(
                f"backbone {self.name} must return (B, C, h, w) for a batch of images, here "
                f"({len(images)}, C, {grid[0]}, {grid[1]}) at patch size {self.patch_size}; it "
                f"returned {shape or type(features).__name__}"
            )
        return features.float()


def image_side(
    backbone: Backbone, size: int | None = None, images: int = 1, classes: int = 1
) -> int:
    """Return the shorter image side in pixels, after a check of the memory that it needs.

    Args:
        backbone: the network.
        size: shorter side in pixels, 1 to 16384; None is :attr:`Backbone.default_size`.
        images: number of images in a batch.
        classes: number of classes, whose logits and probabilities are at image size.

    Raises:
        InputError: the size is out of its range, or needs more memory than is available.

    Examples:
        >>> image_side(Backbone(torch.nn.AvgPool2d(14), patch_size=14, name="pool"))
        322
    """
    side = backbone.default_size if size is None else validate(size, Size, "size")
    token = getattr(backbone.features, "bytes_per_token", 0) / backbone.patch_size**2
    # Bytes per pixel: 8-bit image, input before and after normalization, logits, probabilities.
    pixel = 3 + 2 * 12 + 2 * 4 * classes + token
    check_memory(int(images * side**2 * pixel), f"size {side}", backbone.device)
    return side


def network_input(backbone: Backbone, images: UInt8[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 H W"]:
    """Convert 8-bit images to the input of a backbone: in [0, 1], on its device."""
    return images.to(backbone.device).float() / 255


def image_features(
    backbone: Backbone, images: UInt8[Tensor, "b 3 H W"]
) -> Float[Tensor, "b c h w"]:
    """Compute features of 8-bit images.

    Examples:
        >>> backbone = Backbone(torch.nn.AvgPool2d(8), patch_size=8, name="pool")
        >>> image_features(backbone, torch.zeros(2, 3, 16, 8, dtype=torch.uint8)).shape
        torch.Size([2, 3, 2, 1])
    """
    return backbone(network_input(backbone, images))


def both_features(
    backbone: Backbone, images: UInt8[Tensor, "b 3 H W"]
) -> Float[Tensor, "b 2 c h w"]:
    """Compute features of 8-bit images [:, 0] and of their horizontal flips [:, 1]."""
    inputs = network_input(backbone, images)
    return torch.stack([backbone(inputs), backbone(inputs.flip(-1))], dim=1)


def flip_average(backbone: Backbone, images: UInt8[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]:
    """Compute features of 8-bit images, averaged over each image and its horizontal flip."""
    return mean_of_both(both_features(backbone, images))


def mean_of_both(both: Float[Tensor, "b 2 c h w"]) -> Float[Tensor, "b c h w"]:
    """Average the features of images and of their flips, which are flipped back.

    Args:
        both: from :func:`both_features`, or codes of these features.

    Examples:
        >>> mean_of_both(torch.tensor([[[[[1.0, 2.0]]], [[[4.0, 3.0]]]]])).tolist()
        [[[[2.0, 3.0]]]]
    """
    return (both[:, 0] + both[:, 1].flip(-1)) / 2


def weights_digest(module: nn.Module) -> str | None:
    """Compute the SHA-256 of the parameters, independent of names and order; None without any."""
    return tensors_digest(module.parameters())


def tensors_digest(tensors: Iterable[Tensor]) -> str | None:
    """Compute :func:`weights_digest` of a module with these parameters."""
    each = sorted(
        hashlib.sha256(
            str(tuple(p.shape)).encode()
            + p.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        ).digest()
        for p in tensors
    )
    return hashlib.sha256(b"".join(each)).hexdigest() if each else None
