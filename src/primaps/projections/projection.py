"""A projection: frozen features in, codes of fewer channels out, and cluster centers if it has any.

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

from primaps.backbones.backbone import weights_digest
from primaps.results import GENERATOR, check_set
from primaps.utils.errors import InputError, PrimapsError
from primaps.utils.files import atomic_path, user_path, write_json
from primaps.utils.inputs import need_tensor, read_json, read_tensors

FORMAT = 1


class ProjectionError(PrimapsError, RuntimeError):
    """A file or folder holds no projection, or one that does not fit; the message says why."""


@dataclass(frozen=True)
class ProjectionRecord:
    """The content of ``projection.json``; see :class:`Projection`."""

    format: Literal[1]
    generator: str
    name: str
    digest: str | None
    about: dict[str, Any]


class Head(nn.Module):
    """The head of STEGO and HP: a linear map plus a branch of two layers, each a 1x1 convolution.

    Attributes:
        linear: C -> D.
        branch: C -> hidden, ReLU, hidden -> D; the sum of both is the code.
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
        """Codes of lists of positions: a 1x1 convolution is one matrix product.

        Args:
            dropout: share of the channels that are hidden from each branch, others for each list.
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
        codes: a :class:`Head`, or any callable or module of yours that maps (B, C, h, w) to
            (B, D, h, w).
        clusters: (K, D) centers in code space, compared by cosine; PriMaPs-EM starts from them.
        name: what it is called in messages and files; None takes the callable's name.
        about: anything that JSON can hold, kept beside the weights: where it is from, settings;
            under ``backbone`` the digest of the weights that it was made for, if that is known.
        backbone: a folder with those weights, which :func:`primaps.load_backbone` takes: codes are
            then of this network, whatever masks are made from.

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
    def own(self) -> bool:
        """Whether it has a head of this package, which can be saved."""
        return isinstance(self.codes, Head)

    @property
    def channels(self) -> int | None:
        """Of the codes; None for a callable, which does not say."""
        return self.codes.linear.out_features if isinstance(self.codes, Head) else None

    @torch.no_grad()
    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        """Codes of a batch of feature maps, not normalized.

        Raises:
            InputError: the features have another number of channels than the head takes, or a
                callable returned another shape.
        """
        if features.ndim != 4:
            raise InputError(f"features must be (B, C, h, w), got {tuple(features.shape)}")
        if isinstance(self.codes, Head) and features.shape[1] != self.codes.linear.in_features:
            raise InputError(
                f"the projection {self.name} takes {self.codes.linear.in_features} channels, but "
                f"the features have {features.shape[1]}: it was made for another backbone"
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
        """Write ``projection.safetensors`` and ``projection.json`` into a folder, and the backbone
        that it carries into ``backbone`` there, unless it is not wanted.

        Raises:
            InputError: the codes come from a callable, whose program cannot be written.
            OutputError: The files exist and were not written by this package.
        """
        if not self.own:
            raise InputError(
                f"the projection {self.name} is a callable and cannot be saved: keep its program, "
                "and give it again when the model is loaded"
            )
        folder = user_path(folder)
        carried = folder / "backbone"
        copied = backbone and self.backbone not in (None, carried)
        names = ["projection.safetensors", *(["backbone"] if copied else [])]
        check_set(folder, "projection.json", names)
        content = {"format": FORMAT, "generator": GENERATOR, "name": self.name}
        content |= {"digest": self.digest, "about": self.about}
        # First the description, which marks the other files; its digest tells if they are missing.
        write_json(folder / "projection.json", content)
        if copied and self.backbone is not None:
            for name in ("model.safetensors", "config.json"):  # the second says that both exist
                with atomic_path(carried / name) as temporary:
                    shutil.copyfile(self.backbone / name, temporary)
        tensors = {key: value.contiguous() for key, value in self.state_dict().items()}
        with atomic_path(folder / "projection.safetensors") as temporary:
            temporary.write_bytes(save(tensors, {"format": "pt"}))

    @classmethod
    def load(cls, folder: str | Path) -> Projection:
        """Read what :meth:`save` or ``primaps projection convert`` wrote.

        Raises:
            ProjectionError: files are missing, damaged or do not belong together.
        """
        folder = Path(folder)
        weights, description = folder / "projection.safetensors", folder / "projection.json"
        for file in (weights, description):
            if not file.is_file():
                raise ProjectionError(f"{folder} holds no projection (no {file.name})")
        try:
            record: ProjectionRecord = read_json(description, ProjectionRecord)
            tensors, _ = read_tensors(weights)
        except (OSError, InputError) as error:
            raise ProjectionError(f"{folder}: the projection cannot be read ({error})") from error
        projection = from_tensors(tensors, str(weights), record.name, record.about)
        if projection.digest != record.digest:
            raise ProjectionError(
                f"{folder}: projection.json and projection.safetensors do not belong together"
            )
        carried = folder / "backbone"
        projection.backbone = carried if (carried / "config.json").is_file() else None
        return projection


def from_tensors(
    tensors: Mapping[str, Tensor], where: str, name: str, about: Mapping[str, Any]
) -> Projection:
    """A projection with given weights: ``codes.linear.*``, ``codes.branch.{0,2}.*``, ``clusters``.

    Args:
        where: file or folder, for messages.

    Raises:
        ProjectionError: a tensor is missing, surplus or of another shape.
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
    with torch.device("meta"):  # memory is that of the tensors, which are put in place
        head = Head(channels, dim, hidden)
    try:
        head.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split("\n\t")[1:]).strip() or str(error)
        raise ProjectionError(f"{where}: {reason}") from error
    return Projection(head, clusters, name, about)


def _sizes(tensors: Mapping[str, Tensor], where: str) -> tuple[int, int, int]:
    """Channels of features, of codes and of the branch between, as the weights have them."""
    linear = need_tensor(tensors, "codes.linear.weight", (None, None), where)
    branch = need_tensor(tensors, "codes.branch.0.weight", (None, None), where)
    return linear.shape[1], linear.shape[0], branch.shape[0]
