"""The report of an experiment: our scores beside the paper's, and what is needed to repeat them."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import statistics
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from primaps.backbones.load import resolve_device
from primaps.data import Dataset
from primaps.planning import duration
from primaps.reproduction.drawings import draw
from primaps.reproduction.paper import IOU, IOU_METHODS, IOU_OF
from primaps.reproduction.registry import FOLDER, Experiment
from primaps.reproduction.run_context import Outcome, RunContext, image_ids
from primaps.reproduction.settings import Reproduction
from primaps.results import GENERATOR, is_marked, output_file, write_marked_json
from primaps.utils.files import atomic_path
from primaps.version import VERSION

ORDER = ("baseline", "PriMaPs-EM", "linear probe", "oracle, pixels in masks")
"""Rows in the order of their mean IoU in the paper."""
LABELED_KINDS = {"probe": "linear probe", "oracle": "oracle"}
"""Kinds of rows that use labels."""
PACKAGES = ("torch", "transformers", "numpy", "scipy", "numba", "pillow", "kornia")


def write_report(experiment: Experiment, outcomes: Sequence[Outcome], context: RunContext) -> Path:
    """Write ``report.md``, ``report.json``, images and lists of image ids.

    Returns:
        Path of ``report.md``.
    """
    folder = context.reproduction.out / experiment.name
    captions = draw(experiment, outcomes, context, folder)
    settings = environment(outcomes, context)
    header = {"name": experiment.name, "title": experiment.title}
    content = {**header, "rows": [_row_content(outcome) for outcome in outcomes], **settings}
    replaces_report = is_marked(folder / "report.json")
    for name, part, split in _splits(context):
        path = folder / f"{name}-{part}.txt"
        with (atomic_path if replaces_report else output_file)(path) as temporary:
            temporary.write_bytes(image_ids(split))
    write_marked_json(folder / "report.json", content)
    lines = [f"# {experiment.title}", "", " ".join(_introduction(outcomes, context)), ""]
    lines += [*table(outcomes), ""]
    notes = experiment.notes if any(o.row.paper for o in outcomes) else ()
    compared = differences(outcomes, context.reproduction)
    sentences = (*_order(outcomes), *_notes(outcomes), *notes, *compared)
    lines += [*(f"- {sentence}" for sentence in sentences), ""]
    if "iou table" in experiment.figures:
        lines += [*iou_table(outcomes), ""]
    for image, caption in captions:
        lines += [f"![{Path(image).stem}]({image})", "", caption, ""]
    lines += ["## Environment", "", *environment_lines(settings)]
    with output_file(folder / "report.md") as temporary:
        text = "\n".join(lines).rstrip()
        temporary.write_text(f"<!-- generator: {GENERATOR} -->\n\n{text}\n", "utf-8")
    return folder / "report.md"


def table(outcomes: Sequence[Outcome]) -> list[str]:
    """Format the table in Markdown: our accuracy and mean IoU in %, and the paper's."""
    paper = any(outcome.row.paper for outcome in outcomes)
    several = len({outcome.row.dataset for outcome in outcomes}) > 1
    head = [*(["data set"] if several else []), "backbone", "method", "accuracy", "mean IoU"]
    head += [*(["paper: accuracy", "paper: mean IoU"] if paper else []), "time per run"]
    lines = [_line(head), _line("---" for _ in head)]
    for outcome in outcomes:
        row, results = outcome.row, list(outcome.results.values())
        cells = [*([row.dataset] if several else []), Path(row.backbone).name, row.label]
        for metric in ("accuracy", "mean_iou"):
            values = [100 * row.scores(result)[metric] for result in results]
            cells.append(spread(values) if values else "-")
        if paper:
            star = " *" if row.quoted else ""
            printed = row.paper or (None, None)
            cells += ["" if value is None else f"{value:.1f}{star}" for value in printed]
        times = [sum(result["seconds"].values()) for result in results]
        cells.append(duration(statistics.mean(times)) if times else "")
        if outcome.reason:
            done = f"{cells[-1]} for {len(times)} of the seeds; " if times else ""
            cells[-1] = done + outcome.reason
        lines.append(_line(cells))
    return lines


