"""What both ways of computing proposals give for one image."""

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor


class ImageProposals(NamedTuple):
    """Masks of an image of N positions.

    Attributes:
        masks: number of the mask of each position, 0 = ignore.
        similarities: cosine of each position with the anchor of its mask, divided by the largest.
        anchors: position of the anchor of each mask.
        shares: share of the variance that each mask's component explains.
    """

    masks: Int[Tensor, " n"]
    similarities: Float[Tensor, " n"]
    anchors: Int[Tensor, " z"]
    shares: Float[Tensor, " z"]
