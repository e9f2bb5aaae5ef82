"""Files of a model: write, read, download and publish them.

A model is a folder:

- ``config.json``: options, backbone, projection, and the SHA-256 of the weights. It is written
  first and marks the folder as a model of this package.
- ``model.safetensors``: prototypes or the linear probe.
- ``history.json``: metrics per epoch.
- ``tree.safetensors``: the tree of classes with their statistics (:class:`ClassSummary`).
- ``edits.json``: names, colors and edits of the classes::

    {"format": 1, "tree": "3f0c9a1be2d4",
     "edits": [{"rename": "3", "to": "car"}, {"merge": ["0", "4"]}, {"hide": "7"}]}

- ``taught.safetensors``: what the model was taught (:class:`primaps.teach.taught.Taught`). The
  edits in ``edits.json`` are then those of the taught classes.
- ``annotations.jsonl``: the annotations that it was taught with. It is only appended to.
- ``projection.json``, ``projection.safetensors`` and ``backbone/``: a projection with weights.
- ``preview.png``: an overlay of some training images.

Each file is written atomically, and validated when it is read.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import math
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeVar

import torch
from annotated_types import Ge, Interval, Len
from safetensors.torch import save
from torch import Tensor

from primaps.backbones.backbone import Backbone
from primaps.backbones.load import load_backbone
from primaps.classes.class_count import Evidence
from primaps.classes.legend import EditError, Legend, legend
from primaps.classes.stability import ClassStability
from primaps.classes.summary import ClassSummary
from primaps.classes.tree import Tree, TreeError
from primaps.classes.verdict import Verdict
from primaps.config import Config, Depth, Positions
from primaps.data import ImageFile
from primaps.em.kmeans import Prototypes
from primaps.em.probe import LinearProbe
from primaps.em.training import HistoryLine
from primaps.projections.projection import Projection
from primaps.results import (
    GENERATOR,
    OutputError,
    check_file,
    check_inputs,
    check_set,
    is_marked,
)
from primaps.teach.annotations import FILE, append_annotations, read_annotations
from primaps.teach.taught import Taught, parse_taught, taught_bytes
from primaps.utils.colors import palette
from primaps.utils.distributed import rank
from primaps.utils.errors import InputError, PrimapsError, reason
from primaps.utils.files import atomic_path, locked, temporary_folder, user_path, write_json
from primaps.utils.inputs import (
    LARGEST_TENSORS,
    need_tensor,
    parse_json,
    parse_tensors,
    read_bytes,
    read_json,
    read_tensors,
)
from primaps.utils.validation import validate
from primaps.version import VERSION

logger = logging.getLogger("primaps")
FORMAT: Literal[2] = 2
EDITS_FORMAT: Literal[1] = 1
CONFIG, WEIGHTS, HISTORY, PREVIEW = (
    "config.json", "model.safetensors", "history.json", "preview.png",
)  # fmt: skip
TREE, EDITS, TAUGHT = "tree.safetensors", "edits.json", "taught.safetensors"
PUBLISHED = (
    CONFIG, WEIGHTS, HISTORY, TREE, EDITS, TAUGHT, "projection.json", "projection.safetensors",
    "backbone/config.json", "backbone/model.safetensors",
)  # fmt: skip
"""Files that :func:`push_to_hub` uploads if they exist, besides the preview. Annotations are not
uploaded."""
LARGEST_HISTORY = 256 << 20
"""Maximum size of ``history.json`` in bytes. A very long fit writes a tenth of it."""
LARGEST_TREE = 64 << 20
"""Maximum size of ``tree.safetensors`` in bytes. 4,096 leaves of 4,096 channels take half of it."""
LARGEST_TAUGHT = 1 << 30
"""Maximum size of ``taught.safetensors`` in bytes. The keys of a million images take 0.1 GB."""
MAX_EDITS = 10_000
Line = dict[str, str | int | float | Annotated[list[int | float], Len(0, 4096)] | None]
"""One entry of the history: metric name to value."""
Numbers = dict[str, int | float | None]
"""Fields of a dataclass by name; None stands for NaN."""
T = TypeVar("T", ClassStability, Evidence)


class ModelError(PrimapsError, RuntimeError):
    """A folder is not a model, its files do not match, or the model is not fitted."""


class Saveable(Protocol):
    """A model that can be saved, such as :class:`primaps.PriMaPsEM`."""

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the files of the model to a folder."""


