"""Run an experiment row by row and seed by seed. Finished runs are read from their files."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge
from jaxtyping import Float, UInt8
from torch import Tensor

from primaps.backbones.backbone import Backbone, both_features, flip_average, mean_of_both
from primaps.backbones.load import resolve_device
from primaps.data import LogCallback
from primaps.em.training import clear_checkpoints
from primaps.evaluation.oracle import evaluate_oracle
from primaps.evaluation.protocol import evaluate
from primaps.features.extract import extract
from primaps.features.feature_cache import ArrayCache
from primaps.model import PriMaPsEM
from primaps.planning import duration
from primaps.projections import Projection, train_projection
from primaps.reproduction.plan import GPU, Estimator, cpu_rate
from primaps.reproduction.registry import TableRow
from primaps.reproduction.report import write_report
from primaps.reproduction.run_context import Outcome, Run, RunContext
from primaps.reproduction.settings import Reproduction
from primaps.results import check_file
from primaps.utils.errors import InputError, PrimapsError
from primaps.utils.files import write_json
from primaps.utils.inputs import read_json
from primaps.utils.progress import ProgressCallback, silent
from primaps.utils.validation import validate

REPEAT = "remove the file to repeat the run"
FEATURE_FORMAT = 1
"""Format of cached features. Increase it when any digit of them changes."""


@dataclass(frozen=True)
class FitRecord:
    """The content of ``fit.json``, which marks a finished fit.

    Attributes:
        seconds: time of the fit.
        fingerprint: :attr:`Run.fit`.
    """

    seconds: Annotated[float, Ge(0)]
    fingerprint: str


def reproduce(
    name: str,
    reproduction: Reproduction,
    progress: ProgressCallback = silent,
    log: LogCallback = lambda sentence: None,
    note: Callable[[str], None] = lambda sentence: None,
) -> Path:
    """Run a table or figure of the paper and write its report.

    ``out/rows`` has one file per run, and ``out/models`` has the models and the projections that
    were trained for them. All experiments with the same ``out`` share both. The report is
    ``out/NAME/report.md``, beside ``report.json``, images and lists of image ids. A repeated call
    continues an interrupted one.

    Args:
        name: one of :data:`primaps.reproduction.NAMES`.
        reproduction: the settings.
        progress: progress callback, called after each unit of work.
        log: log callback, called with a sentence about each image that is skipped.
        note: callback that is called with a sentence about each run.

    Returns:
        Path of the report.

    Raises:
        InputError: the experiment is unknown, no row has data, or the device is not available.
        DataError: the layout of a data set is wrong.
        PrimapsError: no row has a result. If only some rows fail, the report states the reasons.
    """
    experiment = reproduction.experiment(name)
    if not any(row.dataset in reproduction.roots for row in experiment.rows):
        datasets = dict.fromkeys(row.dataset for row in experiment.rows)
        roots = " ".join(f"--root {dataset}=FOLDER" for dataset in datasets)
        raise InputError(f"{name} needs data: add {roots}, or use --plan")
    for file in ("report.json", "report.md"):
        check_file(reproduction.out / name / file)
    resolve_device(reproduction.device)
    context = RunContext(reproduction)
    for dataset in dict.fromkeys(row.dataset for row in experiment.rows):
        if dataset in reproduction.roots:  # before backbones, which may need a download
            context.source(dataset)
    outcomes = [Outcome(row) for row in experiment.rows]
    for sentence in _run_all(outcomes, context, progress, log):
        note(sentence)
    errors = [outcome.error for outcome in outcomes if outcome.error]
    waiting = [o for o in outcomes if not o.error and not reproduction.lacking(o.row)]
    if errors and not waiting and not any(outcome.results for outcome in outcomes):
        raise errors[0]
    return write_report(experiment, outcomes, context)


def _run_all(
    outcomes: list[Outcome], context: RunContext, progress: ProgressCallback, log: LogCallback
) -> Iterator[str]:
    """Run the rows without a result. Yield a sentence per run, and once per reason to skip one."""
    reproduction, budget = context.reproduction, Budget(context)
    reported: set[str] = set()
    for outcome in outcomes:
        row = outcome.row
        missing = reproduction.lacking(row)
        network = None if missing else context.backbone(row.backbone)
        if not isinstance(network, Backbone):
            outcome.error, outcome.reason = network, missing or str(network).split(". ")[0]
            if outcome.reason not in reported:
                yield f"{_label(row)}: not run, {outcome.reason}"
            reported.add(outcome.reason)
            continue
        for seed in reproduction.seeds_of(row):
            try:
                run = Run.prepare(row, seed, context, network)
                file = reproduction.out / "rows" / f"{run.name}.json"
                finished = file.is_file()
                if stopped := budget.check(row, seed, network, finished):
                    outcome.reason = stopped
                    if stopped not in reported:
                        yield stopped
                    reported.add(stopped)
                    break
                if not finished:
                    write_json(file, _result(run, reproduction, progress, log))
                result = outcome.results[seed] = _read_result(row, file)
            except PrimapsError as error:  # in this run only, such as an unsuitable checkpoint
                outcome.error, outcome.reason = error, str(error)
                if outcome.reason not in reported:
                    yield f"{_label(row)}, seed {seed}: not run, {error}"
                reported.add(outcome.reason)
                continue
            yield _sentence(row, seed, result) + (" (from an earlier run)" if finished else "")


class Budget:
    """The time limit of an experiment. After the first run that would exceed it, no run starts."""

    def __init__(self, context: RunContext) -> None:
        self.seconds, self.began = context.reproduction.budget, time.monotonic()
        self.estimator = Estimator(context.reproduction, context.sources)
        self.stopped = ""
        self.rate = GPU

    def check(self, row: TableRow, seed: int, network: Backbone, finished: bool) -> str:
        """Return why a run cannot start, or an empty string. The estimate ignores the cache."""
        cost = self.estimator.cost(row, seed)
        if self.seconds is None or finished:
            return ""
        if network.device.type == "cpu" and self.rate is GPU:
            self.rate = cpu_rate()
        left = max(0.0, self.seconds - (time.monotonic() - self.began))
        expected = cost.seconds(self.rate, self.estimator.flops(row))
        if not self.stopped and expected > left:
            self.stopped = (
                f"not run: the budget ended before {row.label}, seed {seed}, which would take "
                f"about {duration(expected)}; the same command continues"
            )
        return self.stopped


def _result(
    run: Run, reproduction: Reproduction, progress: ProgressCallback, log: LogCallback
) -> dict[str, Any]:
    """Fit the model, unless an earlier row did, and score it."""
    model, data, seconds, resize = run.model, run.data, {}, reproduction.resize
    if run.row.kind == "oracle":
        began = time.monotonic()
        scores = evaluate_oracle(
            data, backbone=model.backbone, size=model.size, resize=resize, progress=progress,
            log=log, **model.mask_maker().options,
        )  # fmt: skip
        options = {"size": model.size, "resize": resize, "split": data.split}
        found = {**scores.to_dict(), "options": {**options, **model.mask_maker().options}}
    else:
        folder = reproduction.out / "models" / run.fit[:12]
        model, seconds["fit"] = _fitted(run, folder, reproduction, progress, log)
        began = time.monotonic()
        cache = reproduction.cache if model.network.digest else None
        cached = CachedFeatures(model.network, cache, model.projection) if cache else None
        found = evaluate(
            model, data, crf=run.row.crf, resize=resize, features=cached, progress=progress,
            log=log,
        ).to_dict()  # fmt: skip
        found["options"].pop("root")  # results do not depend on the location of the data
        found["model"] = f"models/{folder.name}"
    seconds["score"] = time.monotonic() - began
    config = asdict(model.config)
    if Path(config["backbone"]).is_absolute():
        config["backbone"] = Path(config["backbone"]).name
    return {
        "fingerprint": run.result,
        "seed": run.seed,
        "config": config,
        "device": str(model.backbone.device),
        "weights": model.backbone.weights,
        "positions": model.backbone.positions,
        "codes": _codes(run, model, reproduction),
        "protocol": reproduction.protocol,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        **found,
    }


def _codes(run: Run, model: PriMaPsEM, reproduction: Reproduction) -> dict[str, str | None] | None:
    """Describe the projection and the network of its features; None for plain features."""
    if model.projection is None:
        return None
    given = reproduction.projection(run.row)
    origin = given.name if given else f"models/{run.projection_name}"
    digests = {"projection": model.projection.digest, "network": model.network.weights}
    return {"from": origin, **digests}


def _read_result(row: TableRow, file: Path) -> dict[str, Any]:
    """Read the result of a run and check that it has the scores of the row."""
    result: dict[str, Any] = read_json(file, dict[str, Any], REPEAT)
    try:
        validate(result.get("seconds"), dict[str, float], "seconds")
        scores = row.scores(result)
        for name in ("accuracy", "mean_iou"):
            validate(validate(scores, dict[str, Any], row.kind).get(name), float, name)
    except (InputError, KeyError) as error:
        raise InputError(f"{file}: {error}; {REPEAT}") from None
    return result


def _fitted(
    run: Run, folder: Path, reproduction: Reproduction, progress: ProgressCallback, log: LogCallback
) -> tuple[PriMaPsEM, float]:
    """Return the fitted model of a run, and the time of its fit in this or an earlier row."""
    record_file = folder / "fit.json"
    if record_file.is_file():
        record = read_json(record_file, FitRecord, REPEAT)
        if record.fingerprint != run.fit:
            raise InputError(f"{record_file} belongs to another fit; {REPEAT}")
        network = run.model.backbone
        model = PriMaPsEM.from_pretrained(
            folder, backbone=network, device=network.device, projection=run.model.projection
        )
        return model, record.seconds
    began = time.monotonic()
    train, model = run.source.train, run.model
    if reproduction.trains(run.row):
        model = _with_trained_projection(run, reproduction, progress, log)
    labels = train if run.row.kind == "probe" else None
    model.fit(
        train.samples, labels, cache=reproduction.cache, checkpoints=folder, progress=progress,
        log=log,
    )  # fmt: skip
    seconds = round(time.monotonic() - began, 1)
    model.save_pretrained(folder)
    write_json(record_file, asdict(FitRecord(seconds, run.fit)))
    clear_checkpoints(folder)
    return model, seconds


def _with_trained_projection(
    run: Run, reproduction: Reproduction, progress: ProgressCallback, log: LogCallback
) -> PriMaPsEM:
    """Return the model of a run with a projection that is trained on the images.

    The projection is trained unless another row has trained it; see :attr:`Run.projection_name`.
    """
    row, model, train = run.row, run.model, run.source.train
    folder = reproduction.out / "models" / run.projection_name
    if not (folder / "projection.safetensors").is_file():
        extracted = extract(
            train.samples, model.backbone, model.size, cache=reproduction.cache,
            progress=progress, log=log,
        )  # fmt: skip
        projection = train_projection(
            extracted.views.clean, row.projection.lower(), classes=len(train.classes),
            seed=run.seed, progress=progress,
        )  # fmt: skip
        projection.about["backbone"] = model.backbone.weights
        projection.save(folder)
    options = {k: v for k, v in asdict(model.config).items() if k not in ("backbone", "precision")}
    return PriMaPsEM(**options, backbone=model.backbone, projection=Projection.load(folder))


class CachedFeatures:
    """Features averaged over images and flipped images, computed once for all models of a backbone.

    They are cached in single precision, so scores equal those of ``primaps evaluate`` to the last
    digit.

    Args:
        backbone: the network.
        folder: folder of the cache.
        projection: projection to codes, which are averaged; the features of both directions are
            cached.

    Examples:
        >>> import tempfile
        >>> from primaps.backbones.load import load_backbone
        >>> pool = load_backbone(torch.nn.AvgPool2d(8), "cpu", patch_size=8)
        >>> cached = CachedFeatures(pool, tempfile.mkdtemp())
        >>> images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
        >>> torch.equal(cached(images), flip_average(pool, images))
        True
    """

    def __init__(
        self, backbone: Backbone, folder: str | Path, projection: Projection | None = None
    ) -> None:
        self.backbone, self.folder = backbone, Path(folder).expanduser()
        self.projection = projection
        self.compute = flip_average if projection is None else both_features
        self.caches: dict[tuple[int, ...], ArrayCache] = {}

    def __call__(self, images: UInt8[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]:
        size = tuple(images.shape[-2:])
        if size not in self.caches:
            shape = self.compute(self.backbone, torch.zeros(1, 3, *size).byte()).shape[1:]
            self.caches[size] = ArrayCache(shape, np.float32, self._folder(size))
        cache = self.caches[size]
        keys = [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in images]
        if cache.missing(keys):
            # The whole batch, because the last bits of features depend on the batch.
            found = self.compute(self.backbone, images)
            with cache.writing():
                missing = cache.missing(keys)
                cache.append(missing, found[[keys.index(key) for key in missing]].cpu().numpy())
        features = cache.rows(keys).take(torch.arange(len(keys))).to(self.backbone.device)
        if self.projection is None:
            return features
        return mean_of_both(torch.stack([self.projection(f) for f in features.unbind(1)], dim=1))

    def _folder(self, size: tuple[int, ...]) -> Path:
        digest, arithmetic = self.backbone.digest, self.backbone.arithmetic
        content = json.dumps([FEATURE_FORMAT, digest, arithmetic, size, self.compute.__name__])
        short = hashlib.sha256(content.encode()).hexdigest()[:12]
        return self.folder / f"scored-{self.backbone.name.replace('/', '--')}-{short}"


def _sentence(row: TableRow, seed: int, result: dict[str, Any]) -> str:
    scores = row.scores(result)
    metrics = f"{100 * scores['accuracy']:.1f} / {100 * scores['mean_iou']:.1f}"
    seconds = duration(sum(result["seconds"].values()))
    return f"{_label(row)}, seed {seed}: {metrics} in {seconds}"


def _label(row: TableRow) -> str:
    return f"{row.dataset}, {Path(row.backbone).name}, {row.label}"
