"""The PriMaPs-EM estimator: fit, predict, save and load."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import torch
from annotated_types import Interval
from jaxtyping import Float, Integer, UInt8
from PIL import Image
from torch import Tensor

from primaps.backbones.backbone import Backbone, image_features, image_side, weights_digest
from primaps.backbones.load import load_backbone
from primaps.classes.legend import Legend, legend
from primaps.classes.summary import ClassSummary, summarize_classes
from primaps.classes.tree import TreeError
from primaps.config import (
    CacheContent,
    Classes,
    Config,
    InferenceOptions,
    check_names,
    check_used,
)
from primaps.data import (
    Dataset,
    ImageCollection,
    ImageFile,
    LogCallback,
    image_files,
    load_image,
    pair_up,
)
from primaps.data.sampling import drawn
from primaps.em.fit import fit_prototypes, resolve_cache_content, schedule
from primaps.em.kmeans import Prototypes
from primaps.em.orthogonal import CONSENSUS
from primaps.em.probe import LinearProbe
from primaps.em.training import HistoryLine, Recorder
from primaps.features.extract import BACKBONE_BATCH, Extracted, extract
from primaps.features.feature_cache import MaskMaker
from primaps.inference import Segmentation, Segmenter
from primaps.persistence import (
    BackboneRecord,
    ModelError,
    SavedModel,
    TrainingRecord,
    fitted_backbone,
    read_model,
    write_model,
)
from primaps.projections.checkpoints import as_projection
from primaps.projections.encoder import code_network, encoder
from primaps.projections.projection import Projection
from primaps.proposals.image_size import image_masks
from primaps.utils.distributed import processes
from primaps.utils.errors import InputError
from primaps.utils.progress import ProgressCallback, silent
from primaps.utils.validation import validated
from primaps.version import VERSION

logger = logging.getLogger("primaps")


class PriMaPsEM:
    """Unsupervised semantic segmentation: classes found in images, without labels.

    Args:
        classes: number of classes K to find.
        backbone: name, hub id, folder, file, callable or :class:`primaps.Backbone`.
        device: ``auto``, ``cpu``, ``cuda``, ...
        patch_size: only with a callable.
        engine: what computes the backbone, as in :func:`primaps.load_backbone`.
        projection: features to the codes that prototypes are fitted to, masks staying those of the
            backbone: a :class:`primaps.projections.Projection`, its folder, a checkpoint of STEGO
            or HP, or a callable of yours. Features are those of the network that it carries, if
            that has other weights than the backbone.
        **options: fields of :class:`primaps.Config`.

    Attributes:
        config: all options.
        backbone: of the masks.
        network: whose features are projected, and kept while training: the backbone, or the one
            that the projection carries.
        encoder: images to what prototypes are compared with: features of the backbone, or codes.
        prototypes_: the K fitted prototypes, or the linear probe; None before :meth:`fit`.
        history_: per stage and epoch the loss and label-free diagnostics.
        samples_: a few of the training images, 8-bit, to show.
        class_summary_: tree, stability and size of the classes; None without masks.
        edits_: of the classes, as in ``edits.json``.
        legend_: names and colors of the classes that :meth:`predict` gives: the model's own if
            None, otherwise those after edits or a cut.

    Raises:
        InputError: an option is out of its range, or the projection was made for another backbone
            and does not carry it.
        WeightsError: the backbone has no weights here.

    Examples:
        >>> images = [Image.effect_noise((48, 40), 90).convert("RGB") for _ in range(4)]
        >>> model = PriMaPsEM(2, backbone=torch.nn.AvgPool2d(8), patch_size=8, size=32,
        ...                   min_init_steps=2, mask_crf=False, device="cpu")
        >>> model.fit(images).predict(images[0]).shape
        torch.Size([40, 48])
    """

    @validated
    def __init__(
        self,
        classes: Classes,
        *,
        backbone: str | Path | Callable[[Tensor], Tensor] | Backbone = "dinov2-vits14",
        device: str | torch.device = "auto",
        patch_size: Annotated[int, Interval(ge=1, le=4096)] | None = None,
        engine: str | None = None,
        projection: Projection | str | Path | Callable[[Tensor], Tensor] | None = None,
        **options: Any,
    ) -> None:
        check_names(options)
        name = str(backbone) if isinstance(backbone, str | Path) else ""
        config = Config(classes, **{"backbone": name, **options})
        check_used(config)
        self.backbone = load_backbone(
            backbone, device, patch_size, options.get("precision"), engine=engine
        )
        size = image_side(self.backbone, config.size, BACKBONE_BATCH, classes)
        if size % self.backbone.patch_size:
            patch = self.backbone.patch_size
            raise InputError(
                f"size {size} is not a multiple of the patch size {patch} of {self.backbone.name}; "
                f"{max(1, round(size / patch)) * patch} is"
            )
        self.config = replace(
            config, size=size, backbone=self.backbone.name, precision=self.backbone.precision
        )
        self.projection = None if projection is None else as_projection(projection)
        self.network = self.encoder = self.backbone
        if self.projection is not None:
            self.projection.to(self.backbone.device)
            self.network = code_network(self.backbone, self.projection)
            self.encoder = encoder(self.network, self.projection)
            if size % self.network.patch_size:
                raise InputError(
                    f"size {size} is not a multiple of the patch size {self.network.patch_size} of "
                    f"the network that the projection {self.projection.name} carries"
                )
        self.prototypes_: Prototypes | LinearProbe | None = None
        self.history_: list[HistoryLine] = []
        self.samples_: UInt8[Tensor, "s 3 H W"] | None = None
        self.class_summary_: ClassSummary | None = None
        self.edits_: list[dict[str, Any]] = []
        self.legend_: Legend | None = None
        self._images = 0

    @property
    def size(self) -> int:
        """Shorter side of images in pixels."""
        return cast(int, self.config.size)

    @validated
    @torch.enable_grad()
    def fit(
        self,
        images: ImageCollection,
        labels: str | Path | Dataset | None = None,
        *,
        sample: int | None = None,
        cache: str | Path | None = "auto",
        cache_content: CacheContent = "auto",
        checkpoints: str | Path | None = None,
        progress: ProgressCallback = silent,
        log: LogCallback = logger.warning,
        on_epoch: Callable[[HistoryLine], None] | None = None,
    ) -> PriMaPsEM:
        """Fit to images: features, proposals, k-means, prototypes (section 3.2).

        Args:
            images: files, folders or globs, or Pillow images. Each is scaled and cut to its
                centered square.
            labels: folder of label maps, or the data set that the images are of; for the linear
                probe, and for nothing else.
            sample: number of images to fit to, drawn by the seed; None is all of them.
            cache: folder that keeps features and masks, so that they are computed once and for
                all; ``auto`` is memory if they take less than 2 GB, else the cache; None is memory.
            cache_content: what is cached of every image: ``features`` and masks (0.9 MB at 322 px,
                ViT-S/14, DINOv2), or the features of its ``masks`` alone (9 kB; with features of
                3,000 images), which is enough for the recipe "orthogonal"; ``auto`` is ``masks``
                above 3,000 images where that is enough. Both give the same model.
            checkpoints: folder of the training state: the same call goes on where it was stopped.
            progress: called after each unit of work.
            log: called with a sentence about every image that cannot be read; the others go on.
            on_epoch: called with a line of figures per epoch.

        Raises:
            ImageError: no image could be read.
            InputError: more classes than the features can start, a sample of no image, or labels
                are missing or not wanted.
        """
        method = self.config.method
        if (labels is not None) != (method == "probe"):
            raise InputError(
                "labels are for method='probe' alone: PriMaPs-EM and k-means take none"
                if labels is not None
                else "the linear probe is trained on labels: give the folder of label maps"
            )
        data = None
        files: Sequence[ImageFile] = []
        if labels is None:
            files = image_files(images)
        else:
            data = labels if isinstance(labels, Dataset) else pair_up(cast(Any, images), labels)
            files = data.samples
        files = drawn(files, sample, self.config.seed)
        extracted = extract(
            files,
            self.network,
            self.size,
            views=self.config.views if method == "em" else 0,
            masks=self.mask_maker() if method == "em" else None,
            labels=data,
            seed=self.config.seed,
            cache=cache,
            cache_content=resolve_cache_content(
                cache_content, self.config, len(files), self.projection is not None
            ),
            progress=progress,
            log=log,
        )
        return self.fit_extracted(extracted, checkpoints, progress, on_epoch)

    @validated
    @torch.enable_grad()
    def fit_extracted(
        self,
        extracted: Extracted,
        checkpoints: str | Path | None = None,
        progress: ProgressCallback = silent,
        on_epoch: Callable[[HistoryLine], None] | None = None,
    ) -> PriMaPsEM:
        """Fit to features and masks that are there already, as :meth:`fit` does after computing
        them: for several fits on the same images.

        Raises:
            InputError: features of masks alone are not enough for this model.
        """
        self._images, self.samples_ = len(extracted.keys), extracted.samples
        if extracted.table is not None:
            resolve_cache_content("masks", self.config, self._images, self.projection is not None)
        projection, masks = self.projection, extracted.mask_table(self.projection)
        seen = extracted.restart_views if self.config.orthogonal else extracted.views
        recorder = Recorder(
            max(1, len(seen) // self.config.batch_size),
            progress,
            checkpoints,
            self._fingerprint(extracted),
            on_epoch,
        )
        prototypes = fit_prototypes(
            self.config,
            replace(seen, projection=projection),
            extracted.masks,
            extracted.labels,
            recorder,
            None if projection is None else projection.clusters,
            masks,
        )
        self.prototypes_, self.history_ = prototypes.requires_grad_(False), recorder.epochs
        self.class_summary_, self.edits_, self.legend_ = None, [], None
        if masks is not None and isinstance(prototypes, Prototypes):
            self.class_summary_ = summarize_classes(
                masks, prototypes.direction, prototypes.scale, seed=self.config.seed
            )
        return self

    @validated
    def cut(self, classes: int) -> PriMaPsEM:
        """The same model with another number of classes: a cut of its tree, in no time.

        At its own K it predicts what it did, to the byte. Names, colors and hidden classes of
        ``edits_`` stay; merges and splits do not, as the cut says which classes there are.

        Raises:
            TreeError: the model has no tree, or the tree no such cut.
        """
        if self.class_summary_ is None:
            raise TreeError("the model has no tree of classes: fit it again, with masks")
        other = copy.copy(self)
        other.legend_ = legend(self.class_summary_.tree, self.edits_, classes)
        return other

    @property
    def classes(self) -> int:
        """Number of classes that :meth:`predict` gives."""
        return self.config.classes if self.legend_ is None else len(self.legend_.shown)

    def _fingerprint(self, extracted: Extracted) -> str:
        """Of everything that decides the result of training."""
        projection = self.projection and (self.projection.digest or self.projection.name)
        networks = [self.backbone.digest, self.network.digest]
        networks += [
            each.engine for each in (self.backbone, self.network) if each.engine != "torch"
        ]
        networks += [CONSENSUS] if self.config.orthogonal else []
        about = [asdict(self.config), networks, projection, extracted.content_digest]
        return hashlib.sha256(json.dumps([VERSION, *about, processes()]).encode()).hexdigest()

    def mask_maker(self) -> MaskMaker:
        """:meth:`masks`, and the options that it depends on: for :func:`extract` with the features
        of ``network``."""
        options = self._mask_options()
        if self.network is self.backbone:
            return MaskMaker(self.masks, options)

        def make(features: Tensor, images: Tensor) -> Tensor:
            return self.masks(image_features(self.backbone, images), images)

        return MaskMaker(make, {**options, "backbone": self.backbone.digest})

    def masks(
        self, features: Float[Tensor, "b c h w"], images: UInt8[Tensor, "b 3 H W"]
    ) -> Integer[Tensor, "b H W"]:
        """Proposals at image size with this model's options of Table 4a; 0 = ignore."""
        return image_masks(features, images, **self._mask_options())

    def _mask_options(self) -> dict[str, Any]:
        config = self.config
        options = {name: getattr(config, name) for name in ("threshold", "anchor", "iterative")}
        return {**options, "crf": "dense" if config.mask_crf else None}

    @property
    def segmenter(self) -> Segmenter:
        """Inference by this model; see :mod:`primaps.inference`.

        Raises:
            ModelError: the model is not fitted.
        """
        if self.prototypes_ is None:
            raise ModelError("the model is not fitted: call fit first, or load one")
        return Segmenter(
            self.encoder,
            self.prototypes_,
            self.config.classes,
            self.size,
            self.config.cosine,
            None if self.class_summary_ is None else self.class_summary_.tree,
            self.legend_,
        )

    @validated
    def predict(
        self, image: str | Path | Image.Image | np.ndarray | Tensor, **options: Any
    ) -> Integer[Tensor, "H W"]:
        """Predict the class of every pixel of a whole image, at its own size.

        The image is scaled to the shorter side ``size``, not cropped. The class probabilities are
        scaled back bilinearly.

        Args:
            image: anything that :func:`primaps.load_image` reads.
            **options: fields of :class:`primaps.config.InferenceOptions`. A larger ``size`` is
                better on small objects, and slower.

        Raises:
            ModelError: the model is not fitted.
            InputError: an option is out of range, or the scaled image does not fit into memory.
        """
        return self.segment(load_image(image), **options).labels

    @validated
    def predict_probabilities(
        self, images: UInt8[Tensor, "b 3 H W"], **options: Any
    ) -> Float[Tensor, "b k H W"]:
        """Predict class probabilities of a batch of images that are scaled already.

        Args:
            images: 8-bit RGB images; sides are multiples of the patch size.
            **options: fields of :class:`primaps.config.InferenceOptions`; ``size`` has no effect.

        Raises:
            ModelError: the model is not fitted.
        """
        segmenter, chosen = self.segmenter, InferenceOptions(**options)
        logits = segmenter.logits(segmenter.encode(images, chosen))
        return segmenter.probabilities(logits, images, chosen.crf)

    @validated
    def segment(self, image: Image.Image, **options: Any) -> Segmentation:
        """Predict like :meth:`predict`, and return probabilities, logits and features as well.

        Raises:
            ModelError, InputError: as :meth:`predict`.
        """
        return self.segmenter.segment(image, InferenceOptions(**options))

    def prediction_digest(self) -> str:
        """SHA-256 of what decides a prediction: prototypes, backbone, its precision and size."""
        network = f"{self.network.digest or self.network.name} {self.network.arithmetic}"
        text = f"{network} {self.size} {self.config.cosine} one pass"
        if self.projection is not None:
            text += f" {self.projection.digest or self.projection.name}"
        if self.prototypes_ is not None:
            text += str(weights_digest(self.prototypes_))
        if self.legend_ is not None:
            text += f" {self.legend_.table().tolist()}"
        return hashlib.sha256(text.encode()).hexdigest()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``model.safetensors``, ``config.json`` and ``history.json``, each atomically.

        Raises:
            ModelError: the model is not fitted.
            OutputError: the folder has files with these names that this package did not write.
            EditError: the model has edits, and the folder a ``edits.json`` of another fit.
        """
        if self.prototypes_ is None:
            raise ModelError("the model is not fitted: call fit first")
        backbone, plan = self.backbone, schedule(self.config, self._images, self.clusters)
        saved = SavedModel(
            self.config,
            BackboneRecord(backbone.name, backbone.digest, backbone.patch_size, backbone.positions),
            self.projection,
            self.prototypes_,
            self.history_,
            TrainingRecord(
                self._images, plan.all_init_steps, plan.steps, self.config.method == "probe"
            ),
            self.class_summary_,
            self.edits_,
        )
        write_model(folder, saved, projection_backbone=self.network is not backbone)

    @property
    def clusters(self) -> int | None:
        """Clusters that the projection brings along."""
        clusters = None if self.projection is None else self.projection.clusters
        return None if clusters is None else len(clusters)

    @classmethod
    @validated
    def from_pretrained(
        cls,
        folder: str | Path,
        backbone: str | Path | Callable[[Tensor], Tensor] | Backbone | None = None,
        device: str | torch.device = "auto",
        projection: Callable[[Tensor], Tensor] | None = None,
        engine: str | None = None,
    ) -> PriMaPsEM:
        """Load a model from a folder, or from the hub by its id (owner/name).

        Args:
            backbone: needed if the model was fitted with a callable; otherwise the one that it was
                fitted with is found by its name.
            projection: needed if the model was fitted with a callable.
            engine: of :func:`primaps.load_backbone`; ``primaps predict`` takes ``auto``.

        Raises:
            ModelError: no model of this package is there, or the backbone has other weights.
        """
        found = read_model(folder, projection)
        unused = found.config.unused
        options = {k: v for k, v in asdict(found.config).items() if k not in unused}
        options["backbone"] = fitted_backbone(folder, found, backbone, device, engine)
        options["precision"] = options["backbone"].precision
        model = cls(**options, device=device, projection=found.projection)
        model.prototypes_ = found.prototypes.to(model.backbone.device)
        model._images, model.history_ = found.training.images, found.history
        model.class_summary_, model.edits_ = found.class_summary, found.edits
        if found.class_summary is not None and found.edits:
            model.legend_ = legend(found.class_summary.tree, found.edits)
        return model
