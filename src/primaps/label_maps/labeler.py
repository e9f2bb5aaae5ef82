"""From images to label maps at their own sizes: one way for files, engines and single images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Integer, UInt8
from PIL import Image
from torch import Tensor

from primaps.data import fit_to_patches, to_tensor

ImageSize = tuple[int, int]
"""Height and width."""


@dataclass(frozen=True)
class Labeler:
    """What makes label maps, and how images have to come.

    Attributes:
        label: 8-bit images (B, 3, H, W), scaled, and the sizes of the B originals, to a label map
            (H, W) of each at its own size.
        size: shorter side of scaled images in pixels; None leaves them as they are.
        patch_size: their sides are multiples of it.
        device: where the work is done.
    """

    label: Callable[[Tensor, Sequence[ImageSize]], list[Tensor]]
    size: int | None
    patch_size: int
    device: torch.device

    @property
    def together(self) -> int:
        """Images that are computed together.

        A core is fastest on two, which its cache holds; an accelerator wants more to do.
        """
        if self.size is None:  # each of its own size, however large
            return 1
        return 2 if self.device.type == "cpu" else 32

    def scaled(self, image: Image.Image) -> UInt8[Tensor, "3 h w"]:
        """An image as ``label`` takes it."""
        scaled = image if self.size is None else fit_to_patches(image, self.size, self.patch_size)
        return to_tensor(scaled)

    def __call__(
        self, scaled: Sequence[UInt8[Tensor, "3 h w"]], sizes: Sequence[ImageSize]
    ) -> list[Integer[Tensor, "H W"]]:
        """Label maps, on the CPU, of scaled images of one size."""
        return [labels.cpu() for labels in self.label(torch.stack(list(scaled)), sizes)]
