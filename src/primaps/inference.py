"""Inference: the one path from images or feature maps to class probabilities and label maps.

Everything that predicts calls :class:`Segmenter`: :meth:`primaps.PriMaPsEM.predict`,
:func:`primaps.predict_files`, :func:`primaps.evaluate`, scenes, the report and the studio. What
differs between them is in :class:`primaps.config.InferenceOptions`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer, UInt8
from PIL import Image
from torch import Tensor

from primaps.backbones.backbone import Backbone, flip_average, image_features, image_side
from primaps.backbones.load import load_backbone, resolve_precision
from primaps.classes.legend import HIDDEN, Legend, final_map
from primaps.classes.tree import Tree
from primaps.config import InferenceOptions
from primaps.crf import CLASS_CRF
from primaps.data import fit_to_patches, to_tensor
from primaps.em.kmeans import Prototypes
from primaps.em.probe import LinearProbe
from primaps.teach.pixels import PixelClassifier
from primaps.teach.taught import Taught
from primaps.teach.tokens import TokenClassifier
from primaps.utils.bilinear import largest_channel, upsample
from primaps.utils.errors import InputError

ImageSize = tuple[int, int]
"""Height and width in pixels."""


@dataclass(frozen=True)
class Segmentation:
    """The result of inference on one image.

    Attributes:
        labels: class of each pixel at the size of the image; 255 for hidden classes and rejected
            pixels.
        probabilities: probabilities of the K classes of the classifier, at the size of the scaled
            image. With ``reject``, an additional last channel is "none of these".
        logits: logits of these classes on the token grid.
        features: features (or codes) on the token grid.
    """

    labels: Integer[Tensor, "H W"]
    probabilities: Float[Tensor, "k h w"]
    logits: Float[Tensor, "k1 h2 w2"]
    features: Float[Tensor, "c h2 w2"]

    @property
    def margin(self) -> Float[Tensor, "h w"]:
        """Probability of the best class minus that of the second, in [0, 1]: the confidence."""
        best, second = self.probabilities.topk(2, 0).values
        return best - second


@dataclass(frozen=True)
class Segmenter:
    """A frozen encoder, a classifier of its features, and the classes to output.

    Attributes:
        encoder: network from images to the features (or codes) that are classified.
        classifier: prototypes, linear probe or taught classifier: features to K logits.
        classes: number of classes K of the classifier.
        size: default shorter side of the scaled images in pixels.
        cosine: whether features are L2-normalized before they are classified.
        tree: class tree; needed with ``legend``.
        legend: classes after edits or a cut; None outputs the K classes of the classifier.
        taught: what the model was taught, with the pixel level and the rejection thresholds; None
            for a model that was not taught.
    """

    encoder: Backbone
    classifier: Prototypes | LinearProbe | TokenClassifier
    classes: int
    size: int
    cosine: bool = False
    tree: Tree | None = None
    legend: Legend | None = None
    taught: Taught | None = None

    def resolve(self, options: InferenceOptions, images: int = 1) -> InferenceOptions:
        """Fill in the default size and precision.

        Args:
            images: number of images that are processed together, for the memory check.

        Raises:
            InputError: the images do not fit into memory, or the model was not taught what
                ``reject`` or ``level`` need.
        """
        encoder = self.encoder
        if options.level is not None and (
            self.taught is None or (options.level == "pixels" and self.taught.pixels is None)
        ):
            raise InputError(
                f"level is {options.level!r}, but the model was not taught on this level; teach it "
                "with this level, or leave level out"
            )
        if options.reject and self.reject_threshold(options) is None:
            raise InputError(
                "reject needs a model that was taught with annotations in at least two images; "
                "teach it, or leave reject out"
            )
        return replace(
            options,
            size=image_side(encoder, options.size or self.size, images, self.classes),
            precision=resolve_precision(options.precision, encoder.device, encoder.precision),
        )

    def scale(self, image: Image.Image, options: InferenceOptions) -> UInt8[Tensor, "3 h w"]:
        """Scale a whole image to the shorter side ``size``, in multiples of the patch size."""
        size = options.size or self.size
        return to_tensor(fit_to_patches(image, size, self.encoder.patch_size))

    def encode(
        self, images: UInt8[Tensor, "b 3 H W"], options: InferenceOptions
    ) -> Float[Tensor, "b c h w"]:
        """Compute features of images whose sides are multiples of the patch size."""
        encoder = self.encoder
        precision = resolve_precision(options.precision, encoder.device, encoder.precision)
        encoder = load_backbone(encoder, precision=precision)  # a shallow copy if it differs
        return (flip_average if options.flip else image_features)(encoder, images)

    @torch.no_grad()
    def logits(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k h w"]:
        """Classify features: cosine similarities to the prototypes (Eq. 9), or probe logits."""
        return self.classifier(F.normalize(features, dim=1) if self.cosine else features)

    def pixel_level(self, options: InferenceOptions) -> PixelClassifier | None:
        """Return the classifier of pixels, or None if predictions use tokens only."""
        if self.taught is None or (options.level or self.taught.level) == "tokens":
            return None
        return self.taught.pixels

    def reject_threshold(self, options: InferenceOptions) -> float | None:
        """Return the calibrated probability below which a pixel has no class, or None."""
        if self.taught is None:
            return None
        pixels = self.pixel_level(options)
        return self.taught.reject if pixels is None else pixels.reject

    @torch.no_grad()
    def probabilities(
        self,
        logits: Float[Tensor, "b k h w"],
        images: UInt8[Tensor, "b 3 H W"],
        options: InferenceOptions,
    ) -> Float[Tensor, "b channels H W"]:
        """Upsample logits to image size and apply the softmax, or with ``crf`` the dense CRF.

        On the pixel level, logits of pixels replace those of tokens. With ``reject``, an additional
        last channel is "none of these". Its unnormalized probability is the threshold, so it wins
        where no class reaches the threshold.
        """
        if (pixels := self.pixel_level(options)) is not None:
            logits = pixels.logits(logits, images)
        threshold = self.reject_threshold(options)
        if options.reject and threshold is not None:
            none = torch.full_like(logits[:, :1], math.log(max(threshold, 1e-30)))
            logits = torch.cat([logits.log_softmax(1), none], 1)
        if options.crf:
            return CLASS_CRF(images.to(logits.device), logits=logits)
        return upsample(logits, images.shape[-2:]).softmax(1)

    @torch.no_grad()
    def class_probabilities(
        self, features: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, "b classes h w"]:
        """Return the probabilities of the shown classes of the legend, for each token.

        Probabilities of merged classes are added. Those of hidden classes are left out.
        """
        found = self.logits(features).softmax(1)
        if self.legend is None or self.tree is None:
            return found
        result = found.new_zeros(len(found), len(self.legend.shown) + 1, *found.shape[2:])
        for k in range(self.classes):
            for image, p, tokens in zip(result, found, features, strict=True):
                labels = torch.full(p.shape[1:], k, device=p.device)
                shown = final_map(self.tree, self.legend, labels, tokens)
                shown = shown.clamp_max(len(self.legend.shown))  # HIDDEN
                image.scatter_add_(0, shown[None], p[k][None])
        return result[:, :-1]

    @torch.no_grad()
    def relabel(
        self, labels: Integer[Tensor, "H W"], features: Float[Tensor, "c h w"]
    ) -> Integer[Tensor, "H W"]:
        """Map classes of the classifier to classes of the legend.

        Hidden classes and rejected pixels, which have the value K, get the value 255.
        """
        if self.legend is None or self.tree is None:
            return labels
        found = final_map(self.tree, self.legend, labels.clamp_max(self.classes - 1), features)
        return torch.where(labels < self.classes, found, HIDDEN)

    def segment_batch(
        self,
        images: UInt8[Tensor, "b 3 h w"],
        sizes: Sequence[ImageSize],
        options: InferenceOptions,
        features: Float[Tensor, "b c h2 w2"] | None = None,
    ) -> list[Segmentation]:
        """Segment a batch of scaled images.

        Args:
            images: 8-bit RGB images; sides are multiples of the patch size.
            sizes: height and width of each label map, usually those of the original images.
            features: features of the images if they are known already; then ``flip`` and
                ``precision`` have no effect.
        """
        features = self.encode(images, options) if features is None else features
        logits = self.logits(features)
        probabilities = self.probabilities(logits, images, options)
        return [
            Segmentation(self.relabel(largest_channel(p, size), f), p, z, f)
            for p, z, f, size in zip(probabilities, logits, features, sizes, strict=True)
        ]

    def segment(self, image: Image.Image, options: InferenceOptions) -> Segmentation:
        """Segment a whole image at its own size.

        Raises:
            InputError: the scaled image does not fit into memory.
        """
        options = self.resolve(options)
        scaled = self.scale(image, options)[None]
        return self.segment_batch(scaled, [(image.height, image.width)], options)[0]
