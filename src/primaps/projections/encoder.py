"""From images to codes: which network a projection takes its features from, and both as one."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from primaps.backbones.backbone import Backbone
from primaps.backbones.load import load_backbone
from primaps.projections.projection import Projection
from primaps.utils.errors import InputError


def code_network(backbone: Backbone, projection: Projection) -> Backbone:
    """The network whose features a projection takes.

    It is the backbone of the masks if it has the weights that the projection was made for (or these
    are not known), else the one that the projection carries: checkpoints of STEGO and HP on ViT-S/8
    hold another DINO than the hub.

    Raises:
        InputError: the projection was made for other weights and does not carry them.
    """
    made_for = projection.about.get("backbone")
    if made_for in (None, backbone.weights):
        return backbone
    if projection.backbone is None:
        raise InputError(
            f"the projection {projection.name} was made for the weights {made_for[:12]}, but those "
            f"of {backbone.name} are {(backbone.weights or 'unknown')[:12]}: give that backbone, "
            "or convert the checkpoint again and keep its folder backbone"
        )
    found = load_backbone(
        projection.backbone,
        backbone.device,
        precision=backbone.precision,
        positions=backbone.positions,
        engine=backbone.engine,
    )
    if found.weights != made_for:
        raise InputError(
            f"{projection.backbone} does not hold the weights that the projection "
            f"{projection.name} was made for: convert the checkpoint again"
        )
    return found


def encoder(network: Backbone, projection: Projection) -> Backbone:
    """A network and a projection as one backbone, whose features are the codes.

    Codes, not features, are then averaged over an image and its flipped image.

    Examples:
        >>> pool = load_backbone(nn.AvgPool2d(8), "cpu", patch_size=8)
        >>> reds = encoder(pool, Projection(lambda features: features[:, :1]))
        >>> reds(torch.rand(2, 3, 16, 32)).shape
        torch.Size([2, 1, 2, 4])
    """
    mean, std = (tuple(buffer.flatten().tolist()) for buffer in (network.mean, network.std))
    codes = Backbone(
        _Codes(network, projection), network.patch_size, f"{projection.name} on {network.name}",
        network.source, mean, std, network.precision, network.positions,
        network.engine,
    ).to(network.device)  # fmt: skip
    if projection.digest is None:  # a program, which nothing tells from another
        codes.weights = codes.digest = None
    return codes


class _Codes(nn.Module):
    def __init__(self, network: Backbone, projection: Projection) -> None:
        super().__init__()
        self.features, self.projection = network.features, projection
        self.bytes_per_position = getattr(network.features, "bytes_per_position", 0)

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b d h w"]:
        features = self.features(images)
        with torch.autocast(features.device.type, enabled=False):  # heads are small: full precision
            return self.projection(features.float())