@dataclass(frozen=True)
class BackboneRecord:
    """Backbone that a model was fitted with.

    Attributes:
        name: name, hub id or path.
        sha256: digest of everything that decides its features; None for a callable.
        patch_size: patch size in pixels.
        positions: position embeddings; see :func:`primaps.load_backbone`.
    """

    name: str
    sha256: str | None
    patch_size: Annotated[int, Interval(ge=1, le=4096)]
    positions: Positions = "exact"


@dataclass(frozen=True)
class ProjectionRecord:
    """Projection that a model was fitted with."""

    name: str
    sha256: str | None


@dataclass(frozen=True)
class TrainingRecord:
    """Size of the collection and number of steps of a fit.

    Attributes:
        images: number of images.
        init_steps: steps of all k-means restarts.
        steps: steps of EM or of the linear probe.
        labels_read: whether the fit was given labels, as only the linear probe is.
        depth: bits of the values of images of more than 8 bits; None if there were none.
    """

    images: Annotated[int, Ge(0)]
    init_steps: Annotated[int, Ge(0)]
    steps: Annotated[int, Ge(0)]
    labels_read: bool
    depth: Depth | None = None


@dataclass(frozen=True)
class TeachingRecord:
    """What a model was taught with.

    Attributes:
        annotations: class name to the number of annotations that show it.
        images: number of annotated images.
    """

    annotations: dict[str, Annotated[int, Ge(0)]]
    images: Annotated[int, Ge(0)]


@dataclass(frozen=True)
class ModelRecord:
    """Content of ``config.json``.

    Attributes:
        format: version of the files.
        generator: package and version that wrote the file; the mark of :mod:`primaps.results`.
        config: all options.
        weights: SHA-256 of ``model.safetensors``, which detects files of different fits.
        backbone: network of the features.
        projection: network of the codes; None without one.
        training: size of the fit.
        versions: versions of the packages that fitted the model.
        taught: what the model was taught with; None if it was not taught.
    """

    format: Literal[2]
    generator: str
    config: Config
    weights: str
    backbone: BackboneRecord
    projection: ProjectionRecord | None
    training: TrainingRecord
    versions: dict[str, str]
    taught: TeachingRecord | None = None
    verdict: Verdict | None = None


@dataclass(frozen=True)
class SavedModel:
    """Content of the files of a model.

    Attributes:
        config: all options.
        backbone: backbone that the model was fitted with.
        projection: network of the codes; None without one.
        prototypes: prototypes or linear probe.
        history: metrics per epoch.
        training: size of the fit.
        class_summary: tree and statistics of the classes of the fit; None without masks.
        edits: edits of the classes; those of the taught classes if the model was taught.
        taught: what the model was taught; None if it was not.
        verdict: verdict on the fit; None for methods without masks and for taught models.
    """

    config: Config
    backbone: BackboneRecord
    projection: Projection | Callable[[Tensor], Tensor] | None
    prototypes: Prototypes | LinearProbe
    history: list[HistoryLine]
    training: TrainingRecord
    class_summary: ClassSummary | None = None
    edits: list[dict[str, Any]] = field(default_factory=list)
    taught: Taught | None = None
    verdict: Verdict | None = None

    @property
    def shown_summary(self) -> ClassSummary | None:
        """Tree and statistics of the classes that the model predicts."""
        return self.class_summary if self.taught is None else self.taught.summary


