"""The files of a model: weights in safetensors, everything else in JSON, whole or not at all.

What is read is checked by its type before anything is built from it; the model builds itself.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Interval, Len
from safetensors.torch import save
from torch import Tensor

from primaps.config import Config, Positions
from primaps.data import ImageFile
from primaps.results import GENERATOR, check_file, check_inputs, check_set, is_marked
from primaps.utils.distributed import rank
from primaps.utils.errors import InputError, PrimapsError
from primaps.utils.files import atomic_path, locked, write_json
from primaps.utils.inputs import (
    LARGEST_TENSORS,
    need_tensor,
    parse_json,
    parse_tensors,
    read_bytes,
    read_json,
)
from primaps.version import VERSION

FORMAT: Literal[2] = 2
WRITTEN_BY = "give the folder that `primaps fit --out` wrote"
LARGEST_HISTORY = 256 << 20
"""Bytes of the largest ``history.json``: that of a very long fit is a tenth of it."""
Line = dict[str, str | int | float | Annotated[list[int | float], Len(0, 4096)] | None]
"""Of the history: figures of an epoch by their names."""
FILES = ("model.safetensors", "history.json", "tree.safetensors", "preview.png")


class ModelError(PrimapsError, RuntimeError):
    """A folder holds no model of this package, or one that does not fit; the message says why."""


@dataclass(frozen=True)
class BackboneRecord:
    """The backbone that a model was fitted with.

    Attributes:
        sha256: digest of everything that decides its features.
        patch_size: in pixels.
        positions: see :func:`primaps.load_backbone`.
    """

    name: str
    sha256: str | None
    patch_size: Annotated[int, Interval(ge=1, le=4096)]
    positions: Positions = "exact"


@dataclass(frozen=True)
class ProjectionRecord:
    """The projection that a model was fitted with."""

    name: str
    sha256: str | None


@dataclass(frozen=True)
class TrainingRecord:
    """What a model was fitted to, and how long.

    Attributes:
        images: number of images.
        init_steps: steps of all k-means starts.
        steps: steps of EM or the probe.
        labels_read: whether the fit was given labels, which only the linear probe is.
    """

    images: Annotated[int, Ge(0)]
    init_steps: Annotated[int, Ge(0)]
    steps: Annotated[int, Ge(0)]
    labels_read: bool


@dataclass(frozen=True)
class ModelRecord:
    """The content of ``config.json``.

    Attributes:
        format: of the folder.
        generator: package and version that wrote the file; the mark of :mod:`primaps.results`.
        config: all options.
        weights: SHA-256 of ``model.safetensors``, so that files of two fits are told apart.
        backbone: what features are from.
        projection: what codes are from, if there is one.
        training: what the model was fitted to.
        versions: of the packages that fitted it.
    """

    format: Literal[2]
    generator: str
    config: Config
    weights: str
    backbone: BackboneRecord
    projection: ProjectionRecord | None
    training: TrainingRecord
    versions: dict[str, str]


def write_model(
    folder: str | Path,
    tensors: dict[str, Tensor],
    history: list[dict[str, Any]],
    config: Config,
    backbone: BackboneRecord,
    projection: ProjectionRecord | None,
    training: TrainingRecord,
) -> None:
    """Write ``config.json``, ``model.safetensors`` and ``history.json``, each atomically.

    Raises:
        OutputError: The folder has one of these files, but this package did not write it.
    """
    folder = Path(folder).expanduser()
    check_model_folder(folder)
    weights = save({k: v.cpu().contiguous() for k, v in tensors.items()}, {"format": "pt"})
    versions = {"primaps": VERSION, "torch": torch.__version__}
    versions["python"] = platform.python_version()
    digest = hashlib.sha256(weights).hexdigest()
    record = ModelRecord(
        FORMAT, GENERATOR, config, digest, backbone, projection, training, versions
    )
    # First the record: then weights of an earlier fit do not pass for those of this one.
    write_json(folder / "config.json", asdict(record))
    with atomic_path(folder / "model.safetensors") as temporary:
        temporary.write_bytes(weights)
    write_json(folder / "history.json", history)


def check_model_folder(folder: Path) -> None:
    """Check that a model may be written to a folder.

    Raises:
        OutputError: The folder is a file, or has files with the names of a model that this package
            did not write.
    """
    check_set(folder, "config.json", FILES)
    check_file(folder / "preview.png")


@contextmanager
def model_writing(folder: Path, images: Sequence[ImageFile]) -> Iterator[None]:
    """Hold a folder for the model of some images; another process that wants it waits.

    Raises:
        OutputError: An image lies in the folder itself, or the folder has files with the names of
            a model that this package did not write.
    """
    check_inputs([folder], (image.source for image in images if isinstance(image.source, Path)))
    check_model_folder(folder)
    if rank() > 0:  # the first process holds it for all
        yield
        return
    with locked(folder):
        yield


def is_model(folder: Path) -> bool:
    """Return whether a folder has a model of this package, of any version."""
    return is_marked(folder / "config.json")


def read_model(
    folder: str | Path,
) -> tuple[Path, ModelRecord, dict[str, Tensor], list[dict[str, Any]]]:
    """Folder, record, tensors and history of a model in a folder, or on the hub (owner/name).

    Raises:
        ModelError: no model of this package is there, its files are damaged or do not belong
            together.
    """
    path = _find(folder)
    try:
        record = read_record(path)
        weights = read_bytes(path / "model.safetensors", LARGEST_TENSORS)
        if hashlib.sha256(weights).hexdigest() != record.weights:
            raise InputError(
                f"{path}: config.json and model.safetensors are not of one fit: fit again"
            )
        tensors, _ = parse_tensors(weights, str(path / "model.safetensors"))
        _check_tensors(path, record, tensors)
        history = path / "history.json"
        lines = read_json(history, list[Line], most=LARGEST_HISTORY) if history.exists() else []
    except (OSError, InputError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ModelError(f"{folder} holds no model of primaps ({reason}); {WRITTEN_BY}") from error
    return path, record, tensors, lines


def read_record(folder: Path) -> ModelRecord:
    """The content of ``config.json`` in the folder of a model.

    Raises:
        InputError: it is of another program or version, or damaged.
        OSError: there is none, or it cannot be read.
    """
    path = folder / "config.json"
    data = read_bytes(path)
    content = parse_json(data, dict[str, Any], str(path))
    if not str(content.get("generator")).startswith("primaps "):
        raise InputError(f"{path} was not written by primaps")
    if (written := content.get("format")) != FORMAT:
        raise InputError(
            f"{path} has the format {written!r} and this version reads {FORMAT}: fit again, or "
            "use the version that wrote it"
        )
    record: ModelRecord = parse_json(data, ModelRecord, str(path))
    return record


def _check_tensors(path: Path, record: ModelRecord, tensors: dict[str, Tensor]) -> None:
    """Weights must be those of the configuration: names, shapes, kinds, and finite."""
    where, classes = str(path / "model.safetensors"), record.config.classes
    other = "bias" if record.config.method == "probe" else "scale"
    if tensors.keys() != {"direction", other}:
        raise InputError(f"{where} must have direction and {other}")
    found = len(tensors["direction"]) if tensors["direction"].ndim else 0
    if found != classes:
        raise InputError(f"config.json has {classes} classes and direction of {where} {found}")
    need_tensor(tensors, "direction", (classes, None), where)
    need_tensor(tensors, other, (classes,), where)
    if any(tensor.dtype != torch.float32 for tensor in tensors.values()):
        raise InputError(f"{where} must have tensors of float32")


def _find(folder: str | Path) -> Path:
    """The folder of a model; a model of the hub is downloaded."""
    path = Path(folder).expanduser()
    if path.is_dir() or str(folder).count("/") != 1 or path.is_absolute():
        if not (path / "config.json").is_file():
            raise ModelError(f"{folder} holds no model of primaps (no config.json); {WRITTEN_BY}")
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(folder), allow_patterns=["*.json", "*.safetensors"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise ModelError(
            f"{folder} is no folder here, and the hub has no such model or cannot be reached "
            f"({type(error).__name__})"
        ) from error
