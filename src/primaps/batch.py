"""Mask proposals and label maps of image collections, written to a folder.

Reading, computing and writing overlap. Images of the same scaled size are computed together. A
folder of results is resumable: results of the same image and options are not computed again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import torch
from annotated_types import Interval
from jaxtyping import Integer, UInt8
from PIL import Image
from torch import Tensor

from primaps.backbones.backbone import Backbone, image_features, image_side
from primaps.backbones.load import load_backbone
from primaps.classes.legend import HIDDEN
from primaps.config import Depth, InferenceOptions, Size, Threshold
from primaps.data import (
    ImageError,
    ImageFile,
    LogCallback,
    at_depth,
    find_images,
    fit_to_patches,
    pixel_digest,
    read,
    to_tensor,
)
from primaps.data.collection import local_files
from primaps.data.stream import in_memory
from primaps.exchange.classes import Classes
from primaps.geometry.vectors import Georeference
from primaps.inference import ImageSize
from primaps.model import PriMaPsEM
from primaps.pictures.explain import steps_picture, threshold_picture
from primaps.pictures.overlays import overlay, overlay_masks, with_legend
from primaps.proposals.image_size import mask_probabilities
from primaps.results import OutputFolder
from primaps.scenes.predict import predict_image, shown_classes
from primaps.scenes.readers import georeferences
from primaps.scenes.writer import write_geotiff
from primaps.teach.annotations import Annotation
from primaps.teach.find import Found
from primaps.utils.bilinear import largest_channel
from primaps.utils.files import fitting_name, save_image, write_json
from primaps.utils.parallel import lanes, overlapped
from primaps.utils.progress import ProgressCallback, silent
from primaps.utils.shards import read_shard
from primaps.utils.validation import validated
from primaps.version import VERSION

logger = logging.getLogger("primaps")
T = TypeVar("T")
Inputs = str | Path | Sequence[str | Path]
DrawOverlay = Callable[[Image.Image, Integer[np.ndarray, "h w"]], Image.Image]
"""Draw a label map over its image."""
SUFFIXES = (".png", ".overlay.jpg")
"""File name suffixes of the label map and the overlay of an image. An overlay whose name would have
more than 255 bytes gets a shorter one, see :func:`primaps.utils.files.fitting_name`."""
GEOTIFF = ".tif"
"""Suffix of the label map of an image with a georeference."""
FOUND_SUFFIXES = (*SUFFIXES, ".scores.tif")
"""File name suffixes of what :func:`find_files` writes for an image."""
FOUND_COLORS = np.array([[255, 230, 0], [0, 0, 0]], np.uint8)
"""Color of what was found; the other one is not seen."""
OVERLAY_SIDE = 1600
"""Longest side of overlays in pixels."""
MAX_PENDING = 48
"""Maximum number of images in memory that wait for others of the same scaled size."""
EXPLANATIONS = ("steps", "thresholds")


@dataclass(frozen=True)
class Written:
    """Results of :func:`propose_files` or :func:`predict_files`.

    Attributes:
        written: label maps written by this call.
        kept: label maps written by an earlier call with the same options.
        problems: one sentence per image that was skipped.
    """

    written: list[Path]
    kept: list[Path]
    problems: list[str]


@dataclass(frozen=True)
class Labeler:
    """A function from scaled images to label maps, and how to scale images for it.

    Attributes:
        label: maps 8-bit images (B, 3, H, W) and the B original sizes to B label maps of these
            sizes.
        size: shorter side of scaled images in pixels; None does not scale.
        patch_size: sides of scaled images are multiples of it.
        device: device of the network.
        depth: bits of the values of images of more than 8 bits in the fit; None without a fit to
            such images.
    """

    label: Callable[[Tensor, Sequence[ImageSize]], list[Tensor]]
    size: int | None
    patch_size: int
    device: torch.device
    depth: int | None = None

    @property
    def batch_size(self) -> int:
        """Number of images that are computed together.

        Two fit into the cache of a CPU core, which is fastest there.
        """
        if self.size is None:
            return 1
        return 2 if self.device.type == "cpu" else 32

    def scale(self, image: Image.Image) -> UInt8[Tensor, "3 h w"]:
        """Scale an image as ``label`` expects it."""
        scaled = image if self.size is None else fit_to_patches(image, self.size, self.patch_size)
        return to_tensor(scaled)

    def __call__(
        self, scaled: Sequence[UInt8[Tensor, "3 h w"]], sizes: Sequence[ImageSize]
    ) -> list[Integer[Tensor, "H W"]]:
        """Compute label maps, on the CPU, of scaled images that all have the same size."""
        return [labels.cpu() for labels in self.label(torch.stack(list(scaled)), sizes)]


def propose_labeler(
    network: Backbone, threshold: float, mask_crf: bool, size: int | None = None
) -> Labeler:
    """Return the labeler of :func:`propose_files`: masks 1..Z, 0 = ignore."""
    crf: Literal["dense"] | None = "dense" if mask_crf else None

    def label(images: Tensor, sizes: Sequence[ImageSize]) -> list[Tensor]:
        images = images.to(network.device)
        features = image_features(network, images)
        found = mask_probabilities(features, images, crf=crf, threshold=threshold)
        return [
            consecutive(largest_channel(probabilities, original))
            for probabilities, original in zip(found, sizes, strict=True)
        ]

    return Labeler(label, image_side(network, size), network.patch_size, network.device)


def predict_labeler(model: PriMaPsEM, options: InferenceOptions) -> Labeler:
    """Return the labeler of :func:`predict_files`: label maps as :meth:`PriMaPsEM.predict`."""
    segmenter = model.segmenter
    options = segmenter.resolve(options)

    def label(images: Tensor, sizes: Sequence[ImageSize]) -> list[Tensor]:
        return [one.labels for one in segmenter.segment_batch(images, sizes, options)]

    encoder = segmenter.encoder
    return Labeler(label, options.size, encoder.patch_size, encoder.device, model.depth_)


def tiled_labeler(model: PriMaPsEM, options: dict[str, Any]) -> Labeler:
    """Return a labeler that processes unscaled images in overlapping tiles."""

    def label(images: Tensor, sizes: Sequence[ImageSize]) -> list[Tensor]:
        unscaled = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
        return [torch.from_numpy(predict_image(model, image, **options)) for image in unscaled]

    return Labeler(label, None, model.network.patch_size, model.network.device)


@validated
def propose_files(
    inputs: Inputs,
    out: str | Path,
    *,
    backbone: str | Path | Backbone = "dinov2-vits14",
    threshold: Threshold = 0.4,
    mask_crf: bool = True,
    size: Size | None = None,
    depth: Depth | None = None,
    device: str | torch.device = "auto",
    engine: str | None = None,
    shard: str | None = None,
    progress: ProgressCallback = silent,
    log: LogCallback = logger.warning,
) -> Written:
    """Write mask proposals of images: ``primaps propose``.

    For each image ``out/<relative path>.png`` holds the masks at the size of the image: 0 =
    ignore, 1..Z in the order of discovery, as 8 bits, or 16 bits if Z > 255. ``.overlay.jpg``
    beside it shows them. An image with a georeference gets a GeoTIFF, ``.tif``, that keeps it.
    Results of an earlier call with the same options are kept.

    Args:
        inputs: files, folders (searched recursively), globs, tar files or URLs, see
            :func:`primaps.find_images`.
        out: folder to write to.
        backbone: see :func:`primaps.load_backbone`.
        threshold: psi of Eq. 6, in [0, 1).
        mask_crf: refine the masks by the dense CRF.
        size: shorter side of the scaled images in pixels; None is the multiple of the patch size
            nearest to 320.
        depth: bits of the values of images of more than 8 bits; None decides it from the images,
            see :func:`primaps.data.at_depth`.
        device: ``auto``, ``cpu``, ``cuda``, ...
        engine: see :func:`primaps.load_backbone`.
        shard: ``I/N`` processes the I-th of N shares of the images; processes may write to the
            same folder. ``auto`` reads I and N from torchrun or a Slurm array. None processes all.
        progress: progress callback.
        log: called with one sentence about each image that is skipped.

    Raises:
        NotFoundError: no image was found.
        ImageError: no image could be read.
        InputError: the shard does not exist.
        OutputError: a file that primaps did not write would be replaced.
        WeightsError: the backbone has no weights on this machine.
    """
    network = load_backbone(backbone, device, engine=engine)
    side, out = image_side(network, size), Path(out).expanduser()
    return _write_maps(
        "proposals",
        at_depth(find_images(inputs, exclude=out, log=log), depth),
        out,
        propose_labeler(network, threshold, mask_crf, side),
        overlay_masks,
        propose_manifest(network, threshold, mask_crf, side),
        shard,
        progress,
        log,
    )


@validated
def predict_files(
    model: PriMaPsEM,
    inputs: Inputs,
    out: str | Path,
    *,
    names: Sequence[str] | None = None,
    tiles: Mapping[str, Any] | None = None,
    shard: str | None = None,
    progress: ProgressCallback = silent,
    log: LogCallback = logger.warning,
    **options: Any,
) -> Written:
    """Write label maps of images by a fitted model: ``primaps predict``.

    For each image ``out/<relative path>.png`` holds the class of every pixel at the size of the
    image: 0..K-1 as 8 bits, 255 for hidden classes. ``.overlay.jpg`` beside it shows them with a
    legend. An image with a georeference gets a GeoTIFF, ``.tif``, that keeps it. Results of an
    earlier call with the same options are kept.

    Args:
        model: fitted model.
        inputs, out, shard, progress, log: as in :func:`propose_files`.
        names: names of the K classes for the legend; None takes those of the model.
        tiles: fields of :class:`primaps.scenes.tiling.TilingOptions`. Images are processed in
            overlapping tiles of side ``size`` instead of being scaled.
        **options: fields of :class:`primaps.config.InferenceOptions`.

    Raises:
        NotFoundError, ImageError, OutputError: as :func:`propose_files`.
        InputError: an option is out of range.
        ModelError: the model is not fitted.
    """
    chosen = model.segmenter.resolve(InferenceOptions(**options))
    titles, colors = shown_classes(model, names)
    manifest: dict[str, Any] = {
        "primaps": VERSION,
        "command": "predict",
        "model": model.prediction_digest(),
        "names": titles,
        "colors": colors.tolist(),
        **asdict(chosen),
    }
    if tiles is None:
        labeler = predict_labeler(model, chosen)
    else:
        manifest["tiles"] = dict(tiles)
        labeler = tiled_labeler(model, {**asdict(chosen), **tiles})
    out = Path(out).expanduser()
    files = at_depth(find_images(inputs, exclude=out, log=log), model.depth_)
    draw = class_overlay(model, titles)
    return _write_maps(
        "prediction", files, out, labeler, draw, manifest, shard, progress, log, colors
    )


@validated
def explain_files(
    inputs: Inputs,
    out: str | Path,
    *,
    backbone: Backbone,
    threshold: Threshold = 0.4,
    mask_crf: bool = True,
    size: Size | None = None,
    depth: Depth | None = None,
    shard: str | None = None,
    progress: ProgressCallback = silent,
    log: LogCallback = logger.warning,
) -> list[Path]:
    """Write figures that explain the masks of each image: ``primaps propose --explain``.

    ``<relative path>.steps.jpg`` shows the decomposition mask by mask,
    ``<relative path>.thresholds.jpg`` the masks at several thresholds.

    Args:
        inputs, out, size, depth, shard, progress, log: as in :func:`propose_files`.
        backbone: loaded backbone.
        threshold: psi of Eq. 6 for the steps.
        mask_crf: refine the masks of the threshold strip by the dense CRF.

    Raises:
        NotFoundError: no image was found.
    """
    files: Sequence[ImageFile] = at_depth(find_images(inputs, exclude=out, log=log), depth)
    written = []
    crf: Literal["dense"] | None = "dense" if mask_crf else None
    side, out = image_side(backbone, size), Path(out).expanduser()
    output = OutputFolder(
        out,
        propose_manifest(backbone, threshold, mask_crf, side),
        local_files(files),
        [fitting_name(file.key, f".{kind}.jpg") for file in files for kind in EXPLANATIONS],
    )
    files = read_shard(shard).of(files)

    def load(file: ImageFile) -> tuple[str, Image.Image]:
        file = in_memory(file)
        return pixel_digest(file), file.load()

    for done, (file, (digest, image)) in enumerate(read(files, load, log), 1):
        scaled = fit_to_patches(image, side, backbone.patch_size)
        pixels = to_tensor(scaled).to(backbone.device)
        features = image_features(backbone, pixels[None])[0]
        figures = (
            steps_picture(scaled, features, threshold),
            threshold_picture(scaled, features, pixels, crf),
        )
        names = [fitting_name(file.key, f".{kind}.jpg") for kind in EXPLANATIONS]
        saves = [partial(save_image, figure, quality=92) for figure in figures]
        output.write(digest, dict(zip(names, saves, strict=True)))
        written += [out / name for name in names]
        progress("explanations", done, len(files), {})
    return written


def propose_manifest(
    network: Backbone, threshold: float, mask_crf: bool, size: int
) -> dict[str, Any]:
    """Return everything that the proposals of an image depend on, as JSON."""
    manifest: dict[str, Any] = {
        "primaps": VERSION,
        "command": "propose",
        "backbone": network.digest or network.name,
        "threshold": threshold,
        "mask_crf": mask_crf,
        "size": size,
    }
    return manifest | (
        {} if network.arithmetic == "float32" else {"arithmetic": network.arithmetic}
    )


def consecutive(masks: Integer[Tensor, "h w"]) -> Integer[Tensor, "h w"]:
    """Renumber masks 1..Z without the gaps left by masks that the CRF removes; 0 stays 0.

    Examples:
        >>> consecutive(torch.tensor([[0, 5], [2, 5]])).tolist()
        [[0, 2], [1, 2]]
    """
    present = torch.zeros(int(masks.max()) + 1, dtype=masks.dtype, device=masks.device)
    present[masks.unique().long()] = 1
    present[0] = 0
    return (present.cumsum(0) * present)[masks.long()]


def class_overlay(model: PriMaPsEM, titles: Sequence[str]) -> DrawOverlay:
    """Return a function that draws class colors over an image, above a legend with their shares."""
    _, colors = shown_classes(model, titles)
    classes = len(colors)
    with_hidden = np.concatenate([colors, np.zeros_like(colors[:1])])
    hides = model.legend_ is not None and classes <= HIDDEN

    def draw(image: Image.Image, labels: Integer[np.ndarray, "h w"]) -> Image.Image:
        labels = np.where(labels == HIDDEN, classes, labels) if hides else labels
        share = np.bincount(labels.flatten(), minlength=classes) / labels.size
        listed = [k for k in np.argsort(-share[:classes]) if share[k] >= 0.001]
        legend = [f"{titles[k]} {share[k]:.0%}" for k in listed]
        return with_legend(
            overlay(image, labels, with_hidden, ignore=classes), legend, colors[listed]
        )

    return draw


def group_by_key(
    items: Iterable[T], key: Callable[[T], Hashable], size: int, max_pending: int
) -> Iterator[list[T]]:
    """Yield lists of up to ``size`` items with the same key.

    An item is held until ``size`` items have its key. When ``max_pending`` items are held, the
    longest list is yielded as it is, which bounds memory.

    Examples:
        >>> list(group_by_key("abababcb", str.lower, 2, 4))
        [['a', 'a'], ['b', 'b'], ['b', 'b'], ['a'], ['c']]
        >>> list(group_by_key("abc", str.lower, 2, 2))
        [['a'], ['b'], ['c']]
    """
    groups: dict[Hashable, list[T]] = {}
    for item in items:
        group = groups.setdefault(key(item), [])
        group.append(item)
        if len(group) == size or sum(map(len, groups.values())) >= max_pending:
            longest = max(groups, key=lambda one: len(groups[one]))
            yield groups.pop(longest)
    yield from groups.values()


@dataclass(frozen=True)
class _Loaded:
    """An image that waits for its batch.

    Attributes:
        key: name of its results.
        digest: digest of its file.
        scaled: image as the network takes it.
        shown: image as its overlay shows it.
        size: height and width of the image.
    """

    key: str
    digest: str
    scaled: Tensor
    shown: Image.Image
    size: ImageSize


def find_files(
    inputs: Inputs,
    out: str | Path,
    model: PriMaPsEM,
    region: Annotation,
    *,
    threshold: Annotated[float, Interval(ge=0, le=1)] = 0.5,
    cache: str | Path | None = "auto",
    progress: ProgressCallback = silent,
    log: LogCallback = logger.warning,
) -> Found:
    """Find everything that looks like a region of one image: ``primaps find``.

    For each image, ``<relative path>.png`` has the value 0 where it was found and 255 elsewhere,
    ``<relative path>.scores.tif`` the score of every pixel times 255, and
    ``<relative path>.overlay.jpg`` shows what was found.

    Args:
        inputs: files, folders and globs, with the image of the region.
        out: output folder.
        model: fitted model, whose features are compared.
        region: the region, with the name of its class.
        threshold: minimum score of a pixel.
        cache: folder to cache features in, as in :meth:`PriMaPsEM.fit`.
        progress: progress callback.
        log: called with one sentence about each image that is skipped.

    Returns:
        Scores of all images.

    Raises:
        NotFoundError: no image was found.
        InputError: the region does not fit its image.
        OutputError: ``out`` has other files under the same names.
    """
    out = Path(out).expanduser()
    files = find_images(inputs, exclude=out, log=log)
    names = {file.key: [f"{file.key}{suffix}" for suffix in FOUND_SUFFIXES] for file in files}
    manifest = {
        "primaps": VERSION,
        "command": "find",
        "names": [region.name],
        "region": json.loads(region.to_json()) | {"time": ""},
        "threshold": threshold,
        "model": model.prediction_digest(),
    }
    all_names = [name for own in names.values() for name in own]
    output = OutputFolder(out, manifest, local_files(files), all_names)
    found = model.find(files, region, cache=cache, progress=progress, log=log)
    written = [file for file in at_depth(files, model.depth_) if file.key in found.maps]
    content = Classes((found.name,)).as_json()
    for done, file in enumerate(written, start=1):
        digest = pixel_digest(file)
        if not output.finished(digest, names[file.key]):
            scores = found.scores(file.key)
            labels = np.where(scores >= threshold, 0, HIDDEN)
            image = _shrink(file.load())
            small = Image.fromarray(narrow(labels)).resize(image.size, Image.Resampling.NEAREST)
            drawn = overlay(image, np.minimum(np.asarray(small), 1), FOUND_COLORS, ignore=1)
            gray = Image.fromarray((255 * scores.clip(0, 1)).round().astype(np.uint8))
            saves: list[Callable[[Path], Any]] = [
                partial(save_image, Image.fromarray(narrow(labels))),
                partial(save_image, drawn, quality=90),
                partial(save_image, gray, compression="tiff_deflate"),
            ]
            output.write(digest, dict(zip(names[file.key], saves, strict=True)))
        progress("label maps", done, len(written), {})
    write_json(out / "classes.json", content)
    return found


def _write_maps(
    stage: str,
    files: Sequence[ImageFile],
    out: Path,
    labeler: Labeler,
    draw: DrawOverlay,
    manifest: dict[str, Any],
    shard: str | None,
    progress: ProgressCallback,
    log: LogCallback,
    colors: UInt8[np.ndarray, "k 3"] | None = None,
) -> Written:
    """Write the label map and the overlay of every image that has none with this manifest yet."""
    share = read_shard(shard)
    places = georeferences(files, log)
    names = {file.key: result_names(file.key, file.key in places) for file in files}
    all_names = [name for pair in names.values() for name in pair]
    output = OutputFolder(out, manifest, local_files(files), all_names)
    files = share.of(files)
    written, kept, problems = set[str](), set[str](), list[str]()

    def skip(sentence: str) -> None:
        problems.append(sentence)
        log(sentence)

    def report() -> None:
        progress(stage, len(written) + len(kept) + len(problems), len(files), {})

    def load(file: ImageFile) -> _Loaded | None:
        file = in_memory(file)
        digest = pixel_digest(file)
        if output.finished(digest, names[file.key]):
            return None
        image = file.load()
        size = (image.height, image.width)
        return _Loaded(file.key, digest, labeler.scale(image), _shrink(image), size)

    def pending() -> Iterator[_Loaded]:
        for file, loaded in read(files, load, skip, ahead=16):
            if loaded is None:
                kept.add(file.key)
                report()
            else:
                yield loaded

    with lanes(labeler.device) as own:

        def work(batch: list[_Loaded]) -> list[str]:
            with own.turn:
                maps = labeler([one.scaled for one in batch], [one.size for one in batch])
            for one, labels in zip(batch, maps, strict=True):
                values = narrow(labels.numpy())
                save = _label_writer(values, places.get(one.key), colors)
                _write(output, one, values, draw, {names[one.key][0]: save})
            return [one.key for one in batch]

        batches = group_by_key(
            pending(), lambda one: one.scaled.shape, labeler.batch_size, MAX_PENDING
        )
        for keys in overlapped(batches, work, own):
            written |= set(keys)
            report()
    if problems:
        progress(stage, len(files), len(files), {})
    if files and not written and not kept:
        raise ImageError(f"none of the {len(files)} images could be read; first: {problems[0]}")
    return Written(
        [out / names[file.key][0] for file in files if file.key in written],
        [out / names[file.key][0] for file in files if file.key in kept],
        problems,
    )


def result_names(key: str, placed: bool) -> list[str]:
    """Return the names of the label map and the overlay of an image.

    Args:
        placed: whether the label map gets the georeference of the image.
    """
    return [f"{key}{GEOTIFF if placed else SUFFIXES[0]}", fitting_name(key, SUFFIXES[1])]


def _shrink(image: Image.Image) -> Image.Image:
    scale = min(1.0, OVERLAY_SIDE / max(image.size))
    if scale == 1:
        return image
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))


def _label_writer(
    values: Integer[np.ndarray, "h w"],
    place: Georeference | None,
    colors: UInt8[np.ndarray, "k 3"] | None,
) -> Callable[[Path], Any]:
    """Return the function that writes a label map: a GeoTIFF if the image has a georeference."""
    if place is None:
        return partial(save_image, Image.fromarray(values))
    return partial(write_geotiff, values=values, place=place, colors=colors)


def _write(
    output: OutputFolder,
    one: _Loaded,
    values: Integer[np.ndarray, "h w"],
    draw: DrawOverlay,
    files: dict[str, Callable[[Path], Any]],
) -> None:
    """Write a label map, which ``files`` does, after its overlay."""
    small = Image.fromarray(values).resize(one.shown.size, Image.Resampling.NEAREST)
    drawn = draw(one.shown, np.asarray(small))
    overlay_name = fitting_name(one.key, SUFFIXES[1])
    output.write(one.digest, {overlay_name: partial(save_image, drawn, quality=90), **files})


def narrow(labels: Integer[np.ndarray, "h w"]) -> Integer[np.ndarray, "h w"]:
    """Convert a label map to 8 bits, or to 16 bits if a label exceeds 255."""
    return labels.astype(np.uint8 if labels.max() < 256 else np.uint16)
