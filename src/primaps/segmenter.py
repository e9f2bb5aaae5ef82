"""What a user holds: fit to images, predict their classes, save and load."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer, UInt8
from PIL import Image
from torch import Tensor

import primaps
from primaps.backbones import Backbone, load_backbone, weights_digest
from primaps.classes.apply import final_map
from primaps.classes.edits import legend
from primaps.classes.inventory import Inventory, take_inventory
from primaps.classes.legend import Legend
from primaps.classes.masks import mask_table
from primaps.classes.tree import TreeError
from primaps.config import Config
from primaps.crf import DenseCRF
from primaps.data import (
    Dataset,
    ImageFile,
    Problem,
    find_images,
    fit_to_patches,
    pair_up,
    to_tensor,
)
from primaps.distributed import processes
from primaps.extraction import Extracted, extract, mirrored_mean
from primaps.fitting import fit_prototypes
from primaps.imagesize import largest_channel, upsample
from primaps.probe import LinearProbe
from primaps.progress import Report, silent
from primaps.projections.checkpoints import as_projection
from primaps.projections.projection import Projection
from primaps.proposals import image_masks
from primaps.prototypes import Prototypes
from primaps.stores import MaskMaker
from primaps.training import Figures, Recorder

logger = logging.getLogger("primaps")
Images = str | Path | Sequence[str | Path] | Sequence[ImageFile] | Sequence[Image.Image]


class ModelError(RuntimeError):
    """A folder holds no model of this package, or one that does not fit; the message says why."""


class PriMaPsEM:
    """Unsupervised semantic segmentation: classes found in images, without labels.

    Args:
        classes: number of classes K to find.
        backbone: name, hub id, folder, file, callable or :class:`primaps.Backbone`.
        device: ``auto``, ``cpu``, ``cuda``, ...
        patch_size: only with a callable.
        projection: features to the codes that prototypes are fitted to, masks staying those of the
            features: a :class:`primaps.projections.Projection`, its folder, a checkpoint of STEGO
            or HP, or a callable of yours.
        **options: fields of :class:`primaps.Config`.

    Attributes:
        config: all options.
        prototypes_: the K fitted prototypes, or the linear probe; None before :meth:`fit`.
        history_: per stage and epoch the loss and label-free diagnostics.
        samples_: a few of the training images, 8-bit, to show.
        inventory_: tree and trust of the classes; None without masks.
        edits_: of the classes, as in ``classes.json``.
        legend_: names and colours of the classes that :meth:`predict` gives: the model's own if
            None, otherwise those after edits or a cut.

    Raises:
        ValueError: an option is out of its range.
        WeightsError: the backbone has no weights here.

    Examples:
        >>> images = [Image.effect_noise((48, 40), 90).convert("RGB") for _ in range(4)]
        >>> model = PriMaPsEM(2, backbone=torch.nn.AvgPool2d(8), patch_size=8, size=32,
        ...                   epochs=1, min_steps=2, min_init_steps=2, crf=False, device="cpu")
        >>> model.fit(images).predict(images[0]).shape
        torch.Size([40, 48])
    """

    def __init__(
        self,
        classes: int,
        *,
        backbone: str | Path | Callable[[Tensor], Tensor] | Backbone = "dinov2-vits14",
        device: str | torch.device = "auto",
        patch_size: int | None = None,
        projection: Projection | str | Path | Callable[[Tensor], Tensor] | None = None,
        **options: Any,
    ) -> None:
        known = {field.name for field in fields(Config)}
        if unknown := sorted(options.keys() - known):
            raise ValueError(f"unknown option {unknown[0]!r}; there are {', '.join(sorted(known))}")
        name = str(backbone) if isinstance(backbone, str | Path) else ""
        self.config = Config(classes, **{"backbone": name, **options})
        self.backbone = load_backbone(backbone, device, patch_size, self.config.precision)
        size = self.config.size or self.backbone.default_size
        if size % self.backbone.patch_size:
            patch = self.backbone.patch_size
            raise ValueError(
                f"size {size} is not a multiple of the patch size {patch} of {self.backbone.name}; "
                f"{max(1, round(size / patch)) * patch} is"
            )
        self.config = Config(
            **{
                **asdict(self.config),
                "size": size,
                "backbone": self.backbone.name,
                "precision": self.backbone.precision,
            }
        )
        self.projection = None if projection is None else as_projection(projection)
        if self.projection is not None:
            self.projection.to(self.backbone.device)
        self.prototypes_: Prototypes | LinearProbe | None = None
        self.history_: list[Figures] = []
        self.samples_: UInt8[Tensor, "s 3 H W"] | None = None
        self.inventory_: Inventory | None = None
        self.edits_: list[dict[str, Any]] = []
        self.legend_: Legend | None = None
        self._images = 0

    @property
    def size(self) -> int:
        """Shorter side of images in pixels."""
        return cast(int, self.config.size)

    def fit(
        self,
        images: Images,
        labels: str | Path | Dataset | None = None,
        *,
        store: str | Path | None = "auto",
        checkpoints: str | Path | None = None,
        report: Report = silent,
        problem: Problem = logger.warning,
        log: Callable[[Figures], None] | None = None,
    ) -> PriMaPsEM:
        """Fit to images: features, proposals, k-means start, EM (section 3.2).

        Args:
            images: files, folders or globs, or Pillow images. Each is scaled and cut to its
                centred square.
            labels: folder of label maps, or the data set that the images are of; for the linear
                probe, and for nothing else.
            store: folder that keeps features and masks, so that they are computed once and for
                all; ``auto`` is memory if they take less than 2 GB, else the cache; None is memory.
            checkpoints: folder of the training state: the same call goes on where it was stopped.
            report: told about progress.
            problem: told about every image that cannot be read; the others go on.
            log: called with a line of figures per epoch.

        Raises:
            ImageError: no image could be read.
            ValueError: more classes than the features can start, or labels are missing or not
                wanted.
        """
        method = self.config.method
        if (labels is not None) != (method == "probe"):
            raise ValueError(
                "labels are for method='probe' alone: PriMaPs-EM and k-means take none"
                if labels is not None
                else "the linear probe is trained on labels: give the folder of label maps"
            )
        data = None
        files: Sequence[ImageFile] = []
        if labels is None:
            files = as_files(images)
        else:
            data = labels if isinstance(labels, Dataset) else pair_up(cast(Any, images), labels)
            files = data.samples
        extracted = extract(
            files,
            self.backbone,
            self.size,
            views=self.config.views if method == "em" else 0,
            masks=self.mask_maker() if method == "em" else None,
            labels=data,
            seed=self.config.seed,
            store=store,
            report=report,
            problem=problem,
        )
        return self.fit_extracted(extracted, checkpoints, report, log)

    def fit_extracted(
        self,
        extracted: Extracted,
        checkpoints: str | Path | None = None,
        report: Report = silent,
        log: Callable[[Figures], None] | None = None,
    ) -> PriMaPsEM:
        """Fit to features and masks that are there already, as :meth:`fit` does after computing
        them: for several fits on the same images."""
        self._images, self.samples_ = len(extracted.keys), extracted.samples
        recorder = Recorder(
            max(1, self._images // self.config.batch_size),
            report,
            checkpoints,
            self._fingerprint(extracted),
            log,
        )
        model = fit_prototypes(self.config, extracted, self.projection, recorder)
        self.prototypes_, self.history_ = model.requires_grad_(False), recorder.epochs
        self.inventory_, self.edits_, self.legend_ = None, [], None
        if extracted.masks is not None and isinstance(model, Prototypes):
            views = replace(extracted.views, projection=self.projection)
            masks = mask_table(views, extracted.masks)
            self.inventory_ = take_inventory(
                masks, model.direction, model.scale, seed=self.config.seed
            )
        return self

    def cut(self, classes: int) -> PriMaPsEM:
        """The same model with another number of classes: a cut of its tree, in no time.

        At its own K it predicts what it did, to the byte. Names, colours and hidden classes of
        ``edits_`` stay; merges and splits do not, as the cut says which classes there are.

        Raises:
            TreeError: the model has no tree, or the tree no such cut.
        """
        if self.inventory_ is None:
            raise TreeError("the model has no tree of classes: fit it again, with masks")
        other = copy.copy(self)
        other.legend_ = legend(self.inventory_.tree, self.edits_, classes)
        return other

    def _fingerprint(self, extracted: Extracted) -> str:
        """Of everything that decides the result of training."""
        projection = self.projection and (self.projection.digest or self.projection.name)
        about = [asdict(self.config), self.backbone.digest, projection, extracted.digest]
        about.append(processes())
        return hashlib.sha256(json.dumps([primaps.__version__, *about]).encode()).hexdigest()

    def mask_maker(self) -> MaskMaker:
        """:meth:`masks`, and the options that it depends on."""
        return MaskMaker(self.masks, self._mask_options())

    def masks(
        self, features: Float[Tensor, "b c h w"], images: UInt8[Tensor, "b 3 H W"]
    ) -> Integer[Tensor, "b H W"]:
        """Proposals at image size with this model's options of Table 4a; 0 = ignore."""
        return image_masks(features, images, **self._mask_options())

    def _mask_options(self) -> dict[str, Any]:
        config = self.config
        options = {name: getattr(config, name) for name in ("threshold", "anchor", "iterative")}
        return {**options, "crf": "dense" if config.crf else None}

    def predict_probabilities(
        self, images: UInt8[Tensor, "b 3 H W"], crf: bool = True
    ) -> Float[Tensor, "b k H W"]:
        """Class probabilities of images whose sides are multiples of the patch size.

        Features are averaged over each image and its mirror image; logits are upsampled and, with
        ``crf``, refined by the dense CRF.

        Raises:
            ModelError: the model is not fitted.
        """
        if self.prototypes_ is None:
            raise ModelError("the model is not fitted: call fit first, or load one")
        return self.probabilities(mirrored_mean(self.backbone, images), images, crf)

    @torch.no_grad()
    def probabilities(
        self,
        features: Float[Tensor, "b c h w"],
        images: UInt8[Tensor, "b 3 H W"],
        crf: bool = True,
    ) -> Float[Tensor, "b k H W"]:
        """Class probabilities at image size from the backbone's features."""
        if self.prototypes_ is None:
            raise ModelError("the model is not fitted: call fit first, or load one")
        if self.projection is not None:
            features = self.projection(features)
        if self.config.cosine:  # logits are cosines, as in Eq. 9
            features = F.normalize(features, dim=1)
        logits = self.prototypes_(features)
        probabilities = upsample(logits, images.shape[-2:]).softmax(1)
        return DenseCRF()(images.to(logits.device), probabilities) if crf else probabilities

    def predict(self, image: Image.Image, crf: bool = True) -> Integer[Tensor, "H W"]:
        """Class of every pixel of a whole image, at its own size.

        The image is scaled as in training (shorter side ``size``), not cropped; the probabilities
        are scaled back bilinearly.
        """
        scaled = fit_to_patches(image.convert("RGB"), self.size, self.backbone.patch_size)
        images = to_tensor(scaled)[None]
        features = mirrored_mean(self.backbone, images)
        probabilities = self.probabilities(features, images, crf)[0]
        labels = largest_channel(probabilities, (image.height, image.width))
        return self.relabel(labels, features[0])

    @torch.no_grad()
    def relabel(
        self, labels: Integer[Tensor, "H W"], features: Float[Tensor, "c h w"]
    ) -> Integer[Tensor, "H W"]:
        """Classes of the model to those of ``legend_``; 255 for hidden ones.

        Args:
            labels: 0..K-1 of an image.
            features: of the backbone, of that image.
        """
        if self.legend_ is None or self.inventory_ is None:
            return labels
        if self.projection is not None:
            features = self.projection(features[None])[0]
        return final_map(self.inventory_.tree, self.legend_, labels, features)

    @property
    def classes(self) -> int:
        """Number of classes that :meth:`predict` gives."""
        return self.config.classes if self.legend_ is None else len(self.legend_.shown)

    def digest(self) -> str:
        """SHA-256 of what decides a prediction: prototypes, backbone and size."""
        text = f"{self.backbone.digest or self.backbone.name} {self.size} {self.config.cosine}"
        if self.projection is not None:
            text += f" {self.projection.digest or self.projection.name}"
        if self.prototypes_ is not None:
            text += str(weights_digest(self.prototypes_))
        if self.legend_ is not None:
            text += f" {self.legend_.table().tolist()}"
        return hashlib.sha256(text.encode()).hexdigest()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``model.safetensors``, ``config.json`` and ``history.json``, each atomically."""
        from primaps.pretrained import save

        save(self, folder)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        backbone: str | Path | Callable[[Tensor], Tensor] | Backbone | None = None,
        device: str | torch.device = "auto",
        projection: Callable[[Tensor], Tensor] | None = None,
    ) -> PriMaPsEM:
        """Load a model from a folder, or from the hub by its id (owner/name).

        Args:
            backbone: needed if the model was fitted with a callable; otherwise the one that it was
                fitted with is found by its name.
            projection: needed if the model was fitted with a callable.

        Raises:
            ModelError: no model of this package is there, or the backbone has other weights.
        """
        from primaps.pretrained import load

        return load(folder, backbone, device, projection)


def as_files(images: Images) -> list[ImageFile]:
    """Paths become the files that they name; image files and Pillow images stay what they are."""
    items: list[Any] = [images] if isinstance(images, str | Path) else list(images)
    if items and all(isinstance(item, ImageFile) for item in items):
        return items
    if items and all(isinstance(item, Image.Image) for item in items):
        return [ImageFile(item, str(i)) for i, item in enumerate(items)]
    return find_images(items)
