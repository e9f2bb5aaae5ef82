"""Run an experiment row by row and seed by seed; what was done before is not done again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge

from primaps.backbones.backbone import Backbone
from primaps.backbones.load import resolve_device
from primaps.data import LogCallback
from primaps.em.training import clear_checkpoints
from primaps.evaluation.oracle import evaluate_oracle
from primaps.evaluation.protocol import evaluate
from primaps.model import PriMaPsEM
from primaps.planning import duration
from primaps.reproduction.costs import Estimator
from primaps.reproduction.feature_cache import KeptFeatures
from primaps.reproduction.report import write_report
from primaps.reproduction.reproduction import Reproduction
from primaps.reproduction.rows import TableRow
from primaps.reproduction.run_context import Laboratory, Outcome, Run
from primaps.reproduction.training import projection_name, trained_projection
from primaps.results import check_file
from primaps.utils.errors import InputError, PrimapsError
from primaps.utils.files import write_json
from primaps.utils.inputs import read_json
from primaps.utils.progress import ProgressCallback, silent
from primaps.utils.validation import validate

AGAIN = "remove it, and the run is done again"


@dataclass(frozen=True)
class FitRecord:
    """The content of ``fit.json`` beside a model, which says that its fit is done.

    Attributes:
        seconds: that it took.
        fingerprint: of everything that decided it; see :class:`Run`.
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

    Results lie in ``out/rows``, one file per run, and models in ``out/models``, with projections
    that were trained for them; both are shared by all experiments that write to ``out``. The report
    is ``out/NAME/report.md``, with ``report.json``, pictures and lists of image ids beside it. The
    same call goes on where it was stopped.

    Args:
        name: one of :data:`primaps.reproduction.NAMES`.
        progress: called after each unit of work.
        log: called with a sentence about images that cannot be read.
        note: told what was done.

    Returns:
        The report.

    Raises:
        InputError: there is no such experiment, no row of it has data, or the device is not here.
        DataError: a data set is not laid out as it should be.
        PrimapsError: no row has a result, for this reason, weights that are not here included; of
            rows that fail beside others, or wait for more time, it is said in the report.
    """
    experiment = reproduction.experiment(name)
    if not any(row.dataset in reproduction.roots for row in experiment.rows):
        known = dict.fromkeys(row.dataset for row in experiment.rows)
        asked = " ".join(f"--root {dataset}=FOLDER" for dataset in known)
        raise InputError(f"{name} needs data: give {asked}, or see --plan")
    for file in ("report.json", "report.md"):
        check_file(reproduction.out / name / file)
    resolve_device(reproduction.device)
    laboratory = Laboratory(reproduction)
    for dataset in dict.fromkeys(row.dataset for row in experiment.rows):
        if dataset in reproduction.roots:  # before backbones, which may have to be downloaded
            laboratory.source(dataset)
    outcomes = [Outcome(row) for row in experiment.rows]
    for sentence in _run_all(outcomes, laboratory, progress, log):
        note(sentence)
    errors = [outcome.error for outcome in outcomes if outcome.error]
    waiting = [o for o in outcomes if not o.error and not reproduction.lacking(o.row)]
    if errors and not waiting and not any(outcome.results for outcome in outcomes):
        raise errors[0]
    return write_report(experiment, outcomes, laboratory)


def _run_all(
    outcomes: list[Outcome],
    laboratory: Laboratory,
    progress: ProgressCallback,
    log: LogCallback,
) -> Iterator[str]:
    """Run what is lacking; yields a sentence about every run, and about every reason once."""
    reproduction, began = laboratory.reproduction, time.monotonic()
    estimator, told, stopped = Estimator(reproduction, laboratory.sources), set[str](), ""
    for outcome in outcomes:
        row = outcome.row
        lack = reproduction.lacking(row)
        network = None if lack else laboratory.backbone(row.backbone)
        if not isinstance(network, Backbone):
            outcome.error, outcome.reason = network, lack or str(network).split(". ")[0]
            if outcome.reason not in told:
                yield f"{_where(row)}: not run, {outcome.reason}"
            told.add(outcome.reason)
            continue
        for seed in reproduction.seeds_of(row):
            try:
                run = Run.prepare(row, seed, laboratory, network)
                file = reproduction.out / "rows" / f"{run.name}.json"
                before = file.is_file()
                cost = estimator.cost(row, seed)  # also of what the cache has: an upper bound
                if reproduction.budget is not None and not before:
                    left = max(0.0, reproduction.budget - (time.monotonic() - began))
                    expected = cost.seconds(laboratory.rate(network), estimator.flops(row))
                    if not stopped and expected > left:
                        stopped = (
                            f"not run: the budget ended before {row.label}, seed {seed}, which "
                            f"would take about {duration(expected)}; the same command goes on"
                        )
                        yield stopped
                    if stopped:
                        outcome.reason = stopped
                        break
                if not before:
                    write_json(file, _result(run, reproduction, progress, log))
                result = outcome.results[seed] = _read_result(row, file)
            except PrimapsError as error:  # of this run alone: a checkpoint that does not fit, ...
                outcome.error, outcome.reason = error, str(error)
                if outcome.reason not in told:
                    yield f"{_where(row)}, seed {seed}: not run, {error}"
                told.add(outcome.reason)
                continue
            yield _sentence(row, seed, result) + (" (from before)" if before else "")


def _result(
    run: Run, reproduction: Reproduction, progress: ProgressCallback, log: LogCallback
) -> dict[str, Any]:
    """Fit, unless an earlier row did, and score."""
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
        kept = KeptFeatures(model.network, cache, model.projection) if cache else None
        found = evaluate(
            model, data, crf=run.row.crf, resize=resize, features=kept, progress=progress,
            log=log,
        ).to_dict()  # fmt: skip
        found["options"].pop("root")  # results are the same wherever the data lies
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
    """What codes are of: a projection, where it is from, and the weights of the network whose
    features it takes; None for plain features."""
    if model.projection is None:
        return None
    given = reproduction.projection(run.row)
    origin = given.name if given else f"models/{projection_name(run)}"
    digests = {"projection": model.projection.digest, "network": model.network.weights}
    return {"from": origin, **digests}


def _read_result(row: TableRow, file: Path) -> dict[str, Any]:
    """The result of a run, whose figures are there."""
    result: dict[str, Any] = read_json(file, dict[str, Any], AGAIN)
    try:
        validate(result.get("seconds"), dict[str, float], "seconds")
        scores = row.scores(result)
        for name in ("accuracy", "mean_iou"):
            validate(validate(scores, dict[str, Any], row.kind).get(name), float, name)
    except (InputError, KeyError) as error:
        raise InputError(f"{file}: {error}; {AGAIN}") from None
    return result


def _fitted(
    run: Run, folder: Path, reproduction: Reproduction, progress: ProgressCallback, log: LogCallback
) -> tuple[PriMaPsEM, float]:
    """The model of a run, and the seconds that its fit took, now or in an earlier row."""
    done = folder / "fit.json"
    if done.is_file():
        record = read_json(done, FitRecord, AGAIN)
        if record.fingerprint != run.fit:
            raise InputError(f"{done} is of another fit; {AGAIN}")
        network = run.model.backbone
        model = PriMaPsEM.from_pretrained(
            folder, backbone=network, device=network.device, projection=run.model.projection
        )
        return model, record.seconds
    began = time.monotonic()
    train, model = run.source.train, run.model
    if reproduction.trains(run.row):
        model = trained_projection(run, reproduction, progress, log)
    model.fit(
        train.samples,
        train if run.row.kind == "probe" else None,
        cache=reproduction.cache,
        checkpoints=folder,
        progress=progress,
        log=log,
    )
    seconds = round(time.monotonic() - began, 1)
    model.save_pretrained(folder)
    write_json(done, asdict(FitRecord(seconds, run.fit)))
    clear_checkpoints(folder)
    return model, seconds


def _sentence(row: TableRow, seed: int, result: dict[str, Any]) -> str:
    scores = row.scores(result)
    figures = f"{100 * scores['accuracy']:.1f} / {100 * scores['mean_iou']:.1f}"
    seconds = duration(sum(result["seconds"].values()))
    return f"{_where(row)}, seed {seed}: {figures} in {seconds}"


def _where(row: TableRow) -> str:
    return f"{row.dataset}, {Path(row.backbone).name}, {row.label}"
