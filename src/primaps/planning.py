"""What a fit will take, before it starts: bytes, memory and time, measured on a few images."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from primaps.config import CacheContent, CachedContent, Config
from primaps.data import ImageCollection, ImageFile, image_files, read
from primaps.data.stream import content_digest
from primaps.em.em import fit_em
from primaps.em.fit import resolve_cache_content, schedule
from primaps.em.kmeans import TOKENS_PER_STEP, Prototypes, fit_kmeans, fit_restarts
from primaps.em.orthogonal import restart_seeds
from primaps.features.extract import BACKBONE_BATCH, RESTART_IMAGES, extract, restart_sample
from primaps.features.feature_cache import FeatureCache, cache_bytes
from primaps.features.training_data import sample_tokens
from primaps.model import PriMaPsEM
from primaps.utils.errors import InputError
from primaps.utils.parallel import lane_count
from primaps.utils.progress import ProgressCallback, silent
from primaps.utils.validation import validated

MANY = 10**6
"""Images that a plan says the bytes of beside those that there are."""


@dataclass(frozen=True)
class Plan:
    """What a fit will take.

    Attributes:
        images: how many there are.
        missing: those whose features or masks are not kept yet.
        init_steps: steps of k-means, of all its starts.
        steps: steps of EM.
        stored: bytes of features and masks.
        folder: where they are kept; None is memory.
        free: bytes that are free there; None for memory.
        seconds: by stage, estimated.
        costs: bytes of each image by what may be kept, and beside that of each that k-means starts
            look at.
        collection: how many images there are, if ``images`` is a sample of them.
    """

    images: int
    missing: int
    init_steps: int
    steps: int
    stored: int
    folder: Path | None
    free: int | None
    seconds: dict[str, float]
    costs: dict[CachedContent, tuple[int, int]] = field(default_factory=dict)
    collection: int = 0

    def bytes_of(self, kept: CachedContent, images: int) -> int:
        """What a number of images takes."""
        each, start = self.costs[kept]
        return images * each + min(images, RESTART_IMAGES) * start

    def lines(self) -> list[str]:
        """The plan in words."""
        size = f"{gigabytes(self.stored)} of features and masks"
        place = "in memory"
        if self.folder:
            place = f"in {self.folder} ({(self.free or 0) / 1e9:.0f} GB free), memory-mapped"
        stages = ", ".join(f"{name} {duration(s)}" for name, s in self.seconds.items())
        numbers = (self.images, self.collection if self.collection > self.images else MANY)
        choices = []
        for kept in self.costs:
            sizes = {n: gigabytes(self.bytes_of(kept, n)) for n in sorted(numbers)}
            each = ", ".join(f"{size} for {n:,} images" for n, size in sizes.items())
            choices.append(f"--cache-content {kept}: {each}")
        return [
            f"{self.images} images, {self.missing} of them to be computed",
            f"{size} {place}",
            *choices,
            f"k-means {self.init_steps} steps" + (f", EM {self.steps} steps" if self.steps else ""),
            f"about {duration(sum(self.seconds.values()))}: {stages}",
        ]


@validated
def plan(
    model: PriMaPsEM,
    images: ImageCollection,
    cache: str | Path | None = "auto",
    cache_content: CacheContent = "auto",
    progress: ProgressCallback = silent,
) -> Plan:
    """Estimate what ``model.fit(images, cache=cache, cache_content=cache_content)`` will take.

    Times are measured on up to eight of the images for each core: reading, backbone, masks and
    steps of training, each the second time that it runs.

    Raises:
        ImageError: none of these could be read.
        InputError: the model is a linear probe.

    Examples:
        >>> from PIL import Image
        >>> images = [Image.effect_noise((32, 32), 90) for _ in range(3)]
        >>> pool = torch.nn.AvgPool2d(8)
        >>> model = PriMaPsEM(2, backbone=pool, patch_size=8, size=32, mask_crf=False, device="cpu")
        >>> plan(model, images).lines()[0]
        '3 images, 3 of them to be computed'
    """
    config = model.config
    if config.method == "probe":
        raise InputError("a plan is of PriMaPs-EM or k-means, not of a linear probe")
    files = image_files(images)
    em = config.method == "em"
    views = config.views if em else 0
    maker = model.mask_maker() if em else None
    projected = model.projection is not None
    kept = resolve_cache_content(cache_content, config, len(files), projected)
    contents: dict[str, str] = {}
    for done, (file, content) in enumerate(read(files, content_digest, _ignore), 1):
        contents[file.key] = content
        progress("reading", done, len(files), {})
    whole = restart_sample([*contents.values()]) if kept == "masks" else None
    stores = FeatureCache(model.network, model.size, len(files), views, maker, cache, whole)
    missing = len(stores.missing(list(contents.values())))
    few = min(BACKBONE_BATCH * lane_count(model.backbone.device), len(files))
    sample = [files[i * len(files) // few] for i in range(few)]

    def features(with_masks: bool) -> float:
        began = time.monotonic()
        given = maker if with_masks else None
        extract(sample, model.network, model.size, masks=given, cache=None, log=_ignore)
        return (time.monotonic() - began) / len(sample)

    features(em)  # compiles and allocates
    forwards = features(False)  # image and flipped image
    masks = features(True) - forwards if em else 0.0
    steps = schedule(config, len(files), model.clusters)
    kmeans, step = _step_seconds(model, sample)
    seconds = {"features": missing * forwards * (1 + (0 if views == "fresh" else views) / 2)}
    if em:
        seconds["masks"] = missing * max(masks, 0.0)
    seconds["k-means"] = steps.init_steps * kmeans
    if config.runs_em:
        fresh = forwards / 2 * min(config.batch_size, len(files)) if views == "fresh" else 0.0
        seconds["EM"] = steps.steps * (step + fresh)
    existing = stores.folder
    while existing is not None and not existing.exists():
        existing = existing.parent
    shape = stores.shape
    costs: dict[CachedContent, tuple[int, int]] = {
        "features": (cache_bytes(shape, model.size, 1, views, em), 0)
    }
    if config.orthogonal and not projected:
        costs["masks"] = (
            cache_bytes(shape, model.size, 1, full=0),
            cache_bytes(shape, model.size, 0, full=1),
        )
    expected = Plan(
        images=len(files),
        missing=missing,
        init_steps=steps.all_init_steps,
        steps=steps.steps,
        stored=0,
        folder=stores.folder,
        free=shutil.disk_usage(existing).free if existing else None,
        seconds=seconds,
        costs=costs,
    )
    return replace(expected, stored=expected.bytes_of(kept, len(files)))


def _step_seconds(model: PriMaPsEM, sample: Sequence[ImageFile]) -> tuple[float, float]:
    """Seconds of a step of k-means and of EM with the batch size of the model."""
    config: Config = model.config
    extracted = extract(
        sample,
        model.network,
        model.size,
        masks=model.mask_maker() if config.runs_em else None,
        cache=None,
        log=_ignore,
    )
    scale = config.batch_size / len(extracted.keys)
    whole = replace(config, batch_size=len(extracted.keys))
    start = Prototypes(torch.randn(config.classes, extracted.views.clean.shape[1]))
    start.to(model.backbone.device)

    def timed(fit: Callable[[], object]) -> float:
        fit()
        began = time.monotonic()
        fit()
        return (time.monotonic() - began) * scale

    views = extracted.views
    if config.orthogonal:
        seen, seeds = sample_tokens(views, TOKENS_PER_STEP, config.seed), restart_seeds(config.seed)
        kmeans = timed(lambda: fit_restarts(seen, start, seeds, 1, whole))
    else:
        kmeans = timed(lambda: fit_kmeans(views, start, 1, whole))
    masks = extracted.masks
    if masks is None:
        return kmeans, 0.0
    return kmeans, timed(lambda: fit_em(extracted.views, masks, start, 1, whole))


def _ignore(sentence: str) -> None:
    """The fit itself reports what cannot be read."""


def gigabytes(size: float) -> str:
    """Bytes in words.

    Examples:
        >>> gigabytes(4.2e6), gigabytes(9.162e11)
        ('0.004 GB', '916 GB')
    """
    return f"{size / 1e9:.3f} GB" if size < 1e8 else f"{float(f'{size / 1e9:.3g}'):,g} GB"


def duration(seconds: float) -> str:
    """A length of time in words.

    Examples:
        >>> duration(40), duration(4000), duration(40000), duration(1e6)
        ('40 s', '67 min', '11.1 h', '11.6 days')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"
