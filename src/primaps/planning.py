"""Estimate of the time, memory and disk space of a fit, measured on a few images."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from primaps.config import CacheContent, CachedContent, Config
from primaps.data import ImageCollection, ImageFile, at_depth, image_files, pixel_digest, read
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

LARGE_COLLECTION = 10**6
"""Number of images for which a plan states the size of the cache as well."""


@dataclass(frozen=True)
class Plan:
    """Expected time, memory and disk space of a fit.

    Attributes:
        images: number of images.
        missing: number of images whose features or masks are not cached yet.
        init_steps: k-means steps of all restarts.
        steps: EM steps.
        stored: size of features and masks in bytes.
        folder: folder of the cache; None for memory.
        free: free bytes in ``folder``; None for memory.
        seconds: stage to its expected duration.
        costs: what is cached to its size in bytes, per image and per image of the k-means restarts.
        collection: number of images in the collection, if ``images`` is a sample of it.
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

    def bytes_of(self, content: CachedContent, images: int) -> int:
        """Return the size of the cache in bytes.

        Args:
            content: what is cached of each image.
            images: number of images.
        """
        per_image, per_restart_image = self.costs[content]
        return images * per_image + min(images, RESTART_IMAGES) * per_restart_image

    def lines(self) -> list[str]:
        """Return the plan as lines of text."""
        place = "in memory"
        if self.folder:
            place = f"in {self.folder} ({(self.free or 0) / 1e9:.0f} GB free), memory-mapped"
        other = self.collection if self.collection > self.images else LARGE_COLLECTION
        choices = []
        for content in self.costs:
            sizes = ", ".join(
                f"{gigabytes(self.bytes_of(content, n))} for {n:,} images"
                for n in sorted((self.images, other))
            )
            choices.append(f"--cache-content {content}: {sizes}")
        stages = ", ".join(f"{name} {duration(s)}" for name, s in self.seconds.items())
        return [
            f"{self.images} images, {self.missing} of them not cached yet",
            f"{gigabytes(self.stored)} of features and masks {place}",
            *choices,
            f"{self.init_steps} k-means steps" + (f", {self.steps} EM steps" if self.steps else ""),
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
    """Estimate the cost of ``model.fit(images, cache=cache, cache_content=cache_content)``.

    Durations are measured on up to eight images per core: backbone, masks and training steps, each
    in its second run.

    Args:
        model: model to fit; not a linear probe.
        images: files, folders, globs or images in memory.
        cache: folder of the cache, ``"auto"`` for the default, or None for memory.
        cache_content: what is cached of each image, see :meth:`primaps.PriMaPsEM.fit`.
        progress: progress callback.

    Raises:
        ImageError: none of the images can be read.
        InputError: the model is a linear probe.

    Examples:
        >>> from PIL import Image
        >>> images = [Image.effect_noise((32, 32), 90) for _ in range(3)]
        >>> pool = torch.nn.AvgPool2d(8)
        >>> model = PriMaPsEM(2, backbone=pool, patch_size=8, size=32, mask_crf=False, device="cpu")
        >>> plan(model, images).lines()[0]
        '3 images, 3 of them not cached yet'
    """
    config = model.config
    if config.method == "probe":
        raise InputError("a plan is available for the methods em and kmeans, not for probe")
    files = at_depth(image_files(images), config.depth)
    em = config.method == "em"
    views = config.views if em else 0
    projected = model.projection is not None
    content = resolve_cache_content(cache_content, config, len(files), projected)
    digests: dict[str, str] = {}
    for done, (file, digest) in enumerate(read(files, pixel_digest, _ignore), 1):
        digests[file.key] = digest
        progress("reading", done, len(files), {})
    full = restart_sample([*digests.values()]) if content == "masks" else None
    maker = model.mask_maker() if em else None
    stored = FeatureCache(model.network, model.size, len(files), views, maker, cache, full)
    missing = len(stored.missing(list(digests.values())))
    costs: dict[CachedContent, tuple[int, int]] = {
        "features": (cache_bytes(stored.shape, model.size, 1, views, em), 0)
    }
    if config.orthogonal and not projected:
        costs["masks"] = (
            cache_bytes(stored.shape, model.size, 1, full=0),
            cache_bytes(stored.shape, model.size, 0, full=1),
        )
    steps = schedule(config, len(files), model.clusters)
    expected = Plan(
        images=len(files),
        missing=missing,
        init_steps=steps.all_init_steps,
        steps=steps.steps,
        stored=0,
        folder=stored.folder,
        free=_free_bytes(stored.folder),
        seconds=_stage_seconds(model, files, missing, steps.init_steps, steps.steps),
        costs=costs,
    )
    return replace(expected, stored=expected.bytes_of(content, len(files)))


def _free_bytes(folder: Path | None) -> int | None:
    """Return the free bytes of the disk that a folder is or will be on."""
    while folder is not None and not folder.exists():
        folder = folder.parent
    return None if folder is None else shutil.disk_usage(folder).free


def _stage_seconds(
    model: PriMaPsEM, files: Sequence[ImageFile], missing: int, init_steps: int, steps: int
) -> dict[str, float]:
    """Measure a few images and return the expected duration of each stage in seconds."""
    config: Config = model.config
    em = config.method == "em"
    views = config.views if em else 0
    few = min(BACKBONE_BATCH * lane_count(model.backbone.device), len(files))
    sample = [files[i * len(files) // few] for i in range(few)]

    def seconds_per_image(with_masks: bool) -> float:
        maker = model.mask_maker() if with_masks else None
        began = time.monotonic()
        extract(sample, model.network, model.size, masks=maker, cache=None, log=_ignore)
        return (time.monotonic() - began) / len(sample)

    seconds_per_image(em)  # warm-up: compiles and allocates
    features = seconds_per_image(False)  # of an image and its flip
    masks = seconds_per_image(True) - features if em else 0.0
    kmeans_step, em_step = _step_seconds(model, sample)
    seconds = {"features": missing * features * (1 + (0 if views == "fresh" else views) / 2)}
    if em:
        seconds["masks"] = missing * max(masks, 0.0)
    seconds["k-means"] = init_steps * kmeans_step
    if config.runs_em:
        fresh = features / 2 * min(config.batch_size, len(files)) if views == "fresh" else 0.0
        seconds["EM"] = steps * (em_step + fresh)
    return seconds


def _step_seconds(model: PriMaPsEM, sample: Sequence[ImageFile]) -> tuple[float, float]:
    """Measure the duration of a k-means step and of an EM step in seconds.

    The steps run on a batch of ``sample`` and are scaled to the batch size of the model.
    """
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
    one_batch = replace(config, batch_size=len(extracted.keys))
    prototypes = Prototypes(torch.randn(config.classes, extracted.views.clean.shape[1]))
    prototypes.to(model.backbone.device)

    def timed(step: Callable[[], object]) -> float:
        step()
        began = time.monotonic()
        step()
        return (time.monotonic() - began) * scale

    views, masks = extracted.views, extracted.masks
    if config.orthogonal:
        tokens = sample_tokens(views, TOKENS_PER_STEP, config.seed)
        seeds = restart_seeds(config.seed)
        kmeans = timed(lambda: fit_restarts(tokens, prototypes, seeds, 1, one_batch))
    else:
        kmeans = timed(lambda: fit_kmeans(views, prototypes, 1, one_batch))
    if masks is None:
        return kmeans, 0.0
    return kmeans, timed(lambda: fit_em(views, masks, prototypes, 1, one_batch))


def _ignore(sentence: str) -> None:
    """Drop a sentence about an image that cannot be read; the fit reports it."""


def gigabytes(size: float) -> str:
    """Format a number of bytes.

    Examples:
        >>> gigabytes(4.2e6), gigabytes(9.162e11)
        ('0.004 GB', '916 GB')
    """
    return f"{size / 1e9:.3f} GB" if size < 1e8 else f"{float(f'{size / 1e9:.3g}'):,g} GB"


def duration(seconds: float) -> str:
    """Format a duration in seconds.

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
