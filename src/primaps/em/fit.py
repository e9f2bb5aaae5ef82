"""From features and masks to prototypes, by the method and the recipe of a configuration."""

from __future__ import annotations

import logging
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from primaps.config import CacheContent, CachedContent, Config
from primaps.em.em import fit_em
from primaps.em.kmeans import TOKENS_PER_STEP, Prototypes, fit_kmeans, fit_restarts, pca_init
from primaps.em.orthogonal import RESTARTS, check_orthogonal, fit_orthogonal, restart_seeds
from primaps.em.probe import LinearProbe, fit_probe
from primaps.em.training import Recorder
from primaps.features.extract import RESTART_IMAGES
from primaps.features.training_data import ImageArrays, MaskTable, Views, sample_tokens
from primaps.utils.errors import InputError
from primaps.utils.validation import validate

logger = logging.getLogger("primaps")


class Schedule(NamedTuple):
    """Number of steps of a fit.

    Attributes:
        restarts: number of k-means restarts; 1 for the baseline, 0 for the probe.
        init_steps: steps per restart.
        steps: steps of EM or of the probe.
    """

    restarts: int
    init_steps: int
    steps: int

    @property
    def all_init_steps(self) -> int:
        """Steps of all k-means restarts."""
        return self.restarts * self.init_steps


def schedule(config: Config, images: int, clusters: int | None = None) -> Schedule:
    """Return the steps of a fit to a number of images.

    The baseline takes as many epochs of k-means as PriMaPs-EM takes of EM (section 4.1), and at
    least the steps of a restart. Restarts of the recipe "orthogonal" read a sample of a large
    collection.

    Args:
        clusters: number of clusters of a projection. If it equals the number of classes, the
            clusters are the initialization and k-means does not run.

    Examples:
        >>> schedule(Config(classes=27, recipe="paper"), 2975)
        Schedule(restarts=1, init_steps=184, steps=4600)
        >>> schedule(Config(classes=11, recipe="paper"), 100)
        Schedule(restarts=1, init_steps=184, steps=150)
        >>> schedule(Config(classes=27, method="kmeans"), 2975)
        Schedule(restarts=1, init_steps=4600, steps=0)
        >>> schedule(Config(classes=27), 2975).all_init_steps
        2760
        >>> schedule(Config(classes=27), 10**6).all_init_steps
        2790
        >>> schedule(Config(classes=27), 2975, clusters=27)
        Schedule(restarts=1, init_steps=0, steps=0)
    """
    used = min(images, RESTART_IMAGES) if config.orthogonal else images
    per_epoch = max(1, used // config.batch_size)
    init_steps = max(config.init_epochs * per_epoch, config.min_init_steps)
    steps = max(config.epochs * per_epoch, config.min_steps)
    probe = config.method == "probe"
    if config.method == "kmeans":
        init_steps = max(steps, config.min_init_steps)
    initialized = clusters == config.classes
    return Schedule(
        restarts=0 if probe else RESTARTS if config.orthogonal and not initialized else 1,
        init_steps=0 if probe or initialized else init_steps,
        steps=steps if probe or config.runs_em else 0,
    )


def resolve_cache_content(
    cache_content: CacheContent, config: Config, images: int, projected: bool
) -> CachedContent:
    """Return what a fit caches of every image.

    Args:
        cache_content: ``features``, ``masks``, or ``auto``, which is ``masks`` if k-means restarts
            read a sample of the images, and ``features`` otherwise.
        projected: whether prototypes are fitted to codes of a projection.

    Raises:
        InputError: ``masks`` is requested and this fit needs feature maps.

    Examples:
        >>> resolve_cache_content("auto", Config(classes=27), 3000, False)
        'features'
        >>> resolve_cache_content("auto", Config(classes=27), 10**6, False)
        'masks'
    """
    masks_suffice = config.orthogonal and not projected
    cache_content = validate(cache_content, CacheContent, "cache_content")
    if cache_content == "auto":
        return "masks" if masks_suffice and images > RESTART_IMAGES else "features"
    if cache_content == "masks" and not masks_suffice:
        raise InputError(
            "--cache-content masks is supported for the recipe orthogonal without a projection; "
            "this fit needs --cache-content features"
        )
    return cache_content


def fit_prototypes(
    config: Config,
    views: Views,
    masks: ImageArrays | None,
    labels: ImageArrays | None,
    recorder: Recorder,
    clusters: Float[Tensor, "k c"] | None = None,
    table: MaskTable | None = None,
) -> Prototypes | LinearProbe:
    """Fit with ``config.method`` and ``config.recipe``.

    Args:
        views: feature maps, or codes if they have a projection; for the recipe "orthogonal" those
            that k-means restarts read.
        masks: mask proposals of each image, for the recipe "paper".
        labels: label map of each image, for the linear probe.
        recorder: records the history and writes checkpoints.
        clusters: clusters of the projection; the initialization if their number is ``classes``.
        table: table of all masks, for the recipe "orthogonal".

    Raises:
        InputError: masks or labels are missing, or there are too many classes for the features.
    """
    plan = schedule(config, len(views), None if clusters is None else len(clusters))
    if config.method == "probe":
        if labels is None:
            raise InputError("the linear probe needs labels: extract them with labels=")
        return fit_probe(views, labels, plan.steps, config, recorder)
    if config.method == "em" and masks is None and table is None:
        raise InputError("PriMaPs-EM needs masks: extract them with model.mask_maker()")
    if clusters is not None and len(clusters) != config.classes:
        logger.warning(
            "the projection has %d clusters, but %d classes are requested: k-means initializes "
            "the prototypes",
            len(clusters),
            config.classes,
        )

    def initialize() -> list[Prototypes]:
        """Return the clusters of the projection, or run k-means from principal components."""
        if clusters is not None and not plan.init_steps:
            return [Prototypes(clusters).to(views.device)]
        init = pca_init(views, config.classes)
        if not config.orthogonal:
            return [fit_kmeans(views, init, plan.init_steps, config, recorder)]
        tokens = sample_tokens(views, TOKENS_PER_STEP, config.seed)
        seeds = restart_seeds(config.seed)
        return fit_restarts(tokens, init, seeds, plan.init_steps, config, recorder)

    if config.runs_em:
        assert masks is not None
        return fit_em(views, masks, initialize()[0], plan.steps, config, recorder)
    if config.orthogonal:
        assert table is not None
        check_orthogonal(config.classes, table.features.shape[1])
        model = fit_orthogonal(table.features, initialize(), recorder)
    else:
        model = initialize()[0]
    if config.cosine_scale is not None:
        model.scale.data.fill_(config.cosine_scale)
    return model
