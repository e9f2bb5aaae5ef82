"""What an experiment takes before anything runs: what each row needs, and an estimate of its time.

Rows share features, masks and fits; the first row that needs one pays for it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from primaps.config import Config
from primaps.em.fit import Schedule, schedule
from primaps.projections.stego import SHIFT_STEPS, StegoSettings
from primaps.projections.training import STEPS, projection_settings
from primaps.reproduction.data_sources import Source, image_counts, source_counts
from primaps.reproduction.reproduction import Reproduction
from primaps.reproduction.rows import TableRow
from primaps.utils.inputs import read_json

# Blocks, channels and patch size.
ARCHITECTURES = {
    "dino-vits8": (12, 384, 8),
    "dino-vitb8": (12, 768, 8),
    "dinov2-vits14": (12, 384, 14),
    "dinov2-vitb14": (12, 768, 14),
}
_FIELDS = ("num_hidden_layers", "hidden_size", "patch_size")  # in config.json
UNKNOWN_ARCHITECTURE = ARCHITECTURES["dinov2-vitb14"]  # of a backbone that is not known


HEAD = 90
"""Products of a step of STEGO or HP, per image and squared channel; measured for 384 and 768."""


@dataclass(frozen=True)
class Rate:
    """How fast a device is, in seconds.

    Attributes:
        words: where the figures are from.
        flop: of a backbone.
        mask: of the proposals of an image without the CRF.
        crf: of an image.
        product: of a step of training, per image, position, channel and class.
    """

    words: str
    flop: float
    mask: float
    crf: float
    product: float


GPU = Rate(
    "GPU: 20 TFLOP/s, half the peak of the paper's A6000, and 20 ms per image for the CRF; assumed",
    flop=1 / 20e12,
    mask=0.01,
    crf=0.02,
    product=1e-11,
)


def cpu_rate() -> Rate:
    """Of this machine: a matrix product, measured now, of which a network reaches about 60 %."""
    x, y = torch.randn(1600, 768), torch.randn(768, 3072)
    seconds = []
    for _ in range(4):
        began = time.perf_counter()
        x @ y
        seconds.append(time.perf_counter() - began)
    flops = 0.6 * 2 * 1600 * 768 * 3072 / min(seconds[1:])
    words = f"CPU: {flops / 1e9:.0f} GFLOP/s, from a matrix product measured now on this machine"
    words += "; 0.16 s per image for the CRF and training as measured on two cores of an AMD EPYC"
    return Rate(words, flop=1 / flops, mask=0.005, crf=0.16, product=4e-10)


@dataclass(frozen=True)
class Cost:
    """Work of a row: forward passes of images, masks, CRFs, and products of training: those of
    prototypes, and of a head of STEGO or HP where it is trained here."""

    forwards: float = 0
    masks: float = 0
    crfs: float = 0
    products: float = 0

    def seconds(self, rate: Rate, flops: float) -> float:
        """On a device, with a backbone of ``flops`` per forward pass."""
        return (
            self.forwards * flops * rate.flop
            + self.masks * rate.mask
            + self.crfs * rate.crf
            + self.products * rate.product
        )


def architecture(backbone: str) -> tuple[int, int, int]:
    """Blocks, channels and patch size of a backbone by name or folder; as ViT-B/14 if unknown."""
    path = Path(backbone).expanduser() / "config.json"
    if backbone in ARCHITECTURES or not path.is_file():
        return ARCHITECTURES.get(backbone, UNKNOWN_ARCHITECTURE)
    about = read_json(path, dict[str, Any])
    depth, width, patch = (about.get(name) for name in _FIELDS)
    known = all(isinstance(one, int) and one > 0 for one in (depth, width, patch))
    return (depth, width, patch) if known else UNKNOWN_ARCHITECTURE


def forward_flops(backbone: str, size: int) -> float:
    """Of a ViT on a square image: twice the products of its matrices.

    Examples:
        >>> round(forward_flops("dino-vits8", 320) / 1e9)
        115
    """
    depth, width, patch = architecture(backbone)
    tokens = (size // patch) ** 2 + 1
    block = 12 * tokens * width**2 + 2 * tokens**2 * width
    return 2 * (depth * block + tokens * 3 * patch**2 * width)


def training_products(method: str, images: int, width: int, step: float) -> float:
    """Of the training of STEGO or HP on features of ``width`` channels, where STEGO finds its
    shifts by k-means first.

    Args:
        step: products of a step of that k-means.
    """
    settings = projection_settings(method.lower())
    head = STEPS * min(settings.batch_size, images) * HEAD * width**2
    return head + (SHIFT_STEPS * step if isinstance(settings, StegoSettings) else 0)


class Estimator:
    """Costs of rows in the order in which they run, each part of the work counted once.

    Args:
        sources: data sets that were read already.
    """

    def __init__(
        self, reproduction: Reproduction, sources: Mapping[str, Source] | None = None
    ) -> None:
        self.reproduction = reproduction
        self.paid: set[str] = set()
        self.counts = {name: source_counts(source) for name, source in (sources or {}).items()}

    def flops(self, row: TableRow) -> float:
        """Of a forward pass of the row's backbone."""
        return forward_flops(row.backbone, self.size(row))

    def size(self, row: TableRow) -> int:
        """Shorter side of the images in pixels."""
        patch = architecture(row.backbone)[2]
        return self.reproduction.options.get("size") or max(1, round(320 / patch)) * patch

    def cost(self, row: TableRow, seed: int) -> Cost:
        """Work that is left for a run of a row after those asked for before."""
        parts = [
            cost
            for key, cost in self._parts(row, seed)
            if not (key in self.paid or self.paid.add(key))  # type: ignore[func-returns-value]
        ]
        fields = ("forwards", "masks", "crfs", "products")
        return Cost(*(sum(getattr(part, name) for part in parts) for name in fields))

    def schedule(self, row: TableRow, seed: int) -> Schedule:
        """Steps of a run of a row; none where nothing is fitted."""
        images, _, classes = self.image_counts(row)
        config = Config(classes, **self.reproduction.config(row, seed))
        if row.kind in ("oracle", "clusters"):
            return Schedule(0, 0, 0)
        given = bool(row.projection) and not self.reproduction.trains(row)
        return schedule(config, images, classes if given and row.kind == "em" else None)

    def image_counts(self, row: TableRow) -> tuple[int, int, int]:
        """Images to fit, images to score, and classes."""
        if row.dataset not in self.counts:
            root = self.reproduction.roots.get(row.dataset)
            self.counts[row.dataset] = image_counts(row.dataset, root)
        fitted, scored, classes = self.counts[row.dataset]
        return fitted, fitted if row.split == "train" else scored, classes

    def _parts(self, row: TableRow, seed: int) -> Iterator[tuple[str, Cost]]:
        images, scored, classes = self.image_counts(row)
        config = Config(classes, **self.reproduction.config(row, seed))
        here = f"{row.dataset} {row.backbone}"
        masks = f"{config.threshold} {config.anchor} {config.iterative} {config.mask_crf}"
        if row.kind == "oracle":
            crfs = scored if config.mask_crf else 0
            yield f"{here} oracle {row.split} {masks}", Cost(scored, scored, crfs)
            return
        plan = self.schedule(row, seed)
        batch = min(config.batch_size, images)
        _, width, patch = architecture(row.backbone)
        step = batch * width * (self.size(row) // patch) ** 2 * classes
        codes = self.reproduction.codes(row)
        network = here if self.reproduction.trains(row) else f"{here} {codes}"
        if row.kind != "clusters":
            yield f"{network} features", Cost(forwards=2 * images)
        if self.reproduction.trains(row):
            head = training_products(row.projection, images, width, step)
            yield f"{here} {codes}, seed {seed}", Cost(products=head)
        fresh = 0
        if row.kind == "em":
            yield f"{here} masks {masks}", Cost(0, images, images if config.mask_crf else 0)
            for view in range(0 if config.views == "fresh" else config.views):
                yield f"{network} view {view}", Cost(forwards=images)
            fresh = plan.steps * batch if config.views == "fresh" else 0
        fit = f"{here} {codes} {config}"
        yield fit, Cost(forwards=fresh, products=(plan.all_init_steps + plan.steps) * step)
        yield f"{network} scored", Cost(forwards=2 * scored)
        yield f"{fit} {row.crf}", Cost(crfs=scored if row.crf else 0.05 * scored)
