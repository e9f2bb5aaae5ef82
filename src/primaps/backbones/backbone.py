"""A frozen network and the ways from 8-bit images to features."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from primaps.config import DEFAULT_SIZE, Engine, Positions, Precision, Size
from primaps.utils.errors import InputError
from primaps.utils.memory import need_memory
from primaps.utils.validation import validate, validated

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Backbone(nn.Module):
    """A frozen network that maps an image batch to a feature map per image.

    Attributes:
        name: what was asked for, or the callable's name.
        patch_size: pixels per feature position; image sides must be multiples of it.
        source: where the weights came from, in words.
        weights: SHA-256 over the weights (independent of their names and order), or None for a
            callable that has none.
        digest: the same, of everything that decides features, how positions are scaled included.
        positions: ``exact`` or ``scaled``; see :func:`primaps.load_backbone`.
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
        positions: Positions = "exact",
        engine: Engine = "torch",
    ) -> None:
        super().__init__()
        self.precision: Precision = validate(precision, Precision, "precision")
        self.features = features
        self.name, self.patch_size, self.source = name, patch_size, source
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.positions, self._engine, self.weights = positions, engine, None
        if isinstance(features, nn.Module):
            self.weights = weights_digest(features)
        self.digest = self.weights
        if self.weights and positions != "exact":
            text = f"{self.weights} positions {positions}"
            self.digest = hashlib.sha256(text.encode()).hexdigest()
        self.requires_grad_(False).eval()

    @property
    def device(self) -> torch.device:
        """Where images have to be."""
        return self.mean.device

    @property
    def engine(self) -> Engine:
        """What computes the layers of the network; OpenVINO does so on a CPU alone."""
        return self._engine if self.device.type == "cpu" else "torch"

    @property
    def arithmetic(self) -> str:
        """Precision and engine: with them the last bits of features change, but not the weights."""
        return self.precision + (f" {self.engine}" if self.engine != "torch" else "")

    @property
    def _dtype(self) -> torch.dtype:
        """Of a network that somebody made in double precision, say."""
        found = next((p.dtype for p in self.parameters() if p.is_floating_point()), None)
        return found or torch.float32

    @property
    def default_size(self) -> int:
        """Shorter image side of the paper: the multiple of the patch size nearest to 320 px."""
        return max(1, round(DEFAULT_SIZE / self.patch_size)) * self.patch_size

    @validated
    @torch.no_grad()
    def forward(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]:
        """Features of the last layer after its final layer norm, patch tokens only.

        Args:
            images: RGB in [0, 1], sides multiples of ``patch_size``.

        Returns:
            ``h = H / patch_size``, ``w = W / patch_size``; not normalized.

        Raises:
            InputError: the image size or what the network returned has another shape.
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
        if not isinstance(features, Tensor) or features.ndim != 4 or len(features) != len(images):
            raise InputError(f"backbone {self.name} must return (B, C, h, w) for a batch of images")
        return features.float()


def image_side(
    backbone: Backbone, size: int | None = None, images: int = 1, classes: int = 1
) -> int:
    """The side of images in pixels, once it is sure that they may fit into memory.

    Args:
        size: None is that of the paper, :attr:`Backbone.default_size`.
        images: squares of this side that go through the network together.
        classes: probabilities of each pixel.

    Raises:
        InputError: the size is out of its range, or takes more memory than there is.

    Examples:
        >>> image_side(Backbone(torch.nn.AvgPool2d(14), patch_size=14, name="pool"))
        322
    """
    side = backbone.default_size if size is None else validate(size, Size, "size")
    position = getattr(backbone.features, "bytes_per_position", 0) / backbone.patch_size**2
    # An image of 8 bits, the network's input before and after the normalization, and logits and
    # probabilities.
    pixel = 3 + 2 * 12 + 2 * 4 * classes + position
    need_memory(int(images * side**2 * pixel), f"the size {side}", backbone.device)
    return side


def network_input(backbone: Backbone, images: UInt8[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 H W"]:
    """8-bit images as a backbone takes them: in [0, 1], where it is."""
    return images.to(backbone.device).float() / 255


def image_features(
    backbone: Backbone, images: UInt8[Tensor, "b 3 H W"]
) -> Float[Tensor, "b c h w"]:
    """Features of 8-bit images.

    Examples:
        >>> backbone = Backbone(torch.nn.AvgPool2d(8), patch_size=8, name="pool")
        >>> image_features(backbone, torch.zeros(2, 3, 16, 8, dtype=torch.uint8)).shape
        torch.Size([2, 3, 2, 1])
    """
    return backbone(network_input(backbone, images))


def both_features(
    backbone: Backbone, images: UInt8[Tensor, "b 3 H W"]
) -> Float[Tensor, "b 2 c h w"]:
    """Features of 8-bit images and of their flipped images, as the network gives them."""
    inputs = network_input(backbone, images)
    return torch.stack([backbone(inputs), backbone(inputs.flip(-1))], dim=1)


def flip_average(backbone: Backbone, images: UInt8[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]:
    """Features averaged over each image and its flipped image, as at inference in the program."""
    return mean_of_both(both_features(backbone, images))


def mean_of_both(both: Float[Tensor, "b 2 c h w"]) -> Float[Tensor, "b c h w"]:
    """The mean of :func:`both_features`, or of codes of them, at each position of the image.

    Examples:
        >>> mean_of_both(torch.tensor([[[[[1.0, 2.0]]], [[[4.0, 3.0]]]]])).tolist()
        [[[[2.0, 3.0]]]]
    """
    return (both[:, 0] + both[:, 1].flip(-1)) / 2


def weights_digest(module: nn.Module) -> str | None:
    """SHA-256 over the parameters, whatever their names and order; None if there are none."""
    return tensors_digest(module.parameters())


def tensors_digest(tensors: Iterable[Tensor]) -> str | None:
    """:func:`weights_digest` of the parameters that a module would have."""
    each = sorted(
        hashlib.sha256(
            str(tuple(p.shape)).encode()
            + p.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        ).digest()
        for p in tensors
    )
    return hashlib.sha256(b"".join(each)).hexdigest() if each else None
