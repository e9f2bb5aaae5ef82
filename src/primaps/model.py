"""The PriMaPs-EM estimator: fit, predict, save and load."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Interval
from jaxtyping import Float, Integer, UInt8
from PIL import Image
from torch import Tensor

from primaps.backbones.backbone import (
    Backbone,
    image_features,
    image_side,
    tensors_digest,
    weights_digest,
)
from primaps.backbones.load import load_backbone
from primaps.classes.legend import Class, EditError, Legend, legend
from primaps.classes.summary import ClassSummary, summarize_classes
from primaps.classes.tree import TreeError
from primaps.classes.verdict import Verdict, judge
from primaps.config import (
    MAX_CLASSES,
    CacheContent,
    Classes,
    Config,
    InferenceOptions,
    Seed,
    check_names,
    check_used,
)
from primaps.data import (
    Dataset,
    ImageCollection,
    ImageFile,
    LogCallback,
    at_depth,
    image_files,
    load_image,
    pair_up,
)
from primaps.data.collection import sample_items
from primaps.em.fit import fit_prototypes, resolve_cache_content, schedule
from primaps.em.kmeans import Prototypes
from primaps.em.orthogonal import CONSENSUS
from primaps.em.probe import LinearProbe
from primaps.em.training import HistoryLine, Recorder
from primaps.exchange.annotations import load_annotations
from primaps.features.extract import BACKBONE_BATCH, Extracted, extract
from primaps.features.feature_cache import MaskMaker
from primaps.features.maps import FeatureMaps, feature_maps
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
from primaps.projections.projection import Projection, code_network, encoder
from primaps.proposals.image_size import image_masks
from primaps.teach.annotations import (
    Annotation,
    annotation_point,
    expand_label_maps,
    resolve_annotations,
)
from primaps.teach.find import Found, find_region
from primaps.teach.learner import LevelOption, check_annotations, learn, renamed
from primaps.teach.questions import Asked, Question, next_questions
from primaps.teach.taught import NamedPrototypes, Taught
from primaps.utils.colors import palette
from primaps.utils.distributed import processes
from primaps.utils.errors import InputError
from primaps.utils.progress import ProgressCallback, silent
from primaps.utils.validation import validated
from primaps.version import VERSION

logger = logging.getLogger("primaps")


class PriMaPsEM:
    """Find the classes of an image collection without labels, and segment images into them.

    Args:
        classes: number of classes K.
        backbone: name, hub id, folder, file, callable or :class:`primaps.Backbone`.
        device: ``auto``, ``cpu``, ``cuda``, ...
        patch_size: patch size in pixels of a callable backbone.
        engine: engine of the backbone, see :func:`primaps.load_backbone`.
        projection: maps features to the codes that the prototypes are fitted to: a
            :class:`primaps.Projection`, its folder, a checkpoint of STEGO or HP, or a callable.
            Masks are always computed from the features of the backbone. If the projection
            contains a backbone with other weights, codes are computed from its features.
        **options: fields of :class:`primaps.Config`.

    Attributes:
        config: options of the model.
        backbone: network whose features the masks are computed from.
        network: network whose features are projected and cached: the backbone, or that of the
            projection.
        encoder: network from images to the features, or codes, that are classified.
        prototypes_: K prototypes, or the linear probe; None before :meth:`fit`.
        history_: metrics of each epoch: loss and label-free diagnostics.
        samples_: a few training images as 8-bit RGB, for the preview.
        depth_: bits of the values of images of more than 8 bits, with which :meth:`predict` reads
            images; None if the fit had none.
        class_summary_: class tree, and stability and size of the classes; None without masks. In
            a taught model, each class is a leaf of the tree.
        edits_: edits of the classes, as in ``edits.json``.
        legend_: names and colors of the classes after edits or a cut; None for the K classes of
            the fit.
        taught_: what the model was taught; None if it was not.

    Raises:
        InputError: an option is out of range, or the projection does not fit the backbone.
        WeightsError: the backbone has no weights on this machine.

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
                f"choose {max(1, round(size / patch)) * patch}"
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
                    f"the backbone in the projection {self.projection.name}"
                )
        self.prototypes_: Prototypes | LinearProbe | None = None
        self.history_: list[HistoryLine] = []
        self.samples_: UInt8[Tensor, "s 3 H W"] | None = None
        self.depth_: int | None = config.depth
        self.class_summary_: ClassSummary | None = None
        self.edits_: list[dict[str, Any]] = []
        self.legend_: Legend | None = None
        self.taught_: Taught | None = None
        self._fit_summary: ClassSummary | None = None  # of the fit, if the model was taught
        self._images = 0

    @property
    def size(self) -> int:
        """Shorter side of the scaled images in pixels."""
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
        """Fit to images: features, mask proposals, k-means and prototypes (section 3.2).

        Args:
            images: files, folders, globs or Pillow images. Each is scaled and its center square is
                cropped.
            labels: folder of label maps, or the data set of the images; only for the linear probe.
            sample: number of images to fit to, sampled with the seed; None fits to all.
            cache: folder to cache features and masks in. ``auto`` uses memory below 2 GB and the
                cache folder of primaps above; None uses memory.
            cache_content: what is cached per image: ``features`` with masks (0.9 MB for DINOv2
                ViT-S/14 at 322 px), or only the features of its ``masks`` (9 kB; enough for the
                recipe "orthogonal"). ``auto`` is ``masks`` above 3,000 images if that is enough.
                Both give the same model.
            checkpoints: folder for the training state, from which the same call resumes.
            progress: progress callback.
            log: called with one sentence about each image that is skipped.
            on_epoch: called with the metrics of each epoch.

        Returns:
            The model itself.

        Raises:
            ImageError: no image could be read.
            InputError: the images have fewer features than K, ``sample`` is less than 1, or labels
                are missing or not supported by the method.
        """
        method = self.config.method
        if (labels is not None) != (method == "probe"):
            raise InputError(
                f"labels are not supported by method {method!r}: leave them out"
                if labels is not None
                else "labels is None; method 'probe' needs the folder of label maps"
            )
        data = None
        files: Sequence[ImageFile] = []
        if labels is None:
            files = image_files(images)
        else:
            data = labels if isinstance(labels, Dataset) else pair_up(cast(Any, images), labels)
            files = data.samples
        files = sample_items(files, sample, self.config.seed)
        extracted = extract(
            files,
            self.network,
            self.size,
            views=self.config.views if method == "em" else 0,
            masks=self.mask_maker() if method == "em" else None,
            labels=data,
            seed=self.config.seed,
            depth=self.config.depth,
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
        """Fit to features and masks that were extracted before.

        :meth:`fit` is :func:`primaps.features.extract.extract` followed by this method. Call both
        for several fits to the same images.

        Args:
            extracted: features and masks of the images.
            checkpoints, progress, on_epoch: as in :meth:`fit`.

        Returns:
            The model itself.

        Raises:
            InputError: only features of masks were extracted, and the method needs all features.
        """
        self._images, self.samples_ = len(extracted.keys), extracted.samples
        self.depth_ = extracted.depth
        if extracted.table is not None:
            resolve_cache_content("masks", self.config, self._images, self.projection is not None)
        projection, masks = self.projection, extracted.mask_table(self.projection)
        views = extracted.restart_views if self.config.orthogonal else extracted.views
        recorder = Recorder(
            max(1, len(views) // self.config.batch_size),
            progress,
            checkpoints,
            self._fingerprint(extracted),
            on_epoch,
        )
        prototypes = fit_prototypes(
            self.config,
            replace(views, projection=projection),
            extracted.masks,
            extracted.labels,
            recorder,
            None if projection is None else projection.clusters,
            masks,
        )
        self.prototypes_, self.history_ = prototypes.requires_grad_(False), recorder.epochs
        self.class_summary_, self.edits_, self.legend_ = None, [], None
        self.taught_ = self._fit_summary = None
        if masks is not None and isinstance(prototypes, Prototypes):
            self.class_summary_ = summarize_classes(
                masks, prototypes.direction, prototypes.scale, seed=self.config.seed
            )
        if self.verdict is not None and self.verdict.reasons:
            logger.warning("the fit is %s", self.verdict)
        return self

    @property
    def verdict(self) -> Verdict | None:
        """Verdict on the fit; None before it, for methods without masks, and for taught models."""
        if self.prototypes_ is None or self.config.method != "em" or self.taught_ is not None:
            return None
        summary = self.class_summary_
        return judge(() if summary is None else summary.stability, 2 * self.config.classes)

    @validated
    def cut(self, classes: int) -> PriMaPsEM:
        """Return the model with another number of classes, read off its class tree.

        A cut at K predicts the same as the fit. Names, colors and hidden classes of ``edits_`` are
        kept; merges and splits are dropped.

        Args:
            classes: number of classes, from 2 to the number of leaves of the tree.

        Raises:
            TreeError: the model has no class tree, or the tree cannot be cut at this number.
            InputError: the number is above 255, which label maps use for no class.
        """
        if classes > MAX_CLASSES:
            raise InputError(f"classes is {classes}; it must be at most {MAX_CLASSES}")
        if self.class_summary_ is None:
            raise TreeError("the model has no class tree: fit with method 'em' to get one")
        other = copy.copy(self)
        other.legend_ = legend(self.class_summary_.tree, self.edits_, classes)
        return other

    @validated
    def teach(
        self,
        images: ImageCollection,
        annotations: Sequence[Annotation] | str | Path,
        *,
        level: LevelOption = "auto",
        cache: str | Path | None = "auto",
        seed: Seed | None = None,
        progress: ProgressCallback = silent,
        log: LogCallback = logger.warning,
    ) -> PriMaPsEM:
        """Return a model that has learned from annotations; this model is not changed.

        The classes of the result are those of the annotations and those of this model that have a
        name. A taught model is taught again with its own annotations and the new ones.

        Args:
            images: the collection, with all annotated images. Class frequencies are estimated on
                all of them.
            annotations: annotations, in the order in which they were made, or what
                :func:`primaps.exchange.annotations.load_annotations` reads: a file, or a folder.
            level: ``tokens`` learns a linear classifier of patch tokens. ``pixels`` adds boosted
                trees on colors, edges and texture, which follow edges and thin objects better.
                ``auto`` compares both on held-out annotated images if at least three images have
                annotated regions, and chooses pixels if their mean IoU is at least 0.01 higher.
            cache: folder to cache features in, as in :meth:`fit`.
            seed: random seed; None is that of the fit.
            progress: progress callback.
            log: called with one sentence about each image that is skipped, and each contradiction
                between annotations, in which the later one wins.

        Raises:
            ModelError: the model is not fitted.
            InputError: an annotation does not fit its image, or there are fewer than two classes.
        """
        if self.prototypes_ is None:
            raise ModelError("the model is not fitted: call fit before teach")
        files = at_depth(image_files(images), self.depth_)
        if isinstance(annotations, str | Path):
            names = [one.name for one in self.shown_classes]
            listed = load_annotations(annotations, files, names=names, log=log)
        else:
            listed = list(annotations)
        maps = self.feature_maps(files, cache=cache, progress=progress, log=log)
        check_annotations(listed, maps)
        listed = [*self._earlier(maps, log), *listed]
        resolved, conflicts = resolve_annotations(listed)
        for conflict in conflicts:
            log(f"contradiction: {conflict}; the later annotation wins")
        by_key = {file.key: file for file in files}
        options = InferenceOptions()
        taught = learn(
            resolved,
            maps,
            maps.digests,
            self._named_prototypes(),
            lambda key: self.segmenter.scale(by_key[key].load(), options),
            level=level,
            seed=self.config.seed if seed is None else seed,
            progress=progress,
        )
        return self._with_taught(
            replace(taught, annotations=tuple(listed), basis=list(self.edits_))
        )

    @validated
    def find(
        self,
        images: ImageCollection,
        regions: Annotation | Sequence[Annotation],
        *,
        cache: str | Path | None = "auto",
        progress: ProgressCallback = silent,
        log: LogCallback = logger.warning,
    ) -> Found:
        """Score all images for the class of a region: this, everywhere.

        Args:
            images, cache, progress, log: as in :meth:`teach`.
            regions: one region, or several of one class. Those with ``negative`` show what it is
                not.

        Returns:
            A score in [0, 1] for every patch token. With a threshold the result can be accepted as
            annotations: :meth:`primaps.teach.find.Found.annotations`.

        Raises:
            InputError: a region does not fit its image, or regions have several names.
        """
        listed = [regions] if isinstance(regions, Annotation) else list(regions)
        maps = self.feature_maps(images, cache=cache, progress=progress, log=log)
        check_annotations(listed, maps)
        return find_region(listed, maps, seed=self.config.seed, progress=progress)

    @validated
    def ask(
        self,
        images: ImageCollection,
        questions: Annotated[int, Interval(ge=1)] = 50,
        *,
        asked: Iterable[Asked] = (),
        cache: str | Path | None = "auto",
        seed: Seed | None = None,
        progress: ProgressCallback = silent,
        log: LogCallback = logger.warning,
    ) -> list[Question]:
        """Return the regions whose classes a person should be asked for next.

        Args:
            images, cache, progress, log: as in :meth:`teach`.
            questions: number of questions. Fewer are returned if all other regions are alike.
            asked: image key, and x / width and y / height, of everything that was asked before.
                What the model was taught with need not be listed.
            seed: random seed; None is that of the fit.

        Returns:
            Questions, the most useful first. Their guesses are indices of :attr:`shown_classes`.
            :func:`primaps.exchange.questions.write_questions` writes them to a folder.

        Raises:
            ModelError: the model is not fitted.
        """
        segmenter = self.segmenter
        maps = self.feature_maps(images, cache=cache, progress=progress, log=log)
        earlier: list[Asked] = []
        known = [] if self.taught_ is None else self.taught_.read_annotations()
        for one in expand_label_maps(known):
            x, y = annotation_point(one)
            earlier.append((one.image, x / one.size[1], y / one.size[0]))
        return next_questions(
            questions,
            maps,
            probabilities=segmenter.class_probabilities,
            asked=[*earlier, *asked],
            seed=self.config.seed if seed is None else seed,
        )

    def feature_maps(
        self,
        images: ImageCollection,
        *,
        cache: str | Path | None = "auto",
        progress: ProgressCallback = silent,
        log: LogCallback = logger.warning,
    ) -> FeatureMaps:
        """Return the features of whole images at the size of the model; missing ones are computed.

        Args:
            images, cache, progress, log: as in :meth:`teach`.

        Raises:
            ImageError: no image could be read.
        """
        files = at_depth(image_files(images), self.depth_)
        return feature_maps(files, self.encoder, self.size, cache=cache, progress=progress, log=log)

    def _with_taught(self, taught: Taught) -> PriMaPsEM:
        """Return a copy of the model that predicts taught classes."""
        other = copy.copy(self)
        if self.taught_ is None:
            other._fit_summary = self.class_summary_
        other.taught_, other.class_summary_ = taught, taught.summary
        other.edits_ = [dict(edit) for edit in taught.edits]
        hidden = {one.name for one in self.legend_.classes if one.hidden} if self.legend_ else set()
        other.edits_ += [{"hide": name} for name in taught.names if name in hidden]
        try:
            other.legend_ = legend(other.class_summary_.tree, other.edits_)
        except EditError as error:
            reason = error.__cause__ or error
            raise InputError(f"the class name {reason}; rename the class") from None
        return other

    def _earlier(self, maps: FeatureMaps, log: LogCallback) -> list[Annotation]:
        """Return the annotations that the model was taught with, under the present class names."""
        if self.taught_ is None or self.legend_ is None:
            return []
        names = {
            name: one.name
            for one in self.legend_.classes
            for k, name in enumerate(self.taught_.names)
            if k in one.leaves
        }
        found = []
        absent: list[str] = []
        for one in self.taught_.read_annotations():
            if one.image in maps and one.digest in (None, maps.digests[one.image]):
                found += renamed(one, names)
            else:
                absent.append(one.image)
        if absent:
            log(
                f"{len(absent):,} earlier annotations are of {len(set(absent)):,} images that "
                "are not in the collection, and were left out"
            )
        elif not found and any(self.taught_.counts.values()):
            log(
                "the annotations that the model was taught with are not available; it learns from "
                "the new ones only"
            )
        return found

    def _named_prototypes(self) -> NamedPrototypes:
        """Return the classes that were found without labels and that have a name."""
        assert self.prototypes_ is not None
        directions = F.normalize(self.prototypes_.direction.detach().cpu(), dim=1)
        if self.taught_ is not None:
            return self.taught_.unsupervised
        if self.legend_ is None or self.class_summary_ is None:
            return NamedPrototypes((), (), directions[:0])
        tree = self.class_summary_.tree
        named = [one for one in self.legend_.classes if one.named]
        sums = [
            (tree.directions.float() * tree.masks.clamp_min(1)[:, None])[list(one.leaves)].sum(0)
            for one in named
        ]
        means = F.normalize(torch.stack(sums), dim=1) if sums else directions[:0]
        return NamedPrototypes(
            tuple(one.name for one in named), tuple(one.color for one in named), means
        )

    @property
    def shown_classes(self) -> tuple[Class, ...]:
        """Classes that :meth:`predict` returns, in the order of their values."""
        if self.legend_ is not None:
            return self.legend_.shown
        colors = palette(self.config.classes).tolist()
        return tuple(Class(str(k), f"class {k}", tuple(c), ()) for k, c in enumerate(colors))

    @property
    def classes(self) -> int:
        """Number of classes that :meth:`predict` returns."""
        return len(self.shown_classes)

    def _fingerprint(self, extracted: Extracted) -> str:
        """Return the SHA-256 of everything that training depends on."""
        projection = self.projection and (self.projection.digest or self.projection.name)
        networks = [self.backbone.digest, self.network.digest]
        networks += [
            each.engine for each in (self.backbone, self.network) if each.engine != "torch"
        ]
        networks += [CONSENSUS] if self.config.orthogonal else []
        inputs = [asdict(self.config), networks, projection, extracted.content_digest]
        return hashlib.sha256(json.dumps([VERSION, *inputs, processes()]).encode()).hexdigest()

    def mask_maker(self) -> MaskMaker:
        """Return :meth:`masks` with its options, for ``extract`` on features of ``network``."""
        options = self._mask_options()
        if self.network is self.backbone:
            return MaskMaker(self.masks, options)

        def make(features: Tensor, images: Tensor) -> Tensor:
            return self.masks(image_features(self.backbone, images), images)

        return MaskMaker(make, {**options, "backbone": self.backbone.digest})

    def masks(
        self, features: Float[Tensor, "b c h w"], images: UInt8[Tensor, "b 3 H W"]
    ) -> Integer[Tensor, "b H W"]:
        """Compute mask proposals at image size with the options of the model; 0 = ignore."""
        return image_masks(features, images, **self._mask_options())

    def _mask_options(self) -> dict[str, Any]:
        config = self.config
        options = {name: getattr(config, name) for name in ("threshold", "anchor", "iterative")}
        return {**options, "crf": "dense" if config.mask_crf else None}

    @property
    def segmenter(self) -> Segmenter:
        """Encoder, classifier and legend for inference; see :mod:`primaps.inference`.

        Raises:
            ModelError: the model is not fitted.
        """
        if self.prototypes_ is None:
            raise ModelError("the model is not fitted: call fit, or load it with from_pretrained")
        tree = None if self.class_summary_ is None else self.class_summary_.tree
        if (taught := self.taught_) is not None:
            classifier = taught.classifier.to(self.backbone.device)
            return Segmenter(
                self.encoder, classifier, len(taught.names), self.size, True, tree, self.legend_,
                taught,
            )  # fmt: skip
        return Segmenter(
            self.encoder,
            self.prototypes_,
            self.config.classes,
            self.size,
            self.config.cosine,
            tree,
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
        return self.segment(load_image(image, self.depth_), **options).labels

    @validated
    def segment(self, image: Image.Image, **options: Any) -> Segmentation:
        """Predict like :meth:`predict`; also return probabilities, logits and features.

        Args:
            image: Pillow image in RGB.
            **options: fields of :class:`primaps.config.InferenceOptions`.

        Raises:
            ModelError, InputError: as :meth:`predict`.
        """
        return self.segmenter.segment(image, InferenceOptions(**options))

    def prediction_digest(self) -> str:
        """Return the SHA-256 of everything that a prediction with default options depends on."""
        network = f"{self.network.digest or self.network.name} {self.network.arithmetic}"
        text = f"{network} {self.size} {self.config.cosine}"
        text += "" if self.depth_ is None else f" {self.depth_} bits"
        if self.projection is not None:
            text += f" {self.projection.digest or self.projection.name}"
        if self.prototypes_ is not None:
            text += str(weights_digest(self.prototypes_))
        if self.taught_ is not None:
            taught = self.taught_
            text += f" taught {weights_digest(taught.classifier)} {taught.reject} {taught.level}"
            if taught.pixels is not None:
                text += f" {tensors_digest(taught.pixels.tensors().values())}"
        if self.legend_ is not None:
            text += f" {self.legend_.table().tolist()}"
        return hashlib.sha256(text.encode()).hexdigest()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model to a folder, each file atomically.

        Args:
            folder: folder for ``model.safetensors``, ``config.json``, ``history.json``, the class
                tree and, if the classes were edited, ``edits.json``. A taught model also has
                ``taught.safetensors``, and its annotations are appended to ``annotations.jsonl``.

        Raises:
            ModelError: the model is not fitted.
            OutputError: the folder has files with these names that primaps did not write.
            EditError: the model has edits, and the folder has an ``edits.json`` of another fit.
        """
        if self.prototypes_ is None:
            raise ModelError("the model is not fitted: call fit before save_pretrained")
        backbone, plan = self.backbone, schedule(self.config, self._images, self.clusters)
        saved = SavedModel(
            self.config,
            BackboneRecord(backbone.name, backbone.digest, backbone.patch_size, backbone.positions),
            self.projection,
            self.prototypes_,
            self.history_,
            TrainingRecord(
                self._images,
                plan.all_init_steps,
                plan.steps,
                self.config.method == "probe",
                self.depth_,
            ),
            self.class_summary_ if self.taught_ is None else self._fit_summary,
            self.edits_,
            self.taught_,
            self.verdict,
        )
        write_model(folder, saved, projection_backbone=self.network is not backbone)

    @property
    def clusters(self) -> int | None:
        """Number of clusters that the projection contains, or None."""
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
        """Load a model from a folder or from the hub.

        Args:
            folder: folder that :meth:`save_pretrained` wrote, or a hub id (owner/name).
            backbone: the backbone of the fit; required if it was a callable, otherwise it is
                loaded by its name.
            device: ``auto``, ``cpu``, ``cuda``, ...
            projection: the projection of the fit; required if it was a callable.
            engine: engine of the backbone, see :func:`primaps.load_backbone`.

        Raises:
            ModelError: the folder is not a model, or the backbone has other weights.
        """
        found = read_model(folder, projection)
        unused = found.config.unused
        options = {k: v for k, v in asdict(found.config).items() if k not in unused}
        options["backbone"] = fitted_backbone(folder, found, backbone, device, engine)
        options["precision"] = options["backbone"].precision
        model = cls(**options, device=device, projection=found.projection)
        model.prototypes_ = found.prototypes.to(model.backbone.device)
        model._images, model.history_ = found.training.images, found.history
        model.depth_ = found.training.depth
        model.class_summary_, model.edits_ = found.shown_summary, found.edits
        model.taught_, model._fit_summary = found.taught, found.class_summary
        if found.taught is None:
            model._fit_summary = None
        if model.class_summary_ is not None and found.edits:
            model.legend_ = legend(model.class_summary_.tree, found.edits)
        return model