def write_model(folder: str | Path, model: SavedModel, projection_backbone: bool = True) -> None:
    """Write the files of a model.

    Args:
        projection_backbone: also write the backbone that the projection brings.

    Raises:
        OutputError: The folder has files with these names that this package did not write.
        EditError: The model has edits, and the folder has an ``edits.json`` of another fit.
    """
    path, summary, projection = user_path(folder), model.class_summary, model.projection
    check_model_folder(path)
    shown, taught = model.shown_summary, model.taught
    replaced = taught is not None and _replaces_edits(path, taught)
    if shown is not None and not replaced:
        _check_edits(path, shown.tree, model.edits)
    projection_record = None
    if isinstance(projection, Projection):
        projection_record = ProjectionRecord(projection.name, projection.digest)
        if projection.has_head:
            projection.save(path, backbone=projection_backbone)
    for name in (TREE, TAUGHT):  # those of another fit would not match
        (path / name).unlink(missing_ok=True)
    tensors = {k: v.cpu().contiguous() for k, v in model.prototypes.state_dict().items()}
    weights = save(tensors, {"format": "pt"})
    record = ModelRecord(
        FORMAT, GENERATOR, model.config, hashlib.sha256(weights).hexdigest(), model.backbone,
        projection_record, model.training,
        {"primaps": VERSION, "torch": torch.__version__, "python": platform.python_version()},
        None if taught is None else TeachingRecord(dict(taught.counts), len(taught.images)),
        model.verdict,
    )  # fmt: skip
    # The record comes first: weights of an earlier fit do not match it.
    write_json(path / CONFIG, asdict(record))
    with atomic_path(path / WEIGHTS) as temporary:
        temporary.write_bytes(weights)
    write_json(path / HISTORY, model.history)
    if summary is not None:
        write_class_summary(path, summary)
    if taught is not None:
        _add_annotations(path / FILE, taught)
        with atomic_path(path / TAUGHT) as temporary:
            temporary.write_bytes(taught_bytes(taught, record.weights))
    if replaced:
        (path / EDITS).unlink(missing_ok=True)
    if shown is not None and model.edits:
        change_edits(path, shown.tree, lambda _: model.edits)


def _replaces_edits(folder: Path, taught: Taught) -> bool:
    """Return whether ``edits.json`` may be replaced by the edits of a taught model.

    It may if it has no other edits than those that the model started from, or the names that an
    earlier teaching wrote.
    """
    path = folder / EDITS
    if not path.is_file():
        return False
    try:
        present = read_json(path, EditsRecord).edits
        earlier = read_taught(folder)
    except (InputError, ModelError):
        return False
    return present == taught.basis or (earlier is not None and present == earlier.edits)


def _add_annotations(path: Path, taught: Taught) -> None:
    """Append the annotations that the file does not have yet; nothing of the file is lost."""
    listed = taught.read_annotations()
    present = {one.to_json() for one in read_annotations(path)} if path.is_file() else set()
    append_annotations(path, [one for one in listed if one.to_json() not in present])


def check_model_folder(folder: Path) -> None:
    """Check that a model may be written to a folder.

    Raises:
        OutputError: The folder is a file, or has files with the names of a model that this package
            did not write.
    """
    check_set(folder, CONFIG, (WEIGHTS, HISTORY, TREE, TAUGHT, PREVIEW))
    check_file(folder / PREVIEW)


@contextmanager
def model_writing(
    folder: Path, images: Sequence[ImageFile], replace: bool = False
) -> Iterator[None]:
    """Lock a folder to write the model of some images; other processes wait for it.

    Args:
        replace: the folder may have a model with edits or annotations, which is then moved aside by
            :func:`set_aside`.

    Raises:
        OutputError: An image lies in the folder itself, the folder has files with the names of a
            model that this package did not write, or a model with edits or annotations and
            ``replace`` is False.
    """
    check_inputs([folder], (image.source for image in images if isinstance(image.source, Path)))
    check_model_folder(folder)
    check_replaced(folder, replace)
    if rank() > 0:  # the first process holds it for all
        yield
        return
    with locked(folder):
        yield


def check_replaced(folder: Path, replace: bool) -> None:
    """Check that a fit does not replace the work of a person.

    Raises:
        OutputError: The folder has a model with edits or annotations, and ``replace`` is False.
    """
    if not replace and (work := user_work(folder)):
        raise OutputError(
            f"{folder} has a model with {work}, which another fit would replace; choose another "
            "folder, or add --replace (replace=True) to keep it as "
            f"{folder.absolute().name}.bak-1"
        )


def user_work(folder: Path) -> str:
    """Return the files of a model that hold the work of a person; empty if there are none."""
    found = [name for name in (FILE, TAUGHT) if (folder / name).is_file()]
    if (folder / EDITS).is_file():
        try:
            record: EditsRecord = read_json(folder / EDITS, EditsRecord)
            edited = bool(record.edits)
        except InputError:
            edited = True  # an unknown file is not thrown away
        found += [EDITS] if edited else []
    return " and ".join(sorted(found))


