"""What a user holds: fit to images, predict their classes, save and load.

This file is long because it is the whole public surface of a model, documented method by method;
what the methods do is in the modules that they call.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
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
    weights_digest,
)
from primaps.backbones.load import load_backbone
from primaps.classes.legend import Legend, final_map, legend
from primaps.classes.summary import ClassSummary, summarize_classes
from primaps.classes.tree import TreeError
from primaps.config import CacheContent, Classes, Config, Size, check_names, check_used
from primaps.crf import CLASS_CRF
from primaps.data import (
    Dataset,
    ImageCollection,
    ImageFile,
    LogCallback,
    fit_to_patches,
    image_files,
    load_image,
    pair_up,
    to_tensor,
)
from primaps.data.sampling import drawn
from primaps.em.fit import fit_prototypes, resolve_cache_content, schedule
from primaps.em.kmeans import Prototypes
from primaps.em.orthogonal import CONSENSUS
from primaps.em.probe import LinearProbe
from primaps.em.training import HistoryLine, Recorder
from primaps.features.extract import BACKBONE_BATCH, Extracted, extract
from primaps.features.feature_cache import MaskMaker
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
from primaps.utils.bilinear import largest_channel, upsample
from primaps.utils.distributed import processes
from primaps.utils.errors import InputError
from primaps.utils.progress import ProgressCallback, silent
from primaps.utils.validation import validated
from primaps.version import VERSION

logger = logging.getLogger("primaps")


@dataclass(frozen=True)
class Segmentation:
    """An image as a model sees it.

    Attributes:
        labels: class of each pixel of the image, as :meth:`PriMaPsEM.predict` gives it.
        probabilities: of the model's own K classes, at the size that the model works at.
        features: of the model's ``encoder``.
    """

    labels: Integer[Tensor, "H W"]
    probabilities: Float[Tensor, "k h w"]
    features: Float[Tensor, "c h2 w2"]

    @property
    def margin(self) -> Float[Tensor, "h w"]:
        """By how much the first class leads the second, in [0, 1]: how sure the model is."""
        first, second = self.probabilities.topk(2, 0).values
        return first - second


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

    @validated
    def predict_probabilities(
        self, images: UInt8[Tensor, "b 3 H W"], crf: bool = True
    ) -> Float[Tensor, "b k H W"]:
        """Class probabilities of images whose sides are multiples of the patch size.

        Logits of the features, or codes, are upsampled and, with ``crf``, refined by the dense CRF.
        Unlike in the paper's protocol (:func:`primaps.evaluate`) features are not averaged with
        those of the flipped image, which takes a second pass of the network and gains nothing.

        Raises:
            ModelError: the model is not fitted.
        """
        return self.probabilities(image_features(self.encoder, images), images, crf)

    @validated
    @torch.no_grad()
    def logits(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k h w"]:
        """Class logits, where the features are: cosines as in Eq. 9, or those of the probe.

        Args:
            features: of ``encoder``.

        Raises:
            ModelError: the model is not fitted.
        """
        if self.prototypes_ is None:
            raise ModelError("the model is not fitted: call fit first, or load one")
        if self.config.cosine:
            features = F.normalize(features, dim=1)
        return self.prototypes_(features)

    @validated
    @torch.no_grad()
    def probabilities(
        self,
        features: Float[Tensor, "b c h w"],
        images: UInt8[Tensor, "b 3 H W"],
        crf: bool = True,
    ) -> Float[Tensor, "b k H W"]:
        """Class probabilities at image size from features of ``encoder``.

        Raises:
            ModelError: the model is not fitted.
        """
        logits = self.logits(features)
        if crf:
            return CLASS_CRF(images.to(logits.device), logits=logits)
        return upsample(logits, images.shape[-2:]).softmax(1)

    @validated
    def predict(
        self,
        image: str | Path | Image.Image | np.ndarray | Tensor,
        crf: bool = True,
        size: Size | None = None,
    ) -> Integer[Tensor, "H W"]:
        """Class of every pixel of a whole image, at its own size.

        The image is whatever :func:`primaps.load_image` takes. It is scaled as in training, not
        cropped; the probabilities are scaled back bilinearly.

        Args:
            size: shorter side in pixels; None is that of training. A larger one finds smaller
                things, in more time.

        Raises:
            ModelError: the model is not fitted.
            InputError: the size is out of its range, or takes more memory than there is.
        """
        return self.segment(load_image(image), crf, size).labels

    @validated
    def segment(
        self, image: Image.Image, crf: bool = True, size: Size | None = None
    ) -> Segmentation:
        """:meth:`predict`, with what it was found by.

        Raises:
            ModelError, InputError: as there.
        """
        side = image_side(self.backbone, size or self.size, 1, self.config.classes)
        scaled = fit_to_patches(image, side, self.backbone.patch_size)
        images = to_tensor(scaled)[None]
        features = image_features(self.encoder, images)
        probabilities = self.probabilities(features, images, crf)[0]
        labels = largest_channel(probabilities, (image.height, image.width))
        return Segmentation(self.relabel(labels, features[0]), probabilities, features[0])

    @torch.no_grad()
    def relabel(
        self, labels: Integer[Tensor, "H W"], features: Float[Tensor, "c h w"]
    ) -> Integer[Tensor, "H W"]:
        """Classes of the model to those of ``legend_``; 255 for hidden ones.

        Args:
            labels: 0..K-1 of an image.
            features: of ``encoder``, of that image.
        """
        if self.legend_ is None or self.class_summary_ is None:
            return labels
        return final_map(self.class_summary_.tree, self.legend_, labels, features)

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
        precision: str | None = None,
        engine: str | None = None,
    ) -> PriMaPsEM:
        """Load a model from a folder, or from the hub by its id (owner/name).

        Args:
            backbone: needed if the model was fitted with a callable; otherwise the one that it was
                fitted with is found by its name.
            projection: needed if the model was fitted with a callable.
            precision: of the backbone, if another than in the fit: ``auto``, as ``primaps predict``
                takes it, is bfloat16 on processors with instructions for it.
            engine: of :func:`primaps.load_backbone`; ``primaps predict`` takes ``auto``.

        Raises:
            ModelError: no model of this package is there, or the backbone has other weights.
        """
        found = read_model(folder, projection)
        unused = found.config.unused
        options = {k: v for k, v in asdict(found.config).items() if k not in unused}
        options["backbone"] = fitted_backbone(folder, found, backbone, device, precision, engine)
        options["precision"] = options["backbone"].precision
        model = cls(**options, device=device, projection=found.projection)
        model.prototypes_ = found.prototypes.to(model.backbone.device)
        model._images, model.history_ = found.training.images, found.history
        model.class_summary_, model.edits_ = found.class_summary, found.edits
        if found.class_summary is not None and found.edits:
            model.legend_ = legend(found.class_summary.tree, found.edits)
        return model
