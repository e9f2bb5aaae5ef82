"""What rows share while they run, and what decides the result of a run."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from primaps.backbones.backbone import Backbone
from primaps.backbones.load import load_backbone
from primaps.data import Dataset
from primaps.em.orthogonal import CONSENSUS
from primaps.model import PriMaPsEM
from primaps.projections import Projection, load_projection
from primaps.reproduction.costs import GPU, Rate, cpu_rate
from primaps.reproduction.data_sources import Source, fingerprint, load_source
from primaps.reproduction.reproduction import Reproduction
from primaps.reproduction.rows import TableRow
from primaps.utils.errors import InputError, PrimapsError
from primaps.version import VERSION

FORMAT = 2
"""Of results; a change of what they mean raises it."""


@dataclass
class Outcome:
    """What became of a row.

    Attributes:
        results: by seed.
        reason: why it has none, or not all.
        error: that was the reason, of its backbone or of a seed.
    """

    row: TableRow
    results: dict[int, dict[str, Any]] = field(default_factory=dict)
    reason: str = ""
    error: PrimapsError | None = None

    @property
    def iou(self) -> dict[str, float | None]:
        """IoU by class, 0..1, mean of the seeds; None if a class is nowhere."""
        each = [self.row.scores(result)["iou"] for result in self.results.values()]
        found = {title: [iou[title] for iou in each if iou[title] is not None] for title in each[0]}
        return {title: mean(values) if values else None for title, values in found.items()}


@dataclass
class Laboratory:
    """What rows share while they run: data and backbones."""

    reproduction: Reproduction
    sources: dict[str, Source] = field(default_factory=dict)
    prints: dict[str, tuple[str, str]] = field(default_factory=dict)
    backbones: dict[str, Backbone | PrimapsError] = field(default_factory=dict)
    checkpoints: dict[Path, Projection] = field(default_factory=dict)
    measured: Rate | None = None

    @property
    def used(self) -> dict[str, Backbone]:
        """Backbones that were loaded."""
        return {k: v for k, v in self.backbones.items() if isinstance(v, Backbone)}

    def rate(self, network: Backbone) -> Rate:
        """How fast the device of a backbone is."""
        if self.measured is None:
            self.measured = cpu_rate() if network.device.type == "cpu" else GPU
        return self.measured

    def source(self, name: str) -> Source:
        """A data set, read once."""
        if name not in self.sources:
            source = load_source(name, self.reproduction.roots[name])
            self.sources[name] = source
            self.prints[name] = (fingerprint(source.train), fingerprint(source.score))
        return self.sources[name]

    def backbone(self, name: str) -> Backbone | PrimapsError:
        """A backbone, loaded once, or why it cannot be loaded."""
        if name not in self.backbones:
            precision = self.reproduction.options.get("precision", "float32")
            try:
                network = load_backbone(
                    name, self.reproduction.device, precision=precision,
                    positions=self.reproduction.positions,
                )  # fmt: skip
                self.backbones[name] = network
            except PrimapsError as error:
                self.backbones[name] = error
        return self.backbones[name]

    def checkpoint(self, path: Path) -> Projection:
        """A checkpoint of STEGO or HP, read once."""
        if path not in self.checkpoints:
            self.checkpoints[path] = load_projection(None, path)
        return self.checkpoints[path]


@dataclass(frozen=True)
class Run:
    """One run of a row: everything that decides its result.

    Attributes:
        model: not fitted yet; of a projection that is trained here, without it.
        data: to be scored.
        images: fingerprint of the features that it is fitted to.
        fit: fingerprint of the fitted model.
        result: fingerprint of its scores.
    """

    row: TableRow
    seed: int
    model: PriMaPsEM
    source: Source
    data: Dataset
    images: str
    fit: str
    result: str

    @classmethod
    def prepare(cls, row: TableRow, seed: int, laboratory: Laboratory, network: Backbone) -> Run:
        """The model of a row and its fingerprints."""
        reproduction = laboratory.reproduction
        source = laboratory.source(row.dataset)
        options = reproduction.config(row, seed)
        options.pop("precision", None)  # the network has it already
        path = reproduction.projection(row) if row.projection else None
        if path is not None:
            options["projection"] = laboratory.checkpoint(path)
        device = network.device
        model = PriMaPsEM(len(source.train.classes), backbone=network, device=device, **options)
        if row.kind == "clusters":
            _need_clusters(model, row)
        config = {k: v for k, v in asdict(model.config).items() if k != "backbone"}
        codes = model.projection.digest if model.projection else reproduction.codes(row)
        train, score = laboratory.prints[row.dataset]
        networks = [network.digest, model.network.digest]
        about = [FORMAT, VERSION, networks, codes, config, row.kind, train]
        about += [CONSENSUS] if model.config.orthogonal else []
        whole, data = (train, source.train) if row.split == "train" else (score, source.score)
        scored = [*about, whole, row.crf, reproduction.resize]
        images = _digest([FORMAT, VERSION, train, networks, network.arithmetic, model.size])
        return cls(row, seed, model, source, data, images, _digest(about), _digest(scored))

    @property
    def name(self) -> str:
        """Of the file of results: readable, and unique by its fingerprint."""
        backbone = Path(self.row.backbone).name
        return f"{self.row.dataset}-{backbone}-{self.row.kind}-seed{self.seed}-{self.result[:12]}"


def _need_clusters(model: PriMaPsEM, row: TableRow) -> None:
    """STEGO or HP alone is scored with its own clusters: k-means would be another method.

    Raises:
        InputError: it has none, or not one for each class.
    """
    clusters = model.projection.clusters if model.projection else None
    classes = model.config.classes
    if clusters is None or len(clusters) != classes:
        known = "no clusters" if clusters is None else f"{len(clusters)} clusters"
        raise InputError(
            f"the checkpoint of {row.projection} has {known}, not one for each of the {classes} "
            "classes"
        )


def _digest(about: Any) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