def set_aside(folder: Path) -> Path | None:
    """Rename the folder of a model that a person has worked on to ``NAME.bak-N``.

    Returns:
        The new path; None if the folder has no such model, and keeps its name.
    """
    if not user_work(folder):
        return None
    folder = folder.absolute()
    names = (folder.with_name(f"{folder.name}.bak-{n}") for n in itertools.count(1))
    target = next(path for path in names if not os.path.lexists(path))
    folder.rename(target)
    return target


def is_model(folder: Path) -> bool:
    """Return whether a folder has a model of this package, of any version."""
    return is_marked(folder / CONFIG)


def read_model(
    folder: str | Path, projection: Callable[[Tensor], Tensor] | None = None
) -> SavedModel:
    """Read and validate the files of a model.

    Args:
        folder: folder of a model, or its id on the Hugging Face hub (owner/name).
        projection: required if the model was fitted with a callable.

    Raises:
        ModelError: The folder is not a model, or its files are damaged or of different fits.
        TreeError: The tree is damaged or belongs to another fit.
    """
    path = _local_folder(folder)
    record, tensors, history = _read_files(folder, path)
    codes: Projection | Callable[[Tensor], Tensor] | None = projection
    if codes is None and record.projection is not None:
        if not (path / "projection.json").is_file():
            raise ModelError(
                f"{folder} was fitted on codes of your {record.projection.name}; pass it as "
                "from_pretrained(..., projection=...)"
            )
        codes = Projection.load(path)
    channels = tensors["direction"].shape[1]
    if isinstance(codes, Projection) and codes.channels not in (None, channels):
        raise ModelError(f"{folder}: projection and weights come from different fits")
    summary = _read_summary(path)
    if summary is not None:
        tree = summary.tree
        if (tree.classes, tree.directions.shape[1]) != (record.config.classes, channels):
            raise TreeError(
                f"{path / TREE} and {path / WEIGHTS} come from different fits; fit again, or "
                f"remove {TREE} to use the model without a tree"
            )
    taught = _read_taught(path, channels)
    shown = summary if taught is None else taught.summary
    edits = [] if shown is None else list(read_edits(path, shown.tree).edits)
    kind = LinearProbe if record.config.method == "probe" else Prototypes
    prototypes = kind(tensors["direction"])
    prototypes.load_state_dict(tensors)
    return SavedModel(
        record.config, record.backbone, codes, prototypes.requires_grad_(False), history,
        record.training, summary, edits, taught,
    )  # fmt: skip


def read_record(folder: Path) -> ModelRecord:
    """Read ``config.json`` in the folder of a model.

    Raises:
        InputError: The file is damaged, not written by primaps, or of another version.
        OSError: The file does not exist or cannot be read.
    """
    path = folder / CONFIG
    data = read_bytes(path)
    content = parse_json(data, dict[str, Any], str(path))
    if not str(content.get("generator")).startswith("primaps "):
        raise InputError(f"{path} was not written by primaps")
    if (written := content.get("format")) != FORMAT:
        raise InputError(
            f"{path} has format {written!r}, but this version reads format {FORMAT}; fit again, or "
            "use the version that wrote it"
        )
    record: ModelRecord = parse_json(data, ModelRecord, str(path))
    return record


def _read_files(
    folder: str | Path, path: Path
) -> tuple[ModelRecord, dict[str, Tensor], list[HistoryLine]]:
    try:
        record = read_record(path)
        data = read_bytes(path / WEIGHTS, LARGEST_TENSORS)
        if hashlib.sha256(data).hexdigest() != record.weights:
            raise InputError(f"{path}: {CONFIG} and {WEIGHTS} come from different fits; fit again")
        tensors, _ = parse_tensors(data, str(path / WEIGHTS))
        _check_tensors(path, record, tensors)
        history = path / HISTORY
        lines = (
            read_json(history, list[Line], max_bytes=LARGEST_HISTORY) if history.exists() else []
        )
    except (OSError, InputError) as error:
        what = getattr(error, "strerror", None) or str(error)
        raise ModelError(
            f"{folder} is not a model of primaps ({what}); give a folder that `primaps fit --out` "
            "wrote"
        ) from error
    return record, tensors, lines


