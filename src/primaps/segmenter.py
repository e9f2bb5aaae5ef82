"""What a user holds: fit to images, predict their classes, save and load."""

from __future__ import annotations

import hashlib
import json
import logging
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer, UInt8
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

import primaps
from primaps.backbones import Backbone, load_backbone, weights_digest
from primaps.config import Config
from primaps.crf import DenseCRF
from primaps.data import ImageFile, find_images, fit_to_patches, to_tensor
from primaps.em import Settings, fit_em, fit_kmeans
from primaps.extraction import Extracted, Problem, extract, mirrored_mean
from primaps.files import atomic_path, write_json
from primaps.imagesize import upsample
from primaps.progress import Report, silent
from primaps.proposals import image_masks
from primaps.prototypes import Prototypes

logger = logging.getLogger("primaps")
FORMAT = 1


class ModelError(RuntimeError):
    """A folder holds no model of this package, or one that does not fit; the message says why."""


class PriMaPsEM:
    """Unsupervised semantic segmentation: classes found in images, without labels.

    Args:
        classes: number of classes K to find.
        backbone: name, hub id, folder, file, callable or :class:`primaps.Backbone`.
        device: ``auto``, ``cpu``, ``cuda``, ...
        patch_size: only with a callable.
        **options: fields of :class:`primaps.Config`.

    Attributes:
        config: all options.
        prototypes_: the K fitted prototypes; None before :meth:`fit`.
        history_: per stage and epoch the loss and label-free diagnostics.
        samples_: a few of the training images, 8-bit, to show.

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
        **options: Any,
    ) -> None:
        known = {field.name for field in fields(Config)}
        if unknown := sorted(options.keys() - known):
            raise ValueError(f"unknown option {unknown[0]!r}; there are {', '.join(sorted(known))}")
        name = str(backbone) if isinstance(backbone, str | Path) else ""
        self.config = Config(classes, **{"backbone": name, **options})
        self.backbone = load_backbone(backbone, device, patch_size)
        size = self.config.size or self.backbone.default_size
        if size % self.backbone.patch_size:
            patch = self.backbone.patch_size
            raise ValueError(
                f"size {size} is not a multiple of the patch size {patch} of {self.backbone.name}; "
                f"{max(1, round(size / patch)) * patch} is"
            )
        self.config = Config(
            **{**asdict(self.config), "size": size, "backbone": self.backbone.name}
        )
        self.prototypes_: Prototypes | None = None
        self.history_: list[dict[str, float | str]] = []
        self.samples_: UInt8[Tensor, "s 3 H W"] | None = None
        self._images = 0

    @property
    def size(self) -> int:
        """Shorter side of images in pixels."""
        return cast(int, self.config.size)

    def fit(
        self,
        images: str | Path | Sequence[str | Path] | Sequence[ImageFile] | Sequence[Image.Image],
        report: Report = silent,
        problem: Problem = logger.warning,
    ) -> PriMaPsEM:
        """Fit the prototypes to images: features, proposals, k-means start, EM (section 3.2).

        Args:
            images: files, folders or globs, or Pillow images. Each is scaled and cut to its
                centred square.
            report: told about progress.
            problem: told about every image that cannot be read; the others go on.

        Raises:
            ImageError: no image could be read.
            ValueError: more classes than the features can start.
        """
        files = as_files(images)
        extracted = extract(
            files,
            self.backbone,
            self.size,
            views=self.config.views if self.config.method == "em" else 0,
            masks=self.masks if self.config.method == "em" else None,
            seed=self.config.seed,
            report=report,
            problem=problem,
        )
        return self.fit_extracted(extracted, report)

    def fit_extracted(self, extracted: Extracted, report: Report = silent) -> PriMaPsEM:
        """Fit to features and masks that are there already, as :meth:`fit` does after computing
        them: for several fits on the same images."""
        config = self.config
        settings = Settings(**{f.name: getattr(config, f.name) for f in fields(Settings)})
        self._images, self.samples_ = len(extracted.keys), extracted.samples
        init_steps, steps = config.steps(self._images)
        recorder = _Recorder(report, max(1, self._images // config.batch_size))
        prototypes = fit_kmeans(
            extracted.views, config.classes, init_steps, settings, config.seed, recorder
        )
        if config.method == "em":
            if extracted.masks is None:
                raise ValueError("PriMaPs-EM needs masks: extract them with masks=model.masks")
            prototypes = fit_em(
                extracted.views, extracted.masks, prototypes, steps, settings, config.seed, recorder
            )
        self.prototypes_, self.history_ = prototypes.requires_grad_(False), recorder.epochs
        return self

    def masks(
        self, features: Float[Tensor, "b c h w"], images: UInt8[Tensor, "b 3 H W"]
    ) -> Integer[Tensor, "b H W"]:
        """Proposals at image size with this model's threshold and CRF; 0 = ignore."""
        crf = DenseCRF() if self.config.crf else None
        return image_masks(features, images, crf=crf, threshold=self.config.threshold)

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
        """Class probabilities at image size from features that are there already."""
        if self.prototypes_ is None:
            raise ModelError("the model is not fitted: call fit first, or load one")
        if self.config.method == "kmeans":  # logits are cosines, as in Eq. 9
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
        probabilities = self.predict_probabilities(to_tensor(scaled)[None], crf)[0]
        return largest_channel(probabilities, (image.height, image.width))

    def digest(self) -> str:
        """SHA-256 of what decides a prediction: prototypes, backbone and size."""
        text = f"{self.backbone.digest or self.backbone.name} {self.size}"
        if self.prototypes_ is not None:
            text += str(weights_digest(self.prototypes_))
        return hashlib.sha256(text.encode()).hexdigest()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``model.safetensors``, ``config.json`` and ``history.json``, each atomically."""
        if self.prototypes_ is None:
            raise ModelError("the model is not fitted: call fit first")
        folder = Path(folder)
        state = {
            name: value.cpu().contiguous() for name, value in self.prototypes_.state_dict().items()
        }
        with atomic_path(folder / "model.safetensors") as temporary:
            save_file(state, temporary, metadata={"format": "pt"})
        write_json(folder / "history.json", self.history_)
        start, steps = self.config.steps(self._images)
        content = {
            "format": FORMAT,
            "library": "primaps",
            "config": asdict(self.config),
            "backbone": {
                "name": self.backbone.name,
                "sha256": self.backbone.digest,
                "patch_size": self.backbone.patch_size,
            },
            "training": {"images": self._images, "init_steps": start, "steps": steps},
            "versions": {
                "primaps": primaps.__version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
        }
        write_json(folder / "config.json", content)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        backbone: str | Path | Callable[[Tensor], Tensor] | Backbone | None = None,
        device: str | torch.device = "auto",
    ) -> PriMaPsEM:
        """Load a model from a folder, or from the hub by its id (owner/name).

        Args:
            backbone: needed if the model was fitted with a callable; otherwise the one that it was
                fitted with is found by its name.

        Raises:
            ModelError: no model of this package is there, or the backbone has other weights.
        """
        path = _model_folder(folder)
        try:
            content = json.loads((path / "config.json").read_text("utf-8"))
            if content["library"] != "primaps" or content["format"] > FORMAT:
                raise KeyError("library")
            config, trained_on = dict(content["config"]), content["backbone"]
            state = load_file(path / "model.safetensors")
            direction = state["direction"]
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise ModelError(
                f"{folder} holds no model of primaps ({type(error).__name__}: {error}); "
                "give the folder that `primaps fit --out` wrote"
            ) from error
        given = backbone if backbone is not None else config["backbone"]
        if isinstance(given, str) and given.startswith("callable:"):
            raise ModelError(
                f"{folder} was fitted on features of your {given.removeprefix('callable:')}; "
                "pass it as from_pretrained(..., backbone=it)"
            )
        config.pop("backbone")
        model = cls(**config, backbone=given, device=device, patch_size=trained_on["patch_size"])
        if trained_on["sha256"] not in (None, model.backbone.digest):
            raise ModelError(
                f"{folder} was fitted on other weights of {trained_on['name']} than those found at "
                f"{model.backbone.source}; give the original weights as backbone"
            )
        model.prototypes_ = Prototypes(direction)
        model.prototypes_.load_state_dict(state)
        model.prototypes_.to(model.backbone.device).requires_grad_(False)
        model._images = content["training"]["images"]
        history = path / "history.json"
        model.history_ = json.loads(history.read_text("utf-8")) if history.is_file() else []
        return model


class _Recorder:
    """Passes progress on and averages the figures of each epoch."""

    def __init__(self, report: Report, per_epoch: int) -> None:
        self.report, self.per_epoch = report, per_epoch
        self.epochs: list[dict[str, float | str]] = []
        self.sums: dict[str, float] = {}
        self.count = 0

    def __call__(self, stage: str, done: int, total: int, figures: Mapping[str, float]) -> None:
        self.report(stage, done, total, figures)
        self.count += 1
        for name, value in figures.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        if done % self.per_epoch == 0 or done == total:
            epoch = -(-done // self.per_epoch)
            means = {name: value / self.count for name, value in self.sums.items()}
            self.epochs.append({"stage": stage, "epoch": epoch, "step": done, **means})
            self.sums, self.count = {}, 0


def as_files(images: Any) -> list[ImageFile]:
    """Paths become the files that they name; image files and Pillow images stay what they are."""
    if isinstance(images, str | Path):
        return find_images(images)
    items = list(images)
    if all(isinstance(item, ImageFile) for item in items) and items:
        return items
    if all(isinstance(item, Image.Image) for item in items) and items:
        return [ImageFile(item, str(i)) for i, item in enumerate(items)]
    return find_images(items)


def largest_channel(
    probabilities: Float[Tensor, "k h w"], size: tuple[int, int]
) -> Integer[Tensor, "H W"]:
    """Channel of the largest bilinearly scaled value, one channel at a time to spare memory.

    Examples:
        >>> largest_channel(torch.eye(2).view(2, 1, 2), (1, 4)).tolist()
        [[0, 0, 1, 1]]
    """
    best = upsample(probabilities[None, :1], size)[0, 0]
    winner = torch.zeros(size, dtype=torch.int16, device=best.device)
    for channel in range(1, len(probabilities)):
        value = upsample(probabilities[None, channel : channel + 1], size)[0, 0]
        winner[value > best] = channel
        best = torch.maximum(best, value)
    return winner


def _model_folder(folder: str | Path) -> Path:
    path = Path(folder).expanduser()
    if path.is_dir() or str(folder).count("/") != 1 or path.is_absolute():
        if not (path / "config.json").is_file():
            raise ModelError(
                f"{folder} holds no model of primaps (no config.json); give the folder that "
                "`primaps fit --out` wrote"
            )
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(folder), allow_patterns=["*.json", "*.safetensors"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise ModelError(
            f"{folder} is no folder here, and the hub has no such model or cannot be reached "
            f"({type(error).__name__})"
        ) from error
