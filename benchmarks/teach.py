"""Mean IoU of taught models by the number of answers, with a simulated person.

    python benchmarks/teach.py --data ROOT --out FOLDER [--sets camvid ...] [--seeds 0 1 2]
    python benchmarks/teach.py --data ROOT --out FOLDER --sets wbc cwfid --label-maps 1 3 5
    python benchmarks/teach.py --data ROOT --out FOLDER --sets aerial260 --dry-run

ROOT contains labeled folders as for results.py. Images of the split ``train``, or every second
image of a single split, are the collection that is asked about. The others are scored at their own
size, by class names. The model is fitted without labels; ``PriMaPsEM.ask`` and ``PriMaPsEM.teach``
do the rest. The person answers with the class of the majority of the labeled pixels of a region, or
"mixed" below 60 %, and errs in a share ``--errors`` of the answers.

Methods: ``questions`` (ours), ``random`` (points on random pixels), ``per-class`` (points on random
pixels of each class in turn), ``forest`` and ``catboost`` (on the tokens of the answers to
``questions``; CatBoost is skipped if it is not installed), ``clusters`` (the K classes, and cuts at
64 and 128, each named by its majority), and ``probe`` (linear, on labeled tokens of all images).

The script writes results.json and results.md, mean IoU in %, after every set and seed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from primaps import InferenceOptions, PriMaPsEM
from primaps.data import Dataset, Sample, load_dataset, load_pair
from primaps.evaluation.metrics import confusion_matrix, majority, scores
from primaps.features.maps import FeatureMaps
from primaps.geometry.regions import Regions
from primaps.geometry.rle import encode_coco
from primaps.inference import Segmenter
from primaps.teach.annotations import Annotation
from primaps.teach.examples import TokenExamples, token_examples
from primaps.utils.errors import InputError
from primaps.utils.files import cache_dir
from primaps.utils.seeding import generator

SETS = ("camvid", "coco200", "aerial260")
NUMBERS = (10, 25, 50, 100, 200, 400)
METHODS = ("questions", "random", "per-class", "forest", "catboost", "clusters", "probe")
BATCH = 25
"""Maximum number of questions that are answered before the model learns again."""
MAJORITY = 0.6
"""Share of the labeled pixels of a region below which the answer is "mixed"."""
PROBE_TOKENS = 20_000
LEAVES = (64, 128)
Results = dict[str, dict[str, Any]]


class Person:
    """Answers from label maps.

    Args:
        data: data set of the label maps.
        samples: images that can be asked about.
        errors: share of wrong answers.
        seed: random seed.
    """

    def __init__(self, data: Dataset, samples: Sequence[Sample], errors: float, seed: int) -> None:
        self.data, self.errors = data, errors
        self.labels = {sample.key: load_pair(data, sample)[1].numpy() for sample in samples}
        self.random = generator("simulated person", seed)

    def number(self, limit: int) -> int:
        """Return a random number below a limit."""
        return int(torch.randint(limit, (), generator=self.random))

    def mask(self, key: str, mask: np.ndarray) -> Annotation:
        """Answer about a region."""
        (counts,) = encode_coco(Regions(mask.astype(np.int32), np.array([0])))
        return self._answer(key, "mask", {"size": list(mask.shape), "counts": counts}, mask)

    def point(self, key: str, row: int, column: int) -> Annotation:
        """Answer about a pixel."""
        mask = np.zeros(self.labels[key].shape, bool)
        mask[row, column] = True
        return self._answer(key, "point", [column + 0.5, row + 0.5], mask)

    def random_points(self, by_class: bool) -> Iterator[Annotation]:
        """Yield answers about random labeled pixels, or about pixels of each class in turn."""
        keys, ignored = list(self.labels), self.data.ignore_index
        present = [np.unique(label) for label in self.labels.values()]
        number = 0
        while True:
            wanted = number % len(self.data.classes)
            number += 1
            chosen = [
                key for key, found in zip(keys, present, strict=True)
                if not by_class or wanted in found
            ]  # fmt: skip
            if not chosen:
                continue
            key = chosen[self.number(len(chosen))]
            label = self.labels[key]
            rows, columns = np.nonzero(label == wanted if by_class else label != ignored)
            if len(rows):
                place = self.number(len(rows))
                yield self.point(key, int(rows[place]), int(columns[place]))

    def label_map(self, key: str) -> Annotation:
        """Return the label map of an image."""
        label, names = self.labels[key], self.data.classes
        geometry = {}
        for k in np.unique(label[label != self.data.ignore_index]).tolist():
            (counts,) = encode_coco(Regions((label == k).astype(np.int32), np.array([0])))
            geometry[names[k]] = {"size": list(label.shape), "counts": counts}
        return Annotation(key, None, "label_map", None, geometry, label.shape)

    def _answer(self, key: str, kind: Any, geometry: Any, mask: np.ndarray) -> Annotation:
        found = self.labels[key][mask]
        counts = np.bincount(found[found != self.data.ignore_index], minlength=1)
        if counts.max() < max(1, MAJORITY * counts.sum()):
            return Annotation(key, None, kind, None, geometry, mask.shape, answer="mixed")
        k = int(counts.argmax())
        if float(torch.rand((), generator=self.random)) < self.errors:
            k = self.number(len(self.data.classes))
        return Annotation(key, None, kind, self.data.classes[k], geometry, mask.shape)


@dataclass(frozen=True)
class Trial:
    """A set and a seed: the model without labels, its images and the person.

    Attributes:
        maps, scored_maps: feature maps of the collection and of the scored images.
        level: ``level`` of ``PriMaPsEM.teach``.
    """

    data: Dataset
    pool: list[Sample]
    scored: list[Sample]
    model: PriMaPsEM
    maps: FeatureMaps
    scored_maps: FeatureMaps
    person: Person
    cache: Path
    level: Any

    def teach(self, annotations: Sequence[Annotation]) -> PriMaPsEM | None:
        """Return the taught model; None if there are fewer than two classes."""
        try:
            return self.model.teach(
                self.pool, annotations, level=self.level, cache=self.cache, log=lambda text: None
            )
        except InputError:
            return None

    def score(self, segmenter: Segmenter, names: Sequence[int], crfs: Sequence[bool]) -> Results:
        """Score a segmenter on the images that were not asked about.

        Args:
            names: class of the data set of each class of the segmenter.
            crfs: whether the CRF refines, for each result.
        """
        classes, ignored = len(self.data.classes), self.data.ignore_index
        table, results = torch.tensor(names), {}
        for crf in crfs:
            options = segmenter.resolve(InferenceOptions(crf=crf))
            total = torch.zeros(classes, classes, dtype=torch.long)
            for sample in self.scored:
                image, label = load_pair(self.data, sample)
                scaled = segmenter.scale(sample.load(), options)[None]
                size, features = (image.shape[1], image.shape[2]), self.scored_maps[sample.key]
                (found,) = segmenter.segment_batch(scaled, [size], options, features[None])
                total += confusion_matrix(
                    table[found.labels.long()], label, classes, classes, ignored
                )
            found_scores = scores(total, list(range(classes)))
            results["crf" if crf else "tokens"] = {
                "mean_iou": found_scores.mean_iou, "accuracy": found_scores.accuracy,
                "iou": found_scores.iou,
            }  # fmt: skip
        return results

    def segmenter(self, classifier: Any) -> Segmenter:
        """Return a segmenter of the classes of the data set with another classifier."""
        classes, model = len(self.data.classes), self.model
        return Segmenter(model.encoder, classifier, classes, model.size, cosine=True)

    def score_taught(self, taught: PriMaPsEM, crfs: Sequence[bool]) -> Results:
        """Score a taught model by the names of its classes."""
        names = [self.data.classes.index(one.name) for one in taught.shown_classes]
        return self.score(taught.segmenter, names, crfs)


class Wrapped(nn.Module):
    """Logits of feature maps from a function of tokens of length 1."""

    def __init__(self, logits: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, features: Tensor) -> Tensor:
        found = self.logits(features[0].flatten(1).T.contiguous())
        return found.T.unflatten(1, features.shape[-2:])[None]


def load(root: Path, name: str, seed: int, arguments: argparse.Namespace) -> Trial:
    """Fit the model without labels, and compute the features of all images."""
    folder = root / name
    data = load_dataset("folder", folder, "train")
    if (folder / "images" / "train").is_dir():
        pool, scored = data.samples, load_dataset("folder", folder, "val").samples
    else:
        pool, scored = data.samples[0::2], data.samples[1::2]
    every = arguments.every
    ours, theirs = list(pool[::every]), list(scored[::every])
    model = PriMaPsEM(len(data.classes), seed=seed).fit(ours, cache=arguments.cache)
    maps = model.feature_maps(ours, cache=arguments.cache)
    scored_maps = model.feature_maps(theirs, cache=arguments.cache)
    person = Person(data, ours, arguments.errors, seed)
    return Trial(data, ours, theirs, model, maps, scored_maps, person, arguments.cache,
                 arguments.level)  # fmt: skip


def ask(trial: Trial, numbers: Sequence[int]) -> Iterator[tuple[int, list[Annotation]]]:
    """Yield the answers to our questions at each number; the model learns after every batch."""
    asked: list[tuple[str, float, float]] = []
    answers: list[Annotation] = []
    model = trial.model
    for number in numbers:
        while len(answers) < number:
            count = min(BATCH, number - len(answers))
            found = model.ask(trial.pool, count, asked=asked, cache=trial.cache)
            if not found:
                break
            for one in found:
                height, width = trial.person.labels[one.image].shape
                x, y = one.point(height, width)
                asked.append((one.image, x / width, y / height))
                answers.append(trial.person.mask(one.image, one.mask(height, width)))
            if len(answers) < number:
                model = trial.teach(answers) or model
        yield number, list(answers)
        model = trial.teach(answers) or model


def examples(trial: Trial, annotations: Sequence[Annotation]) -> TokenExamples:
    """Return the tokens of annotations, as the learner does."""
    by_image: dict[str, list[Annotation]] = defaultdict(list)
    for one in annotations:
        by_image[one.image].append(one)
    names = trial.data.classes
    return TokenExamples.join(
        [token_examples(own, names, trial.maps[key]) for key, own in by_image.items()]
    )


def rival(method: str, found: TokenExamples, classes: int, seed: int) -> Wrapped:
    """Fit a forest or gradient boosting to tokens of length 1."""
    x, y = F.normalize(found.features, dim=1).numpy(), found.classes.numpy()
    if method == "forest":
        from sklearn.ensemble import RandomForestClassifier

        model: Any = RandomForestClassifier(300, class_weight="balanced", random_state=seed)
    else:
        from catboost import CatBoostClassifier

        model = CatBoostClassifier(
            iterations=200, verbose=0, random_seed=seed, auto_class_weights="Balanced",
            allow_writing_files=False,
        )  # fmt: skip
    model.fit(x, y, sample_weight=found.weights.numpy())
    present = torch.from_numpy(np.asarray(model.classes_).astype(int))

    def logits(tokens: Tensor) -> Tensor:
        p = torch.zeros(len(tokens), classes)
        p[:, present] = torch.from_numpy(model.predict_proba(tokens.numpy())).float()
        return p.clamp_min(1e-4).log()

    return Wrapped(logits)


def score_rivals(
    trial: Trial, methods: Sequence[str], answers: Sequence[Annotation], seed: int
) -> Iterator[tuple[str, Results]]:
    """Yield the scores of forest and CatBoost on the tokens of answers."""
    classes = len(trial.data.classes)
    for method in ("forest", "catboost"):
        if method not in methods or (method == "catboost" and not has_catboost()):
            continue
        found = examples(trial, answers).positives
        if len(found.classes.unique()) > 1:
            model = rival(method, found, classes, seed)
            yield method, trial.score(trial.segmenter(model), range(classes), [False])


def has_catboost() -> bool:
    """Return whether CatBoost is installed."""
    return importlib.util.find_spec("catboost") is not None


def name_clusters(trial: Trial, classes: int) -> tuple[int, Results]:
    """Name each class of a cut by its majority in the collection; return answers and scores."""
    model, data = trial.model.cut(classes), trial.data
    total = torch.zeros(len(data.classes), model.classes, dtype=torch.long)
    options = model.segmenter.resolve(InferenceOptions(crf=False))
    for sample in trial.pool:
        label = torch.from_numpy(trial.person.labels[sample.key])
        scaled = model.segmenter.scale(sample.load(), options)[None]
        features = trial.maps[sample.key][None]
        (found,) = model.segmenter.segment_batch(scaled, [tuple(label.shape)], options, features)
        total += confusion_matrix(
            found.labels.long(), label, model.classes, len(data.classes), data.ignore_index
        )
    names = [0 if k is None else k for k in majority(total)]
    return model.classes, trial.score(model.segmenter, names, [False])


def probe(trial: Trial) -> Results:
    """Score a linear classifier that is trained on labeled tokens of all images."""
    whole = [trial.person.label_map(sample.key) for sample in trial.pool]
    found = examples(trial, whole).positives
    chosen = torch.randperm(len(found), generator=generator("probe", 0))[:PROBE_TOKENS]
    x, y, w = F.normalize(found.features[chosen], dim=1), found.classes[chosen], found.weights
    linear = nn.Linear(x.shape[1], len(trial.data.classes))
    nn.init.zeros_(linear.weight), nn.init.zeros_(linear.bias)
    optimizer = torch.optim.LBFGS(linear.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        each = F.cross_entropy(10 * linear(x), y, reduction="none")
        value = (w[chosen] * each).mean() + 1e-4 * linear.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    segmenter = trial.segmenter(Wrapped(lambda tokens: 10 * linear(tokens)))
    return trial.score(segmenter, range(len(trial.data.classes)), [False])


def curves(trial: Trial, arguments: argparse.Namespace, seed: int) -> Iterator[dict[str, Any]]:
    """Yield one row per method and number of answers."""
    numbers, methods = arguments.answers, arguments.methods
    crfs = [False, True] if arguments.crf else [False]
    if {"questions", "forest", "catboost"} & {*methods}:
        for number, answers in ask(trial, numbers):
            taught = trial.teach(answers)
            if "questions" in methods and taught is not None:
                yield {"method": "questions", "answers": number,
                       **trial.score_taught(taught, crfs)}  # fmt: skip
            for method, found in score_rivals(trial, methods, answers, seed):
                yield {"method": method, "answers": number, **found}
    for method in ("random", "per-class"):
        if method in methods:
            points = trial.person.random_points(method == "per-class")
            listed = [next(points) for _ in range(max(numbers))]
            for number in numbers:
                if (taught := trial.teach(listed[:number])) is not None:
                    yield {"method": method, "answers": number, **trial.score_taught(taught, crfs)}
    if "clusters" in methods:
        for classes in (trial.model.config.classes, *LEAVES):
            summary = trial.model.class_summary_
            if summary is not None and classes <= len(summary.tree):
                count, found = name_clusters(trial, classes)
                yield {"method": "clusters", "answers": count, **found}
    if "probe" in methods:
        yield {"method": "probe", "answers": 0, **probe(trial)}


def label_maps(trial: Trial, counts: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Yield the scores of models that were taught with a number of label maps."""
    for count in counts:
        step = max(1, len(trial.pool) // count)
        listed = [trial.person.label_map(one.key) for one in trial.pool[::step][:count]]
        if (taught := trial.teach(listed)) is not None:
            yield {"method": "label maps", "answers": count,
                   **trial.score_taught(taught, [False, True])}  # fmt: skip


def write(rows: Sequence[dict[str, Any]], folder: Path, about: dict[str, Any]) -> None:
    """Write results.json, and results.md with mean and standard deviation of the seeds."""
    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps({"arguments": about, "rows": rows}, indent=1, default=str)
    (folder / "results.json").write_text(content + "\n", "utf-8")
    cells: dict[tuple[str, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        for kind in ("tokens", "crf"):
            if kind in row:
                label = row["method"] + (" + CRF" if kind == "crf" else "")
                cells[row["set"], label][row["answers"]].append(100 * row[kind]["mean_iou"])
    numbers = sorted({number for found in cells.values() for number in found})
    lines = ["| set | method | " + " | ".join(map(str, numbers)) + " |",
             "|---|---|" + "---|" * len(numbers)]  # fmt: skip
    for (name, label), found in cells.items():
        shown = []
        for number in numbers:
            values = found.get(number, [])
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            shown.append(f"{statistics.mean(values):.1f}{spread}" if values else "")
        lines.append(f"| {name} | {label} | " + " | ".join(shown) + " |")
    (folder / "results.md").write_text("\n".join(lines) + "\n", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--answers", nargs="+", type=int, default=list(NUMBERS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--errors", type=float, default=0.0, help="share of wrong answers")
    parser.add_argument("--crf", action="store_true", help="also score taught models with the CRF")
    parser.add_argument("--level", default="tokens", help="level of the taught models")
    parser.add_argument("--label-maps", nargs="+", type=int, help="numbers of label maps")
    parser.add_argument("--every", type=int, default=1, help="use every n-th image")
    parser.add_argument("--dry-run", action="store_true", help="few images and answers")
    parser.add_argument("--cache", type=Path, default=cache_dir() / "features")
    arguments = parser.parse_args()
    if arguments.dry_run:
        arguments.every, arguments.seeds = max(arguments.every, 30), [0]
        arguments.answers = [10, 25]
    rows: list[dict[str, Any]] = []
    for name in arguments.sets:
        for seed in arguments.seeds:
            trial = load(arguments.data, name, seed, arguments)
            if arguments.label_maps:
                found = label_maps(trial, arguments.label_maps)
            else:
                found = curves(trial, arguments, seed)
            for row in found:
                rows.append({"set": name, "seed": seed, **row})
                print(name, seed, row["method"], row["answers"],
                      *(f"{kind} {100 * row[kind]['mean_iou']:.1f}"
                        for kind in ("tokens", "crf") if kind in row), flush=True)  # fmt: skip
                write(rows, arguments.out, vars(arguments))


if __name__ == "__main__":
    main()