def _check_tensors(path: Path, record: ModelRecord, tensors: dict[str, Tensor]) -> None:
    """Check names, shapes and types of the weights."""
    where, classes = str(path / WEIGHTS), record.config.classes
    second = "bias" if record.config.method == "probe" else "scale"
    if tensors.keys() != {"direction", second}:
        raise InputError(f"{where} must have the tensors direction and {second}")
    found = len(tensors["direction"]) if tensors["direction"].ndim else 0
    if found != classes:
        raise InputError(f"{CONFIG} has {classes} classes, but direction of {where} has {found}")
    need_tensor(tensors, "direction", (classes, None), where)
    need_tensor(tensors, second, (classes,), where)
    if any(tensor.dtype != torch.float32 for tensor in tensors.values()):
        raise InputError(f"{where} must have float32 tensors")


def _local_folder(folder: str | Path) -> Path:
    """Return the folder of a model; download a model of the hub."""
    path = Path(folder).expanduser()
    if path.is_dir() or str(folder).count("/") != 1 or path.is_absolute():
        if not (path / CONFIG).is_file():
            raise ModelError(
                f"{folder} is not a model of primaps (no {CONFIG}); give a folder that `primaps "
                "fit --out` wrote"
            )
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(folder), allow_patterns=["*.json", "*.safetensors"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise ModelError(
            f"{folder} is not a folder, and the hub does not have this model or cannot be reached "
            f"({type(error).__name__})"
        ) from error


def fitted_backbone(
    folder: str | Path,
    model: SavedModel,
    backbone: str | Path | Callable[[Tensor], Tensor] | Backbone | None,
    device: str | torch.device,
    engine: str | None = None,
) -> Backbone:
    """Load the backbone that a model was fitted with.

    Args:
        folder: folder of the model, for messages.
        backbone: None loads it by its name.
        engine: see :func:`primaps.load_backbone`.

    Raises:
        ModelError: The backbone is a callable that was not given, or has other features.
    """
    fitted, name = model.backbone, model.config.backbone
    if backbone is None and name.startswith("callable:"):
        raise ModelError(
            f"{folder} was fitted on features of your {name.removeprefix('callable:')}; pass it as "
            "from_pretrained(..., backbone=...)"
        )
    given = name if backbone is None else backbone
    positions = fitted.positions if isinstance(given, str | Path) else None
    found = load_backbone(
        given, device, fitted.patch_size, model.config.precision, positions, engine
    )
    if fitted.sha256 and fitted.positions != found.positions:
        raise ModelError(
            f"{folder} was fitted with positions={fitted.positions!r}, but the backbone has "
            f"positions={found.positions!r}; load it with positions={fitted.positions!r}"
        )
    if fitted.sha256 not in (None, found.digest):
        raise ModelError(
            f"{folder} was fitted on weights of {fitted.name}, or on a normalization, that differ "
            f"from {found.source}; pass the original weights, with their preprocessor_config.json, "
            "as backbone"
        )
    return found


def write_class_summary(folder: Path, summary: ClassSummary) -> None:
    """Write ``tree.safetensors``: the tree as tensors, and the rest as JSON in the metadata."""
    content = {
        "stability": [_numbers(one) for one in summary.stability],
        "shares": list(summary.shares),
        "curve": [_numbers(one) for one in summary.curve],
    }
    with atomic_path(folder / TREE) as temporary:
        temporary.write_bytes(save(summary.tree.tensors(), {"summary": json.dumps(content)}))


@dataclass(frozen=True)
class SummaryRecord:
    """Metadata of ``tree.safetensors``; see :class:`ClassSummary`."""

    stability: list[Numbers]
    shares: list[float]
    curve: list[Numbers]


def read_class_summary(folder: str | Path) -> ClassSummary | None:
    """Return the summary of the classes that a model predicts; None without a tree.

    They are those of ``taught.safetensors``, or else those of ``tree.safetensors``.

    Raises:
        TreeError: ``tree.safetensors`` is damaged.
        ModelError: ``taught.safetensors`` is damaged or of another model.
    """
    taught = read_taught(folder)
    return _read_summary(Path(folder)) if taught is None else taught.summary


def read_taught(folder: str | Path) -> Taught | None:
    """Return what the model in a folder was taught, or None.

    Raises:
        ModelError: ``taught.safetensors`` is damaged or of another model.
    """
    return _read_taught(Path(folder), None)


def _read_taught(folder: Path, channels: int | None) -> Taught | None:
    path = folder / TAUGHT
    if not path.is_file():
        return None
    try:
        data = read_bytes(path, LARGEST_TAUGHT)
        model = read_record(folder).weights
        return parse_taught(data, str(path), model, channels, folder / FILE)
    except (InputError, OSError) as error:
        raise ModelError(
            f"{path} is damaged or of another model ({error}); teach again, or remove the file to "
            "use the model as it was before it was taught"
        ) from error


def _read_summary(folder: Path) -> ClassSummary | None:
    path = folder / TREE
    if not path.is_file():
        return None
    try:
        tensors, note = read_tensors(path, LARGEST_TREE)
        tree = Tree.from_tensors(tensors)
        record = parse_json(note.get("summary", "null"), SummaryRecord, "summary")
        if len(record.stability) != tree.classes or len(record.shares) != len(tree):
            raise InputError("summary and tree differ in the number of classes or leaves")
        stability = [_from_numbers(ClassStability, one, "stability") for one in record.stability]
        curve = [_from_numbers(Evidence, one, "curve") for one in record.curve]
        if any(not -1 <= one.nearest < tree.classes for one in stability):
            raise InputError("summary refers to a nearest class that does not exist")
    except (InputError, TreeError, OSError) as error:
        raise TreeError(
            f"{path} is damaged ({error}); fit again, or remove the file to use the model without "
            "a tree"
        ) from error
    return ClassSummary(tree, tuple(stability), tuple(record.shares), tuple(curve))


def _numbers(one: ClassStability | Evidence) -> Numbers:
    return {k: None if v != v else v for k, v in asdict(one).items()}


def _from_numbers(kind: type[T], found: Numbers, name: str) -> T:
    """Undo :func:`_numbers`."""
    if found.keys() != {field.name for field in fields(kind)}:
        raise InputError(f"{name} must have {', '.join(f.name for f in fields(kind))}")
    for each in fields(kind):
        if each.type == "int":
            validate(found[each.name], int, f"{each.name} of {name}")
    return kind(**{k: math.nan if v is None else v for k, v in found.items()})  # type: ignore[arg-type]


@dataclass(frozen=True)
class EditsRecord:
    """Content of ``edits.json``.

    Attributes:
        format: version of the file.
        edits: edits in their order; :func:`primaps.classes.legend.legend` validates each.
        tree: digest of the tree that ids refer to; None matches every tree.
    """

    format: Literal[1]
    edits: Annotated[list[Any], Len(0, MAX_EDITS)]
    tree: str | None = None


@dataclass(frozen=True)
class Edits:
    """Edits that were read from a file.

    Attributes:
        edits: edits in their order.
        revision: digest of the content of the file; empty without a file.
    """

    edits: tuple[dict[str, Any], ...] = ()
    revision: str = ""


def tree_digest(tree: Tree) -> str:
    """Return 12 hexadecimal digits that identify a tree."""
    found = hashlib.sha256()
    for _, tensor in sorted(tree.tensors().items()):
        found.update(tensor.numpy().tobytes())
    return found.hexdigest()[:12]


def read_edits(folder: str | Path, tree: Tree) -> Edits:
    """Read ``edits.json`` in the folder of a model; no edits without the file.

    Raises:
        EditError: The file is damaged, of another model, or has an edit that cannot be made.
    """
    path = Path(folder) / EDITS
    try:
        data = read_bytes(path)
        content: EditsRecord = parse_json(data, EditsRecord, str(path))
    except FileNotFoundError:
        return Edits()
    except InputError as error:
        raise EditError(f"{error}; fix the file, or move it away") from None
    expected = tree_digest(tree)
    if content.tree not in (None, expected):
        raise EditError(
            f"{path}: the edits are of tree {content.tree!r}, but this model has tree "
            f"{expected!r}; move the file away, or remove the field tree to keep the edits"
        )
    try:
        legend(tree, content.edits)
    except EditError as error:
        raise EditError(f"{path}: {error}") from None
    return Edits(tuple(content.edits), _revision(data))


def current_revision(folder: str | Path) -> str:
    """Return the revision of the present ``edits.json`` without validating it."""
    path = Path(folder) / EDITS
    return _revision(path.read_bytes()) if path.is_file() else ""


def _revision(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]


def read_legend(folder: str | Path, tree: Tree, classes: int | None = None) -> Legend:
    """Return the classes of the model in a folder after its edits, or those of another cut."""
    return legend(tree, read_edits(folder, tree).edits, classes)


def change_edits(
    folder: str | Path,
    tree: Tree,
    change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]],
    revision: str | None = None,
    note: Callable[[], object] = lambda: None,
) -> Edits:
    """Read, change and write ``edits.json`` under a lock.

    Args:
        change: returns the new edits for the present ones.
        revision: expected revision of the file; with another one, nothing is written.
        note: called when the new edits are valid, before they are written.

    Returns:
        The new content of the file.

    Raises:
        EditError: The file has another revision, is not valid before or after the change, or would
            have more than :data:`MAX_EDITS` edits.

    Examples:
        >>> import tempfile, torch
        >>> tree = Tree(torch.eye(2), torch.tensor([5, 2]), torch.tensor([[0, 1]]),
        ...             torch.tensor([0.1]), classes=2)
        >>> folder = tempfile.mkdtemp()
        >>> done = change_edits(folder, tree, lambda edits: [*edits, {"rename": "1", "to": "sky"}])
        >>> read_legend(folder, tree).names
        ['class 0', 'sky']
    """
    path = Path(folder) / EDITS
    with locked(path):  # not the folder, which `fit` holds
        present = read_edits(folder, tree)
        if revision is not None and revision != present.revision:
            raise EditError(f"{path} was changed by another program; reload it and try again")
        edits = change(list(present.edits))
        if len(edits) > MAX_EDITS:
            raise EditError(
                f"{path} would have {len(edits)} edits, but at most {MAX_EDITS} are possible; undo "
                "some edits"
            )
        try:
            legend(tree, edits)
        except EditError as error:
            appended = edits[: len(present.edits)] == list(present.edits)
            # The number of an edit that was just added means nothing to the user.
            raise EditError(str(error.__cause__ if appended else error)) from None
        note()
        write_json(path, {"format": EDITS_FORMAT, "tree": tree_digest(tree), "edits": edits})
        return Edits(tuple(edits), current_revision(folder))


