"""From features and masks to prototypes, by the method and recipe of a configuration."""

from __future__ import annotations

import logging
from dataclasses import fields, replace

from primaps.config import Config
from primaps.em import Settings, fit_em, fit_kmeans, pca_start
from primaps.extraction import Extracted
from primaps.orthogonal import RESTARTS, fit_orthogonal
from primaps.probe import LinearProbe, fit_probe
from primaps.projections.projection import Projection
from primaps.prototypes import Prototypes
from primaps.training import Recorder
from primaps.views import Views

logger = logging.getLogger("primaps")


def fit_prototypes(
    config: Config, extracted: Extracted, projection: Projection | None, recorder: Recorder
) -> Prototypes | LinearProbe:
    """Fit what ``config.method`` and ``config.recipe`` say.

    Args:
        projection: features to the codes that prototypes are fitted to; None fits to features.
        recorder: keeps history and state.

    Raises:
        ValueError: masks or labels are missing, or there are more classes than features can start.
    """
    views = replace(extracted.views, projection=projection)
    settings = Settings(**{f.name: getattr(config, f.name) for f in fields(Settings)})
    init_steps, steps = config.steps(len(extracted.keys))

    def start(own: Settings = settings, stage: str = "k-means") -> Prototypes:
        return _start(views, projection, config.classes, init_steps, own, recorder, stage)

    if config.method == "probe":
        if extracted.labels is None:
            raise ValueError("the linear probe needs labels: extract them with labels=")
        return fit_probe(views, extracted.labels, config.classes, steps, settings, recorder)
    if config.method == "em" and extracted.masks is None:
        raise ValueError("PriMaPs-EM needs masks: extract them with model.mask_maker()")
    if config.runs_em:
        assert extracted.masks is not None
        return fit_em(views, extracted.masks, start(), steps, settings, recorder)
    if config.method == "em":
        assert extracted.masks is not None
        model = fit_orthogonal(views, extracted.masks, start, settings, recorder)
    else:
        model = start()
    if config.cosine_scale is not None:
        model.scale.data.fill_(config.cosine_scale)
    return model


def all_steps(config: Config, images: int) -> tuple[int, int]:
    """Steps of all k-means starts, and of EM or the probe.

    Examples:
        >>> all_steps(Config(classes=27, recipe="orthogonal"), 2975)
        (920, 0)
    """
    start, steps = config.steps(images)
    starts = RESTARTS if config.method == "em" and not config.runs_em else 1
    return starts * start, steps


def _start(
    views: Views,
    projection: Projection | None,
    classes: int,
    steps: int,
    settings: Settings,
    recorder: Recorder,
    stage: str,
) -> Prototypes:
    """Where EM starts: k-means from principal components, or the projection's own clusters."""
    clusters = None if projection is None else projection.clusters
    if clusters is not None and len(clusters) == classes:
        return Prototypes(clusters).to(views.device)
    if clusters is not None:
        logger.warning(
            "the projection has %d clusters and %d classes are wanted: k-means starts anew",
            len(clusters),
            classes,
        )
    return fit_kmeans(views, pca_start(views, classes), steps, settings, recorder, stage)
