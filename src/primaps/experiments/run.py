"""Run an experiment row by row and seed by seed; what was done before is not done again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from primaps.backbones import Backbone
from primaps.data import Problem
from primaps.experiments.kept import KeptFeatures
from primaps.experiments.laboratory import Laboratory, Outcome, Run
from primaps.experiments.plan import Estimator
from primaps.experiments.report import write_report
from primaps.experiments.rows import Row
from primaps.experiments.settings import Settings
from primaps.files import write_json
from primaps.oracle import evaluate_oracle
from primaps.planning import duration
from primaps.progress import Report, silent
from primaps.protocol import evaluate
from primaps.segmenter import PriMaPsEM


def reproduce(
    name: str,
    settings: Settings,
    report: Report = silent,
    problem: Problem = lambda sentence: None,
    note: Callable[[str], None] = lambda sentence: None,
) -> Path:
    """Run a table or figure of the paper and write its report.

    Results lie in ``out/rows``, one file per run, and models in ``out/models``; both are shared
    by all experiments that write to ``out``. The report is ``out/NAME/report.md``, with
    ``report.json``, pictures and lists of image ids beside it. The same call goes on where it was
    stopped.

    Args:
        name: one of :data:`primaps.experiments.NAMES`.
        report: told about progress.
        problem: told about images that cannot be read.
        note: told what was done.

    Returns:
        The report.

    Raises:
        ValueError: there is no such experiment, or no row of it has data.
        DataError: a data set is not laid out as it should be.
    """
    experiment = settings.experiment(name)
    if not any(row.dataset in settings.roots for row in experiment.rows):
        known = dict.fromkeys(row.dataset for row in experiment.rows)
        asked = " ".join(f"--root {dataset}=FOLDER" for dataset in known)
        raise ValueError(f"{name} needs data: give {asked}, or see --plan")
    laboratory = Laboratory(settings)
    for dataset in dict.fromkeys(row.dataset for row in experiment.rows):
        if dataset in settings.roots:  # before backbones, which may have to be downloaded
            laboratory.source(dataset)
    outcomes = [Outcome(row) for row in experiment.rows]
    for sentence in _run_all(outcomes, laboratory, report, problem):
        note(sentence)
    return write_report(experiment, outcomes, laboratory)


def _run_all(
    outcomes: list[Outcome],
    laboratory: Laboratory,
    report: Report,
    problem: Problem,
) -> Iterator[str]:
    """Run what is lacking; yields a sentence about every run, and about every reason once."""
    settings, began = laboratory.settings, time.monotonic()
    estimator, told, stopped = Estimator(settings), set[str](), ""
    for outcome in outcomes:
        row = outcome.row
        network: Backbone | str = settings.lacking(row) or laboratory.backbone(row.backbone)
        if isinstance(network, str):
            outcome.reason = network
            if network not in told:
                yield f"{row.dataset}, {Path(row.backbone).name}, {row.label}: not run, {network}"
            told.add(network)
            continue
        for seed in settings.seeds_of(row):
            run = Run.prepare(row, seed, laboratory, network)
            cost = estimator.cost(row, seed)  # what the store has is counted too: an upper bound
            file = settings.out / "rows" / f"{run.name}.json"
            before = file.is_file()
            if settings.budget is not None and not before:
                left = max(0.0, settings.budget - (time.monotonic() - began))
                expected = cost.seconds(laboratory.rate(network), estimator.flops(row))
                if not stopped and expected > left:
                    stopped = (
                        f"not run: the budget ended before {row.label}, seed {seed}, which would "
                        f"take about {duration(expected)}; the same command goes on"
                    )
                    yield stopped
                if stopped:
                    outcome.reason = stopped
                    break
            if not before:
                write_json(file, _result(run, settings, report, problem))
            result = outcome.results[seed] = json.loads(file.read_text("utf-8"))
            yield _sentence(row, seed, result) + (" (from before)" if before else "")


def _result(run: Run, settings: Settings, report: Report, problem: Problem) -> dict[str, Any]:
    """Fit, unless an earlier row did, and score."""
    model, data, seconds = run.model, run.source.score, {}
    if run.row.kind == "oracle":
        began = time.monotonic()
        scores = evaluate_oracle(
            data, backbone=model.backbone, size=model.size, report=report, problem=problem,
            **model.mask_maker().options,
        )  # fmt: skip
        found = {**scores, "options": {"size": model.size, **model.mask_maker().options}}
    else:
        folder = settings.out / "models" / run.fit[:12]
        model, seconds["fit"] = _fitted(run, folder, settings, report, problem)
        began = time.monotonic()
        features = KeptFeatures(model.backbone, settings.store) if settings.store else None
        found = evaluate(
            model, data, crf=run.row.crf, features=features, report=report, problem=problem
        )
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
        "weights": model.backbone.digest,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        **found,
    }


def _fitted(
    run: Run, folder: Path, settings: Settings, report: Report, problem: Problem
) -> tuple[PriMaPsEM, float]:
    """The model of a run, and the seconds that its fit took, now or in an earlier row."""
    done = folder / "fit.json"
    if done.is_file():
        network = run.model.backbone
        model = PriMaPsEM.from_pretrained(folder, backbone=network, device=network.device)
        return model, json.loads(done.read_text("utf-8"))["seconds"]
    began = time.monotonic()
    train = run.source.train
    model = run.model.fit(
        train.samples,
        train if run.row.kind == "probe" else None,
        store=settings.store,
        checkpoints=folder,
        report=report,
        problem=problem,
    )
    seconds = round(time.monotonic() - began, 1)
    model.save_pretrained(folder)
    write_json(done, {"seconds": seconds, "fingerprint": run.fit})
    for path in folder.glob("training-*.safetensors"):  # the fit is complete
        path.unlink(missing_ok=True)
    return model, seconds


def _sentence(row: Row, seed: int, result: dict[str, Any]) -> str:
    scores = row.scores(result)
    figures = f"{100 * scores['accuracy']:.1f} / {100 * scores['mean_iou']:.1f}"
    seconds = duration(sum(result["seconds"].values()))
    what = f"{row.dataset}, {Path(row.backbone).name}, {row.label}, seed {seed}"
    return f"{what}: {figures} in {seconds}"