def _check_edits(folder: Path, tree: Tree, edits: list[dict[str, Any]]) -> None:
    """Check, before anything is written, that an existing ``edits.json`` belongs to the model."""
    if edits or user_work(folder):
        read_edits(folder, tree)


def push_to_hub(
    model: str | Path | Saveable,
    repo_id: str,
    *,
    private: bool = False,
    picture: bool = True,
    scores: str | Path | dict[str, Any] | None = None,
    token: str | None = None,
    endpoint: str | None = None,
) -> str:
    """Upload a model and its model card to the Hugging Face hub in one commit.

    Only the files of the model are uploaded. The folder is not changed.

    Args:
        model: fitted model, or its folder.
        repo_id: ``owner/name``; the repository is created if it does not exist.
        private: create the repository as private.
        picture: upload ``preview.png``, which shows six of the training images.
        scores: result of :func:`primaps.evaluate`, or the file of ``evaluate --json``.
        token: access token; None uses that of ``hf auth login`` or ``HF_TOKEN``.
        endpoint: address of the hub; None uses ``HF_ENDPOINT`` or the public hub.

    Returns:
        Address of the model.

    Raises:
        ModelError: The folder is not a model.
        InputError: The scores are not valid, or the upload fails.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    if not isinstance(model, str | Path):
        with temporary_folder() as temporary:
            model.save_pretrained(temporary)
            return push_to_hub(
                temporary, repo_id, private=private, scores=scores, token=token, endpoint=endpoint
            )
    folder = Path(model)
    metrics = _read_scores(Path(scores)) if isinstance(scores, str | Path) else scores
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ModelError(
                f"{folder} has no {name}; give a folder that `primaps fit --out` wrote"
            )
    names = [*PUBLISHED, *([PREVIEW] if picture else [])]
    present = [name for name in names if (folder / name).is_file()]
    files: dict[str, str | bytes] = {name: str(folder / name) for name in present}
    files["README.md"] = model_card(folder, repo_id, metrics, PREVIEW in present).encode("utf-8")
    try:
        api = HfApi(endpoint=endpoint, token=token)
        address = api.create_repo(repo_id, private=private, exist_ok=True)
        operations = [CommitOperationAdd(name, content) for name, content in files.items()]
        api.create_commit(repo_id, operations, commit_message="Upload a model of primaps")
    except Exception as error:  # of the client, its HTTP library or the socket
        raise InputError(
            f"the upload to {repo_id} failed ({type(error).__name__}: {reason(error)}); check the "
            "id, `hf auth login` and the connection"
        ) from error
    return str(address)


def model_card(
    folder: Path, repo_id: str, scores: dict[str, Any] | None = None, picture: bool = False
) -> str:
    """Return the model card of a saved model: data, classes, scores, options, how to load it.

    Raises:
        ModelError: ``config.json`` is not that of a model.
        InputError: The scores are not valid.
    """
    try:
        record = read_record(folder)
    except (InputError, OSError) as error:
        raise ModelError(f"{folder} is not a model of primaps ({error})") from None
    config, backbone, images = asdict(record.config), record.backbone.name, record.training.images
    names, colors = _names_and_colors(folder, record.config.classes)
    how, taught = "recipe" if config["method"] == "em" else "method", read_taught(folder)
    argument = ", backbone=yours" if backbone.startswith("callable:") else ""
    rows = ["---", "library_name: primaps", "pipeline_tag: image-segmentation", "tags:"]
    tag = "semantic-segmentation" if taught else "unsupervised-semantic-segmentation"
    rows += ["- primaps", f"- {tag}", "---", "", f"# {repo_id}", ""]
    rows += [f"![training images, mask proposals, classes]({PREVIEW})", ""] if picture else []
    origin = (
        f"Unsupervised semantic segmentation with {len(names)} classes, which primaps found in "
        f"{images:,} images without labels ({how} `{config[how]}`)."
    )
    if taught is not None:
        origin = (
            f"Semantic segmentation with {len(names)} classes. primaps found classes in "
            f"{images:,} images without labels ({how} `{config[how]}`); the model was then "
            f"{taught.sentence}."
        )
    rows += [
        f"{origin} The features are those of `{backbone}` at {config.get('size')} px, which is not "
        "part of this repository.",
        "", "## Use", "", "```python", "import primaps", "",
        f'model = primaps.PriMaPsEM.from_pretrained("{repo_id}"{argument})',
        'classes = model.predict(primaps.load_image("image.jpg"))  # (H, W)',
        "```", "", "## Classes", "", "| value | name | color |", "|---|---|---|",
    ]  # fmt: skip
    rows += [
        f"| {k} | {name.replace('|', chr(92) + '|')} | `#{bytes(color).hex()}` |"
        for k, (name, color) in enumerate(zip(names, colors, strict=True))
    ]
    rows += ["", *(_score_rows(scores) if scores is not None else ["Scores: not evaluated.", ""])]
    rows += ["## Options", ""]
    rows += [f"- {k}: `{v}`" for k, v in sorted(config.items()) if k not in record.config.unused]
    rows += [f"- version of {name}: `{value}`" for name, value in record.versions.items()]
    return "\n".join([*rows, ""])


def _names_and_colors(folder: Path, classes: int) -> tuple[list[str], list[list[int]]]:
    summary = read_class_summary(folder)
    if summary is None:
        return [f"class {k}" for k in range(classes)], palette(classes).tolist()
    found = read_legend(folder, summary.tree)
    return found.names, found.colors.tolist()


def _read_scores(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"{path} does not exist; write it with evaluate --json")
    return read_json(path, dict[str, Any])


def _score_rows(scores: dict[str, Any]) -> list[str]:
    try:
        options = ", ".join(f"{name} {value}" for name, value in scores["options"].items())
        ious = [
            f"| {name} | {'-' if value is None else f'{100 * value:.1f}'} |"
            for name, value in scores["iou"].items()
        ]
        text = (
            f"On {scores['images']:,} labeled images ({options}): accuracy "
            f"{100 * scores['accuracy']:.1f} %, mean IoU {100 * scores['mean_iou']:.1f} %."
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InputError(
            "the scores were not written by evaluate; evaluate the model again"
        ) from None
    return ["## Scores", "", text, "", "| class | IoU, % |", "|---|---|", *ious, ""]
