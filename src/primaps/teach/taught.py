"""What a model was taught: classifier, calibration, classes and provenance, and their file.

``taught.safetensors`` has the tensors, and the rest as JSON in its metadata. The annotations are in
``annotations.jsonl`` beside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Interval, Len
from jaxtyping import Float, Integer
from safetensors.torch import save
from torch import Tensor

from primaps.classes.legend import HIDDEN
from primaps.classes.stability import ClassStability
from primaps.classes.summary import ClassSummary
from primaps.classes.tree import flat_tree
from primaps.teach.annotations import Annotation, read_annotations
from primaps.teach.pixels import PixelClassifier
from primaps.teach.tokens import TokenClassifier
from primaps.utils.errors import InputError
from primaps.utils.inputs import need_tensor, parse_json, parse_tensors

FORMAT: Literal[1] = 1
Level = Literal["tokens", "pixels"]
Color = Annotated[list[Annotated[int, Interval(ge=0, le=255)]], Len(3, 3)]
Name = Annotated[str, Len(1, 200)]


@dataclass(frozen=True)
class NamedPrototypes:
    """Classes that were found without labels and that a person named.

    Attributes:
        names: name of each class.
        colors: color of each class.
        directions: prototype of each class.
    """

    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    directions: Float[Tensor, "a c"]


@dataclass(frozen=True)
class Taught:
    """What a model was taught.

    Attributes:
        names: class names in the order of their values.
        colors: color of each class.
        weight, bias: linear classifier of L2-normalized features, whose probabilities are
            calibrated.
        temperature: temperature that the weights were divided by.
        reject: probability below which a pixel has no class with the option ``reject``; None if it
            could not be calibrated, which needs annotations in two images.
        level: level that predictions use by default.
        pixels: classifier of pixels; None if only tokens were learned.
        means: mean feature of each class, of length 1.
        tokens: number of sampled unlabeled tokens of each class.
        counts: number of annotations that show each class.
        images: image key to SHA-256, of every annotated image.
        annotations: annotations that the model was taught with, or their file, which is read when
            they are needed.
        unsupervised: classes that were found without labels and named.
        scores: mean IoU on held-out annotations by level, in [0, 1]; may be empty.
        basis: edits of the model that was taught; not saved.
    """

    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    weight: Float[Tensor, "k c"]
    bias: Float[Tensor, " k"]
    temperature: float
    reject: float | None
    level: Level
    pixels: PixelClassifier | None
    means: Float[Tensor, "k c"]
    tokens: Integer[Tensor, " k"]
    counts: Mapping[str, int]
    images: Mapping[str, str]
    annotations: tuple[Annotation, ...] | Path
    unsupervised: NamedPrototypes
    scores: Mapping[str, float]
    basis: Sequence[dict[str, str]] = ()

    @property
    def classifier(self) -> TokenClassifier:
        """Classifier of tokens with calibrated logits."""
        return TokenClassifier(self.weight, self.bias)

    @property
    def summary(self) -> ClassSummary:
        """Classes as a flat tree, in which each class is a leaf."""
        tree = flat_tree(self.means, self.tokens)
        cosines = self.means @ self.means.T
        cosines.fill_diagonal_(-2)
        total = max(1, int(self.tokens.sum()))
        shares = tuple((self.tokens.double() / total).tolist())
        found = [
            ClassStability(float("nan"), share, 0, int(row.argmax()), float(row.max()))
            for share, row in zip(shares, cosines, strict=True)
        ]
        return ClassSummary(tree, tuple(found), shares)

    @property
    def edits(self) -> list[dict[str, str]]:
        """Edits that name and color the classes of :attr:`summary`, as in ``edits.json``."""
        found = []
        for k, (name, color) in enumerate(zip(self.names, self.colors, strict=True)):
            found.append({"rename": str(k), "to": name})
            found.append({"color": str(k), "to": f"#{bytes(color).hex()}"})
        return found

    def read_annotations(self) -> list[Annotation]:
        """Return the annotations, which are read from their file if the model was loaded."""
        if isinstance(self.annotations, Path):
            return read_annotations(self.annotations) if self.annotations.is_file() else []
        return list(self.annotations)

    @property
    def sentence(self) -> str:
        """One sentence about the annotations of the model."""
        parts = [f"{count:,} of {name}" for name, count in self.counts.items() if count]
        listed = f" ({', '.join(parts)})" if parts else ""
        total = sum(self.counts.values())
        return (
            f"taught with {total:,} annotation{'s' * (total != 1)}{listed} in "
            f"{len(self.images):,} image{'s' * (len(self.images) != 1)}"
        )


@dataclass(frozen=True)
class TaughtRecord:
    """Metadata of ``taught.safetensors``; see :class:`Taught`.

    Attributes:
        format: version of the file.
        model: SHA-256 of the prototypes of the model that was taught.
        annotations: number of annotations that show each class.
        images: keys of the annotated images.
        digests: SHA-256 of each of them.
        scores: mean IoU on held-out annotations by level.
    """

    format: Literal[1]
    model: str
    names: Annotated[list[Name], Len(2, HIDDEN)]
    colors: list[Color]
    annotations: list[Annotated[int, Ge(0)]]
    images: list[str]
    digests: list[str]
    level: Level
    temperature: Annotated[float, Interval(gt=0, le=1e6)]
    reject: Annotated[float, Interval(ge=0, le=1)] | None
    scores: dict[str, float]
    unsupervised_names: list[Name]
    unsupervised_colors: list[Color]


def taught_bytes(taught: Taught, model: str) -> bytes:
    """Return the content of ``taught.safetensors``.

    Args:
        model: SHA-256 of the prototypes of the model that was taught.
    """
    record = TaughtRecord(
        FORMAT, model, list(taught.names), [list(color) for color in taught.colors],
        [taught.counts[name] for name in taught.names], list(taught.images),
        list(taught.images.values()), taught.level, taught.temperature, taught.reject,
        dict(taught.scores), list(taught.unsupervised.names),
        [list(color) for color in taught.unsupervised.colors],
    )  # fmt: skip
    tensors = {
        "weight": taught.weight, "bias": taught.bias, "means": taught.means,
        "tokens": taught.tokens,
    }  # fmt: skip
    if taught.pixels is not None:
        tensors |= taught.pixels.tensors()
    if taught.unsupervised.names:
        tensors["unsupervised"] = taught.unsupervised.directions
    packed = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    return save(packed, {"taught": json.dumps(asdict(record), ensure_ascii=False)})


def parse_taught(
    data: bytes, where: str, model: str, channels: int | None, annotations: Path
) -> Taught:
    """Validate and return the content of ``taught.safetensors``.

    Args:
        where: path of the file, for messages.
        model: SHA-256 of the prototypes of the model in the folder.
        channels: number of channels of the features; None accepts any.
        annotations: file of the annotations.

    Raises:
        InputError: the file is damaged, or of another model.
    """
    tensors, note = parse_tensors(data, where)
    record: TaughtRecord = parse_json(note.get("taught", "null"), TaughtRecord, where)
    if record.model != model:
        raise InputError(f"{where} and model.safetensors come from different models")
    count, named = len(record.names), len(record.unsupervised_names)
    lists = (record.colors, record.annotations)
    if any(len(one) != count for one in lists) or len({*record.names}) != count:
        raise InputError(f"{where}: names, colors and annotations do not match")
    if len(record.images) != len(record.digests) or len(record.unsupervised_colors) != named:
        raise InputError(f"{where}: images and digests, or names and colors, do not match")
    weight = need_tensor(tensors, "weight", (count, channels), where)
    channels = weight.shape[1]
    pixels = PixelClassifier.from_tensors(tensors, count, where)
    if pixels is None and record.level == "pixels":
        raise InputError(f"{where}: the trees of the pixel level are missing")
    directions = torch.zeros(0, channels)
    if named:
        directions = need_tensor(tensors, "unsupervised", (named, channels), where)
    return Taught(
        tuple(record.names),
        _colors(record.colors),
        weight,
        need_tensor(tensors, "bias", (count,), where),
        record.temperature,
        record.reject,
        record.level,
        pixels,
        need_tensor(tensors, "means", (count, channels), where),
        need_tensor(tensors, "tokens", (count,), where, integers=True),
        dict(zip(record.names, record.annotations, strict=True)),
        dict(zip(record.images, record.digests, strict=True)),
        annotations,
        NamedPrototypes(
            tuple(record.unsupervised_names), _colors(record.unsupervised_colors), directions
        ),
        record.scores,
    )


def _colors(listed: Sequence[Sequence[int]]) -> tuple[tuple[int, int, int], ...]:
    return tuple((red, green, blue) for red, green, blue in listed)