def iou_table(outcomes: Sequence[Outcome]) -> list[str]:
    """Format the IoU per class in %, mean of the seeds, beside the values printed in Figure 8a."""
    done = [outcome for outcome in outcomes if outcome.results]
    if not done:
        return []
    several = len({outcome.row.backbone for outcome in done}) > 1
    head, columns = ["class"], []
    for row, iou in ((outcome.row, outcome.iou) for outcome in done):
        head.append(f"{row.label}, {Path(row.backbone).name}" if several else row.label)
        columns.append({k: "-" if v is None else f"{100 * v:.1f}" for k, v in iou.items()})
        if (row.dataset, row.backbone) == IOU_OF:
            column = IOU_METHODS.index(row.label)
            head.append("paper")
            columns.append({name: f"{printed[column]:.1f}" for name, printed in IOU.items()})
    lines = [_line(head), _line("---" for _ in head)]
    lines += [_line([name, *(column[name] for column in columns)]) for name in columns[0]]
    return lines


def spread(values: Sequence[float]) -> str:
    """Format mean and standard deviation over the seeds.

    Examples:
        >>> spread([50.0, 51.0, 52.0]), spread([50.0])
        ('51.0 ± 1.0', '50.0')
    """
    mean = f"{statistics.mean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def environment(outcomes: Sequence[Outcome], context: RunContext) -> dict[str, Any]:
    """Collect what the results depend on: data, weights, options, device, versions."""
    reproduction = context.reproduction
    device = resolve_device(reproduction.device)
    processor = f"{platform.machine()} processor, {torch.get_num_threads()} of {os.cpu_count()} "
    data: dict[str, Any] = {}
    for name, part, split in _splits(context):
        data.setdefault(name, {})[part] = {
            "split": split.split,
            "images": len(split.samples),
            "ids": f"{name}-{part}.txt",
            "sha256": hashlib.sha256(image_ids(split)).hexdigest(),
        }
    return {
        "seeds": list(reproduction.seeds),
        "protocol": reproduction.protocol,
        "options": {"views": reproduction.views, **reproduction.options},
        "data": data,
        "weights": {Path(name).name: network.weights for name, network in context.loaded.items()},
        "positions": reproduction.positions,
        "projections": _projections(outcomes),
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{processor}threads",
        "versions": {
            "primaps": VERSION,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
    }


def environment_lines(settings: dict[str, Any]) -> Iterator[str]:
    """Format :func:`environment` in Markdown."""
    for name, splits in settings["data"].items():
        for part, split in splits.items():
            yield (
                f"- {name}, {part}: {split['images']:,} images (split {split['split']}); ids in "
                f"[{split['ids']}]({split['ids']}), SHA-256 `{split['sha256']}`"
            )
    for name, digest in settings["weights"].items():
        yield f"- weights of {name}: SHA-256 `{digest}`"
    for each in settings["projections"]:
        name = f"{each['name']}, {each['dataset']}, {each['backbone']} ({each['from']})"
        digests = f"SHA-256 `{each['projection']}`, network `{each['network']}`"
        yield f"- codes of {name}: {digests}"
    options = ", ".join(f"{name} {value}" for name, value in settings["options"].items())
    yield f"- protocol {settings['protocol']}; position embeddings {settings['positions']}"
    yield f"- options that differ from the paper's: {options}; seeds {settings['seeds']}"
    yield f"- device: {settings['device']}"
    yield "- versions: " + ", ".join(f"{name} {v}" for name, v in settings["versions"].items())
    yield "- every run with its options and scores: [report.json](report.json)"


def differences(outcomes: Sequence[Outcome], reproduction: Reproduction) -> Iterator[str]:
    """Yield the known differences between our runs and the paper's."""
    rows = [outcome.row for outcome in outcomes if outcome.row.paper]
    if not rows:
        return
    kinds, program = {row.kind for row in rows}, reproduction.protocol == "program"
    seeds = len(reproduction.seeds)
    if kinds != {"oracle"}:
        yield (
            "The paper reports the checkpoint with the best mean IoU on the validation labels over "
            "all epochs, for one seed. We report the last state of "
            f"{f'{seeds} seeds' if seeds > 1 else 'one seed'}. Scores slightly below the "
            "paper's are expected."
        )
    if any(row.quoted for row in rows):
        yield "Scores with * are quoted in the paper from the paper of that method."
    yield (
        "Images and labels are resized at evaluation as in the authors' program: as tensors, "
        "without antialiasing."
        if program
        else "Images are resized with Pillow, which antialiases. The authors' program does so in "
        "training, and resizes tensors without antialiasing at evaluation (--protocol program)."
    )
    yield (
        "Position embeddings are scaled by the factors of the programs of DINO and DINOv2 (40.1/28 "
        "for 320 px in patches of 8, 23.1/37 for 322 px in patches of 14)."
        if program
        else "Position embeddings are interpolated to the exact size, as in transformers. The "
        "programs of DINO and DINOv2 scale them by 40.1/28 and 23.1/37 (--protocol program)."
    )
    if "em" in kinds:
        yield _augmentation(reproduction)
        constant = any(not reproduction.config(row, 0).get("momentum_ramp", True) for row in rows)
        yield (
            "The moving average decays by a constant 0.98, as in Eq. 11. In the authors' program, "
            "the first two updates copy the student and the n-th decays by at most 1 - 1/n "
            "(--protocol program)."
            if constant
            else "The decay of the moving average is ramped as in the authors' program: the first "
            "two updates copy the student, and the n-th decays by at most 1 - 1/n."
        )
    if kinds & {"baseline", "em"}:
        yield (
            "K-means is initialized with the exact principal components of the features of all "
            "images. The program uses at most 93 batches. Our k-means flips images at random; the "
            "program's does not."
        )
    if any(row.projection for row in rows):
        yield (
            "Codes of STEGO and HP come from the network inside the checkpoint, masks from the "
            "backbone of the row. The released STEGO network stays in training mode and drops a "
            "tenth of its channels at random; ours drops none. The programs of STEGO and HP resize "
            "images by nearest neighbor."
        )


def _augmentation(reproduction: Reproduction) -> str:
    views = reproduction.views
    if views == 0:
        return "The student processes clean images. The paper augments them (--views fresh)."
    how = "again in every step" if views == "fresh" else f"once, in {views} views per image"
    return (
        f"Images are augmented {how}, in RGB. The program augments the normalized tensor, which "
        "clamps jittered views at the mean color."
    )


def _introduction(outcomes: Sequence[Outcome], context: RunContext) -> Iterator[str]:
    kinds = {outcome.row.kind for outcome in outcomes}
    uses = ["scores", *(f"the {LABELED_KINDS[kind]}" for kind in LABELED_KINDS if kind in kinds)]
    for name, source in context.sources.items():
        train, score = source.train, source.score
        title = f"{name} ({score.root.name})" if name == FOLDER else name
        if train.samples == score.samples:
            text = f"fitted to and scored on the same {len(score.samples):,} images"
            text += ", also the linear probe, which uses their labels" if "probe" in kinds else ""
        else:
            text = f"fitted to {len(train.samples):,} images ({train.split}), scored on "
            text += f"{len(score.samples):,} others ({score.split})"
        yield f"{title}, {len(score.classes)} classes: {text}."
    seeds = context.reproduction.seeds
    several = f"seeds {', '.join(map(str, seeds))}, mean ± standard deviation"
    protocol = "Accuracy and mean IoU in %, at the size of the model, center crop"
    if kinds != {"oracle"}:
        protocol += "; features are averaged with those of the flipped image"
    if kinds & {"baseline", "em", "clusters"}:
        protocol += "; clusters are assigned to classes by one Hungarian matching over the set"
    yield (
        f"{protocol}; {several if len(seeds) > 1 else f'seed {seeds[0]}'}. Labels are used for "
        f"{', '.join(uses[:-1])}{' and ' * (len(uses) > 1)}{uses[-1]} only."
    )


def _order(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Yield whether mean IoU increases from baseline to oracle, as in the paper."""
    for key in dict.fromkeys((o.row.dataset, o.row.backbone) for o in outcomes):
        group = [o for o in outcomes if (o.row.dataset, o.row.backbone) == key and o.results]
        known = sorted(
            (o for o in group if o.row.label in ORDER), key=lambda o: ORDER.index(o.row.label)
        )
        if len(known) < 3:
            continue
        text = ", ".join(f"{o.row.label} {_mean_iou(o):.1f}" for o in known)
        broken = [_inverted(a, b) for a, b in pairwise(known) if _mean_iou(a) >= _mean_iou(b)]
        holds = f"does not hold: {'; '.join(broken)}" if broken else "holds"
        yield f"The paper's order in mean IoU ({Path(key[1]).name}: {text}) {holds}."


def _mean_iou(outcome: Outcome) -> float:
    results = outcome.results.values()
    return statistics.mean(100 * outcome.row.scores(result)["mean_iou"] for result in results)


def _inverted(first: Outcome, second: Outcome, count: int = 3) -> str:
    """State that the first row is not below the second, and the classes with the largest gaps."""
    others, gaps = second.iou, []
    for name, ours in first.iou.items():
        theirs = others[name]
        if ours is not None and theirs is not None and ours > theirs:
            text = f"{name} ({100 * ours:.1f} against {100 * theirs:.1f})"
            gaps.append((ours - theirs, text))
    largest = ", ".join(text for _, text in sorted(gaps, reverse=True)[:count])
    text = f"{first.row.label} is not below {second.row.label}"
    return f"{text}, mostly because of {largest}" if largest else text


def _notes(outcomes: Sequence[Outcome]) -> Iterator[str]:
    labels = {outcome.row.label for outcome in outcomes}
    if labels & {"baseline", "linear probe"}:
        yield (
            "The baseline is k-means on normalized features with as many epochs as PriMaPs-EM. "
            "Predictions of the baseline and the linear probe are not refined by the CRF, unless a "
            "row says otherwise."
        )
    if "PriMaPs-EM without CRF" in labels:
        yield "PriMaPs-EM without CRF is the same model; only its predictions are not refined."
    if any(outcome.row.kind == "oracle" for outcome in outcomes):
        yield (
            "The oracle gives each mask its most frequent label. It is scored on the pixels "
            "inside of masks, or on all pixels, of which those outside of all masks are wrong."
        )
    if any(outcome.row.kind != "oracle" for outcome in outcomes):
        yield (
            "The time of a run includes its fit, even if another row computed it. Features and "
            "masks are computed once, in the first run that needs them."
        )


def _splits(context: RunContext) -> Iterator[tuple[str, str, Dataset]]:
    """Yield the name of each data set, the use of a split, and the split."""
    for name, source in context.sources.items():
        yield name, "fitted", source.train
        yield name, "scored", source.score


def _projections(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Return each projection of the results once."""
    found: list[dict[str, Any]] = []
    for outcome in outcomes:
        row = outcome.row
        backbone = Path(row.backbone).name
        header = {"name": row.projection, "dataset": row.dataset, "backbone": backbone}
        for result in outcome.results.values():
            codes = result.get("codes")
            if codes and (each := {**header, **codes}) not in found:
                found.append(each)
    return found


def _row_content(outcome: Outcome) -> dict[str, Any]:
    row = outcome.row
    return {
        "label": row.label,
        "dataset": row.dataset,
        "backbone": Path(row.backbone).name,
        "kind": row.kind,
        "split": row.split,
        "crf": row.crf,
        "options": dict(row.options),
        "projection": row.projection,
        "paper": row.paper,
        "quoted": row.quoted,
        "reason": outcome.reason,
        "runs": [{**result, **row.scores(result)} for result in outcome.results.values()],
    }


def _line(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"
