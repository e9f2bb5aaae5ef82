"""Projections, which map frozen features to codes of fewer channels.

STEGO (Hamilton et al., ICLR 2022) and HP (Seong et al., CVPR 2023) learn such a head on top of a
frozen backbone. PriMaPs-EM on top of them takes masks from the features and fits its prototypes to
the codes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor, nn

from primaps.backbones.backbone import Backbone, weights_digest
from primaps.backbones.load import load_backbone
from primaps.results import GENERATOR, check_set
from primaps.utils.errors import InputError, PrimapsError
from primaps.utils.files import atomic_path, user_path, write_json
from primaps.utils.inputs import need_tensor, read_json, read_tensors

FORMAT = 1


class ProjectionError(PrimapsError, RuntimeError):
    """A file or folder is not a projection, or is damaged."""


@dataclass(frozen=True)
class _Description:
    """Content of ``projection.json``; see :class:`Projection`."""

    format: Literal[1]
    generator: str
    name: str
    digest: str | None
    about: dict[str, Any]


class Head(nn.Module):
    """Head of STEGO and HP: a linear map plus a branch of two layers, all 1x1 convolutions.

    Attributes:
        linear: C to D channels.
        branch: C to hidden channels, ReLU, hidden to D channels; the sum of both is the code.
    """

    def __init__(self, channels: int, dim: int, hidden: int | None = None) -> None:
        super().__init__()
        hidden = channels if hidden is None else hidden
        self.linear = nn.Linear(channels, dim)
        self.branch = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, dim))

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        codes = self.tokens(features.flatten(2).transpose(1, 2))
        return codes.transpose(1, 2).unflatten(2, features.shape[-2:])

    def tokens(
        self,
        features: Float[Tensor, "*b n c"],
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "*b n d"]:
        """Compute the codes of tokens.

        Args:
            features: tokens.
            dropout: probability that a channel is set to 0, sampled for both branches and for each
                list of tokens.
            generator: random generator of the dropout.
        """
        if not dropout:
            return self.linear(features) + self.branch(features)
        shape = (2, *features.shape[:-2], 1, features.shape[-1])
        keep = torch.rand(shape, generator=generator).to(features.device) >= dropout
        one, other = features * keep / (1 - dropout)
        return self.linear(one) + self.branch(other)


class Projection(nn.Module):
    """A frozen map from features to codes.

    Args:
        codes: a :class:`Head`, or a callable or module that maps (B, C, h, w) to (B, D, h, w).
        clusters: (K, D) centers in code space, compared by cosine; PriMaPs-EM starts from them.
        name: name in messages and files; None is the name of the callable.
        about: metadata for ``projection.json``, such as settings. The key ``backbone`` has the
            digest of the weights for which the projection was made, if known.
        backbone: a folder with those weights, which :func:`primaps.load_backbone` takes: codes are
            then computed from its features, also if the masks come from another network.

    Attributes:
        digest: SHA-256 over weights and clusters, or None for a callable without weights.

    Examples:
        >>> projection = Projection(Head(channels=384, dim=70), clusters=torch.randn(27, 70))
        >>> projection(torch.randn(2, 384, 23, 23)).shape
        torch.Size([2, 70, 23, 23])
        >>> halves = Projection(lambda features: features[:, ::2])
        >>> halves(torch.randn(2, 384, 23, 23)).shape
        torch.Size([2, 192, 23, 23])
    """

    clusters: Tensor | None

    def __init__(
        self,
        codes: Callable[[Tensor], Tensor],
        clusters: Float[Tensor, "k d"] | None = None,
        name: str | None = None,
        about: Mapping[str, Any] | None = None,
        backbone: Path | None = None,
    ) -> None:
        super().__init__()
        self.codes, self.backbone = codes, backbone
        own = str(getattr(codes, "__qualname__", type(codes).__qualname__))
        self.name = name or own
        self.about = dict(about or {})
        self.register_parameter(
            "clusters", None if clusters is None else nn.Parameter(clusters.detach().clone())
        )
        self.requires_grad_(False).eval()

    @property
    def digest(self) -> str | None:
        return weights_digest(self)

    @property
    def has_head(self) -> bool:
        """Whether the codes come from a :class:`Head`, which can be saved."""
        return isinstance(self.codes, Head)

    @property
    def channels(self) -> int | None:
        """Number of channels of the codes; None for a callable."""
        return self.codes.linear.out_features if isinstance(self.codes, Head) else None

    @torch.no_grad()
    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        """Compute the codes of feature maps, not normalized.

        Raises:
            InputError: the number of channels does not fit the head, or a callable returned
                another shape.
        """
        if features.ndim != 4:
            raise InputError(f"features must be (B, C, h, w), got {tuple(features.shape)}")
        if isinstance(self.codes, Head) and features.shape[1] != self.codes.linear.in_features:
            raise InputError(
                f"the projection {self.name} takes {self.codes.linear.in_features} channels, but "
                f"the features have {features.shape[1]}; use the backbone for which it was made"
            )
        codes = self.codes(features)
        if (
            not isinstance(codes, Tensor)
            or codes.ndim != 4
            or (len(codes), *codes.shape[2:]) != (len(features), *features.shape[2:])
        ):
            found = tuple(codes.shape) if isinstance(codes, Tensor) else type(codes).__name__
            raise InputError(
                f"the projection {self.name} returned {found} for features "
                f"{tuple(features.shape)}; it must be (B, D, h, w) with the same B, h, w"
            )
        return codes

    def save(self, folder: str | Path, backbone: bool = True) -> None:
        """Write ``projection.safetensors`` and ``projection.json`` into a folder.

        Args:
            folder: output folder.
            backbone: also copy the backbone of the projection to ``folder/backbone``.

        Raises:
            InputError: the codes come from a callable.
            OutputError: the files exist and were not written by primaps.
        """
        if not self.has_head:
            raise InputError(
                f"the projection {self.name} is a callable and cannot be saved; keep its code, and "
                "pass it again when the model is loaded"
            )
        folder = user_path(folder)
        target = folder / "backbone"
        copied = backbone and self.backbone not in (None, target)
        names = ["projection.safetensors", *(["backbone"] if copied else [])]
        check_set(folder, "projection.json", names)
        content = {"format": FORMAT, "generator": GENERATOR, "name": self.name}
        content |= {"digest": self.digest, "about": self.about}
        # The description comes first: it marks the other files, and has their digest.
        write_json(folder / "projection.json", content)
        if copied and self.backbone is not None:
            for name in ("model.safetensors", "config.json"):  # the second marks both as complete
                with atomic_path(target / name) as temporary:
                    shutil.copyfile(self.backbone / name, temporary)
        tensors = {key: value.contiguous() for key, value in self.state_dict().items()}
        with atomic_path(folder / "projection.safetensors") as temporary:
            temporary.write_bytes(save(tensors, {"format": "pt"}))

    @classmethod
    def load(cls, folder: str | Path) -> Projection:
        """Read a folder that :meth:`save` or ``primaps projection convert`` wrote.

        Raises:
            ProjectionError: files are missing, damaged or do not belong together.
        """
        folder = Path(folder)
        weights, description = folder / "projection.safetensors", folder / "projection.json"
        for file in (weights, description):
            if not file.is_file():
                raise ProjectionError(f"{folder} has no projection (no {file.name})")
        try:
            record: _Description = read_json(description, _Description)
            tensors, _ = read_tensors(weights)
        except (OSError, InputError) as error:
            raise ProjectionError(f"{folder}: the projection cannot be read ({error})") from error
        projection = from_tensors(tensors, str(weights), record.name, record.about)
        if projection.digest != record.digest:
            raise ProjectionError(
                f"{folder}: projection.json and projection.safetensors do not belong together"
            )
        backbone = folder / "backbone"
        projection.backbone = backbone if (backbone / "config.json").is_file() else None
        return projection


def from_tensors(
    tensors: Mapping[str, Tensor], where: str, name: str, about: Mapping[str, Any]
) -> Projection:
    """Make a projection from ``codes.linear.*``, ``codes.branch.{0,2}.*`` and ``clusters``.

    Args:
        where: file or folder in messages.

    Raises:
        ProjectionError: a tensor is missing, surplus or has another shape.
    """
    try:
        channels, dim, hidden = _sizes(tensors, where)
        for tensor, shape in {
            "codes.linear.weight": (dim, channels),
            "codes.linear.bias": (dim,),
            "codes.branch.0.weight": (hidden, channels),
            "codes.branch.0.bias": (hidden,),
            "codes.branch.2.weight": (dim, hidden),
            "codes.branch.2.bias": (dim,),
        }.items():
            need_tensor(tensors, tensor, shape, where)
        clusters = tensors.get("clusters")
        if clusters is not None:
            clusters = need_tensor(tensors, "clusters", (None, dim), where).float()
    except InputError as error:
        raise ProjectionError(str(error)) from None
    weights = {k.removeprefix("codes."): v.float() for k, v in tensors.items() if k != "clusters"}
    with torch.device("meta"):  # no memory: the tensors replace the parameters
        head = Head(channels, dim, hidden)
    try:
        head.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split("\n\t")[1:]).strip() or str(error)
        raise ProjectionError(f"{where}: {reason}") from error
    return Projection(head, clusters, name, about)


def _sizes(tensors: Mapping[str, Tensor], where: str) -> tuple[int, int, int]:
    """Return the channels of features, of codes and of the branch, from shapes of weights."""
    linear = need_tensor(tensors, "codes.linear.weight", (None, None), where)
    branch = need_tensor(tensors, "codes.branch.0.weight", (None, None), where)
    return linear.shape[1], linear.shape[0], branch.shape[0]


def code_network(backbone: Backbone, projection: Projection) -> Backbone:
    """Return the network whose features a projection takes.

    This is the backbone of the masks, if the projection was made for its weights, or if these are
    not known. Otherwise it is the backbone of the projection: checkpoints of STEGO and HP on
    ViT-S/8 contain another DINO than the hub.

    Raises:
        InputError: the projection was made for other weights, which it does not contain.
    """
    made_for = projection.about.get("backbone")
    if made_for in (None, backbone.weights):
        return backbone
    if projection.backbone is None:
        raise InputError(
            f"the projection {projection.name} was made for the weights {made_for[:12]}, but those "
            f"of {backbone.name} are {(backbone.weights or 'unknown')[:12]}; use that backbone, "
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
            f"{projection.backbone} does not have the weights for which the projection "
            f"{projection.name} was made; convert the checkpoint again"
        )
    return found


def encoder(network: Backbone, projection: Projection) -> Backbone:
    """Join a network and a projection to a backbone whose features are the codes.

    Codes, not features, are then averaged over an image and its horizontal flip.

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
    if projection.digest is None:  # callables cannot be distinguished
        codes.weights = codes.digest = None
    return codes


class _Codes(nn.Module):
    def __init__(self, network: Backbone, projection: Projection) -> None:
        super().__init__()
        self.features, self.projection = network.features, projection
        self.bytes_per_token = getattr(network.features, "bytes_per_token", 0)

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b d h w"]:
        features = self.features(images)
        with torch.autocast(features.device.type, enabled=False):  # heads are small
            return self.projection(features.float())
