"""From features and masks to prototypes, by the method and recipe of a configuration."""

from __future__ import annotations

import logging
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from primaps.config import CacheContent, CachedContent, Config
from primaps.em.em import fit_em
from primaps.em.kmeans import POSITIONS, fit_kmeans, fit_starts, pca_start
from primaps.em.orthogonal import RESTARTS, check_orthogonal, fit_orthogonal, start_seeds
from primaps.em.probe import LinearProbe, fit_probe
from primaps.em.prototypes import Prototypes
from primaps.em.recorder import Recorder
from primaps.features.extract import START_IMAGES
from primaps.features.feature_cache import Rows
from primaps.features.mask_table import MaskTable
from primaps.features.positions import draw_positions
from primaps.features.views import Views
from primaps.utils.errors import InputError
from primaps.utils.validation import validate

logger = logging.getLogger("primaps")


class Schedule(NamedTuple):
    """What a fit will run.

    Attributes:
        starts: number of k-means starts; 1 for the baseline, which is nothing else.
        init_steps: steps of each of them.
        steps: steps of EM or the probe after them.
    """

    starts: int
    init_steps: int
    steps: int

    @property
    def all_init_steps(self) -> int:
        """Steps of all k-means starts."""
        return self.starts * self.init_steps


def schedule(config: Config, images: int, clusters: int | None = None) -> Schedule:
    """Steps of a fit to a number of images; 0 of what the method does not take.

    The baseline takes as many epochs of k-means as PriMaPs-EM takes of EM (section 4.1), and at
    least the steps of a start. Starts of the recipe "orthogonal" see a sample of many images.

    Args:
        clusters: that a projection brings along. If they are as many as the classes, the fit
            starts from them and k-means does not run.

    Examples:
        >>> schedule(Config(classes=27, recipe="paper"), 2975)
        Schedule(starts=1, init_steps=184, steps=4600)
        >>> schedule(Config(classes=11, recipe="paper"), 100)
        Schedule(starts=1, init_steps=184, steps=150)
        >>> schedule(Config(classes=27, method="kmeans"), 2975)
        Schedule(starts=1, init_steps=4600, steps=0)
        >>> schedule(Config(classes=27), 2975).all_init_steps
        2760
        >>> schedule(Config(classes=27), 10**6).all_init_steps
        2790
        >>> schedule(Config(classes=27), 2975, clusters=27)
        Schedule(starts=1, init_steps=0, steps=0)
    """
    seen = min(images, START_IMAGES) if config.orthogonal else images
    per_epoch = max(1, seen // config.batch_size)
    init_steps = max(config.init_epochs * per_epoch, config.min_init_steps)
    steps = max(config.epochs * per_epoch, config.min_steps)
    probe = config.method == "probe"
    if config.method == "kmeans":
        init_steps = max(steps, config.min_init_steps)
    given = clusters == config.classes
    return Schedule(
        starts=0 if probe else RESTARTS if config.orthogonal and not given else 1,
        init_steps=0 if probe or given else init_steps,
        steps=steps if probe or config.runs_em else 0,
    )


def resolve_cache_content(
    cache_content: CacheContent, config: Config, images: int, projected: bool
) -> CachedContent:
    """What a fit keeps of every image.

    Args:
        cache_content: ``features``, ``masks``, or ``auto``, which is ``masks`` where
            k-means restarts see a sample of the images, and ``features`` otherwise.
        projected: codes are fitted to, not features.

    Raises:
        InputError: features of masks are not enough.

    Examples:
        >>> resolve_cache_content("auto", Config(classes=27), 3000, False)
        'features'
        >>> resolve_cache_content("auto", Config(classes=27), 10**6, False)
        'masks'
    """
    enough = config.orthogonal and not projected
    cache_content = validate(cache_content, CacheContent, "cache_content")
    if cache_content == "auto":
        return "masks" if enough and images > START_IMAGES else "features"
    if cache_content == "masks" and not enough:
        raise InputError(
            "features of masks alone are enough for the recipe orthogonal without a projection; "
            "this fit needs --cache-content features"
        )
    return cache_content


def fit_prototypes(
    config: Config,
    views: Views,
    masks: Rows | None,
    labels: Rows | None,
    recorder: Recorder,
    clusters: Float[Tensor, "k c"] | None = None,
    table: MaskTable | None = None,
) -> Prototypes | LinearProbe:
    """Fit what ``config.method`` and ``config.recipe`` say.

    Args:
        views: features of the images, or codes if they have a projection; for the recipe
            "orthogonal" those that k-means starts look at.
        masks: proposals of each image, for PriMaPs-EM.
        labels: label map of each image, for the linear probe.
        recorder: keeps history and state.
        clusters: of the projection, to start from if they are as many as the classes.
        table: of ``masks``, for the recipe "orthogonal".

    Raises:
        InputError: masks or labels are missing, or there are more classes than features can start.
    """
    plan = schedule(config, len(views), None if clusters is None else len(clusters))

    def starts() -> list[Prototypes]:
        """Where EM starts: k-means from principal components, or the projection's clusters."""
        if clusters is not None and not plan.init_steps:
            return [Prototypes(clusters).to(views.device)]
        first = pca_start(views, config.classes)
        if not config.orthogonal:
            return [fit_kmeans(views, first, plan.init_steps, config, recorder)]
        seen, seeds = draw_positions(views, POSITIONS, config.seed), start_seeds(config.seed)
        return fit_starts(seen, first, seeds, plan.init_steps, config, recorder)

    if clusters is not None and len(clusters) != config.classes and config.method != "probe":
        logger.warning(
            "the projection has %d clusters and %d classes are wanted: k-means starts anew",
            len(clusters),
            config.classes,
        )
    if config.method == "probe":
        if labels is None:
            raise InputError("the linear probe needs labels: extract them with labels=")
        return fit_probe(views, labels, plan.steps, config, recorder)
    if config.method == "em" and masks is None and table is None:
        raise InputError("PriMaPs-EM needs masks: extract them with model.mask_maker()")
    if config.runs_em:
        assert masks is not None
        return fit_em(views, masks, starts()[0], plan.steps, config, recorder)
    if config.orthogonal:
        assert table is not None
        check_orthogonal(config.classes, table.features.shape[1])
        model = fit_orthogonal(table.features, starts(), recorder)
    else:
        model = starts()[0]
    if config.cosine_scale is not None:
        model.scale.data.fill_(config.cosine_scale)
    return model
