"""``primaps reproduce`` on a small folder with labels, and its plan without any data."""

import json
import re
from dataclasses import replace
from functools import partial

import pytest
import torch
from PIL import Image

import primaps
from primaps.backbones.backbone import Backbone, flip_average
from primaps.backbones.load import load_backbone
from primaps.data import load_dataset
from primaps.persistence import ModelError
from primaps.projections import Head, Projection, load_projection
from primaps.projections.projection import encoder
from primaps.reproduction import (
    PAPER,
    TABLES,
    Reproduction,
    TableRow,
    drawings,
    experiment,
    paper,
    report,
    run,
)
from primaps.reproduction.plan import Estimator, training_products
from primaps.reproduction.run import CachedFeatures
from primaps.reproduction.run_context import Run, RunContext
from tests.cli.test_cli import call
from tests.conftest import painted
from tests.reproduction.miniature import data_sets

QUICK = {"size": 64, "epochs": 1, "min_steps": 4, "min_init_steps": 6}
OPTIONS = [part for k, v in QUICK.items() for part in (f"--{k.replace('_', '-')}", v)]


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    monkeypatch.setenv("PRIMAPS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("primaps.backbones.weights.in_hub_cache", lambda hub_id: False)
    monkeypatch.setattr("primaps.backbones.weights.hub_reachable", lambda: False)


@pytest.fixture
def root(tmp_path):
    """Five pictures to fit and three others to score, in the layout of a folder."""
    root = tmp_path / "data"
    for split, seeds in (("train", range(5)), ("val", range(10, 13))):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for seed in seeds:
            image, label = painted(seed)
            image.save(root / "images" / split / f"{seed}.png")
            Image.fromarray(label).save(root / "labels" / split / f"{seed}.png")
    (root / "classes.json").write_text('{"classes": ["red", "green", "blue"], "ignore_index": 255}')
    return root


@pytest.fixture
def table1(root, vit, tmp_path):
    """Run table1 on the folder with more options; returns its output and report."""

    def go(*more, name="table1"):
        arguments = ["--dataset", "folder", "--root", root, "--backbone", vit, *OPTIONS]
        arguments += ["--out", tmp_path / "out", "--device", "cpu", *more]
        done = call("reproduce", name, *arguments)
        assert done.exit_code in (0, 130), done.output
        report = tmp_path / "out" / name / "report.md"
        return done, report.read_text("utf-8") if report.is_file() else ""

    return go


def cells_of(report, method, backbone="vit0"):
    for line in report.splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split("|")]
        if cells[:2] == [backbone, method]:
            return cells[2:]
    raise AssertionError(f"no row {method} of {backbone} in\n{report}")


def test_figures_are_those_of_evaluate_run_by_hand(table1, root, vit):
    _, text = table1("--seeds", 0)
    train, val = (load_dataset("folder", root, split) for split in ("train", "val"))
    options = {"backbone": vit, "device": "cpu", "recipe": "paper", **QUICK}
    by_hand = {
        "baseline": ({"method": "kmeans"}, False),
        "baseline + CRF": ({"method": "kmeans"}, True),
        "PriMaPs-EM": ({}, True),
        "PriMaPs-EM without CRF": ({}, False),
        "linear probe": ({"method": "probe"}, False),
    }
    for label, (own, crf) in by_hand.items():
        model = primaps.PriMaPsEM(3, **options, **own)
        model.fit(train.samples, train if label == "linear probe" else None, cache=None)
        result = primaps.evaluate(model, val, crf=crf)
        figures = [f"{100 * value:.1f}" for value in (result.accuracy, result.mean_iou)]
        assert cells_of(text, label)[:2] == figures, label
    assert "fitted to 5 images (train), scored on 3 others (val)" in text


def test_a_table_has_spread_pictures_and_environment(table1, tmp_path, root):
    _, text = table1("--seeds", "0,1")
    folder = tmp_path / "out" / "table1"
    about = json.loads((folder / "report.json").read_text())
    em = next(row for row in about["rows"] if row["label"] == "PriMaPs-EM")
    found = [100 * each["mean_iou"] for each in em["runs"]]
    mean, spread = sum(found) / 2, abs(found[0] - found[1]) / 2**0.5
    assert cells_of(text, "PriMaPs-EM")[1] == f"{mean:.1f} ± {spread:.1f}"
    assert "±" not in cells_of(text, "oracle, pixels in masks")[1]  # nothing random in it
    for picture in re.findall(r"\]\(([^)]*\.png)\)", text):
        assert Image.open(folder / picture).size[0] > 300
    assert len(re.findall(r"\.png\)", text)) == 4
    assert (folder / "folder-fitted.txt").read_text().split() == ["0", "1", "2", "3", "4"]
    assert (folder / "folder-scored.txt").read_text().split() == ["10", "11", "12"]
    assert about["versions"]["primaps"] == primaps.__version__
    assert about["weights"]["vit0"] == em["runs"][0]["weights"]
    assert em["runs"][0]["config"]["min_steps"] == 4
    assert str(root.parent) not in text + json.dumps(about)  # readable on any machine


@pytest.mark.slow
def test_after_an_interrupt_only_missing_rows_are_run(table1, tmp_path, monkeypatch):
    original, runs = run._result, []

    def stops_in_the_fourth(*arguments):
        runs.append(arguments[0].name)
        if len(runs) == 4:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(run, "_result", stops_in_the_fourth)
    done, _ = table1("--seeds", "0,1")
    assert done.exit_code == 130
    rows = tmp_path / "out" / "rows"
    before = {path: path.read_bytes() for path in rows.iterdir()}
    assert [path.stem for path in sorted(before)] == sorted(runs[:3])
    done, text = table1("--seeds", "0,1")
    assert runs[4] == runs[3]
    assert len(runs) == 4 + 15 - 3  # seven rows of two seeds and one oracle, which three rows share
    assert all(path.read_bytes() == content for path, content in before.items())
    assert done.output.count("(from an earlier run)") == 5  # three, and two more rows of the oracle
    assert "not run" not in text
    table1("--seeds", "0,1")
    assert len(runs) == 16


@pytest.mark.slow
def test_what_decides_a_result_is_in_its_name(table1, root, tmp_path):
    rows = lambda: set((tmp_path / "out" / "rows").iterdir())  # noqa: E731
    table1("--seeds", 0)
    first = rows()
    table1("--seeds", 0)
    assert rows() == first
    table1("--seeds", 0, "--min-steps", 5)
    assert len(rows()) == 2 * len(first) - 2  # the recipe orthogonal takes no such steps
    Image.new("L", (64, 64), 1).save(root / "labels" / "val" / "11.png")
    table1("--seeds", 0)
    assert len(rows()) == 3 * len(first) - 2
    models = len(list((tmp_path / "out" / "models").iterdir()))
    Image.new("RGB", (64, 64)).save(root / "images" / "train" / "3.png")
    table1("--seeds", 0)
    assert len(rows()) == 4 * len(first) - 2
    assert len(list((tmp_path / "out" / "models").iterdir())) == models + 4


def test_rows_share_features_masks_and_fits(table1, monkeypatch):
    forward, batches = Backbone.forward, []
    fits = []
    monkeypatch.setattr(
        Backbone, "forward", lambda self, x: (batches.append(len(x)), forward(self, x))[1]
    )
    fit = primaps.PriMaPsEM.fit_extracted
    monkeypatch.setattr(
        primaps.PriMaPsEM, "fit_extracted", lambda *a, **k: (fits.append(1), fit(*a, **k))[1]
    )
    table1("--seeds", 0)
    # Three images for the oracle, and three and their flipped images to score for each of three
    # rows. Single ones are five to fit and their flipped images, ask for a shape, or are of sheets.
    assert sorted(b for b in batches if b > 1) == [3] * 7
    assert len(fits) == 4
    singles = batches.count(1)
    batches.clear()
    table1("--seeds", "0,1")
    assert sorted(b for b in batches if b > 1) == [3] * 4
    assert batches.count(1) == singles - 2 * 5
    assert len(fits) == 8


def test_cached_codes_are_those_of_the_encoder_to_the_last_bit(colors, tmp_path):
    network = load_backbone(colors, "cpu", patch_size=8)
    projection = Projection(Head(channels=16, dim=5))
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    cached = CachedFeatures(network, tmp_path, projection)
    expected = flip_average(encoder(network, projection), images)
    assert torch.equal(cached(images), expected)
    assert torch.equal(cached(images[[2, 0]]), expected[[2, 0]])
    assert not torch.equal(expected, projection(flip_average(network, images)))


@pytest.mark.slow
def test_rows_without_weights_stay_with_the_reason(table1):
    done, text = table1("--seeds", 0, "--backbone", "dino-vitb8")
    cells = cells_of(text, "PriMaPs-EM", "dino-vitb8")
    assert cells[:2] == ["-", "-"]
    assert cells[2].startswith("no weights for dino-vitb8: the Hugging Face hub cannot be reached")
    assert float(cells_of(text, "PriMaPs-EM")[0]) > 0
    assert done.output.count("no weights for dino-vitb8") == 1  # told once, for all rows
    done, text = table1("--seeds", 1, "--backbone", "dino-vitb8", "--budget", 0)
    assert "the budget ended" in cells_of(text, "PriMaPs-EM")[2]  # more time is all it takes


def test_rows_on_top_of_projections_say_what_is_missing(table1, tmp_path):
    _, text = table1("--seeds", 0, "--projection", f"HP={tmp_path}/none.pt", name="table6")
    assert cells_of(text, "HP")[2] == f"the checkpoint {tmp_path}/none.pt does not exist"
    settings = Reproduction(tmp_path, roots={"cityscapes": tmp_path})
    row = next(row for row in experiment("table6").rows if row.label == "HP + PriMaPs-EM")
    assert settings.lacking(row) == (
        "no checkpoint of HP: add --projection HP/cityscapes/dinov2-vitb14=PATH"
    )


@pytest.fixture
def all_of_potsdam(monkeypatch, tmp_path):
    """Begin all with the data of Potsdam-3 alone; returns the output and what was begun."""
    data = data_sets(tmp_path / "data")["potsdam"]

    def go(*more, failing=()):
        begun = []

        def begin(name, *arguments, **options):
            begun.append(name)
            if name in failing:
                raise ModelError("no row could be run")
            return tmp_path

        monkeypatch.setattr("primaps.reproduction.reproduce", begin)
        out = tmp_path / "out"
        return call("reproduce", "all", "--root", f"potsdam={data}", "--out", out, *more), begun

    return go


def test_all_passes_over_what_has_no_data(all_of_potsdam):
    done, begun = all_of_potsdam()
    assert done.exit_code == 0, done.output
    assert {"table3", "table5", "figure3"} < set(begun)
    assert not {"table1", "table2", "table4a", "figure8"} & set(begun)
    words = " ".join(done.output.split())
    assert "not run because of missing data: table1, table2, table4a, table4b, figure8" in words
    done, begun = all_of_potsdam("--dataset", "potsdam")
    assert done.exit_code == 0, done.output
    assert begun[:2] == ["table3", "table5"]


def test_all_goes_on_after_what_failed_and_fails_if_nothing_else_is_left(all_of_potsdam, tmp_path):
    done, begun = all_of_potsdam(failing=("table5",))
    assert done.exit_code == 0, done.output
    assert "table5: no row could be run" in " ".join(done.output.split())
    assert begun[-1] == "figure10"
    done, again = all_of_potsdam(failing=PAPER)
    assert done.exit_code == 1
    assert again == begun
    (tmp_path / "empty").mkdir()
    done, begun = all_of_potsdam("--root", f"cityscapes={tmp_path}/empty")
    assert (done.exit_code, begun) == (1, [])  # data is looked at before any work


@pytest.mark.slow
def test_a_row_that_fails_keeps_its_reason_and_the_others_go_on(
    table1, root, vit, tmp_path, monkeypatch
):
    original = run._result

    def result(own, *arguments):
        if own.row.label == "recipe orthogonal":
            raise ModelError("its folder is full")
        return original(own, *arguments)

    monkeypatch.setattr(run, "_result", result)
    done, text = table1("--seeds", 0)
    assert cells_of(text, "recipe orthogonal")[2] == "its folder is full"
    assert "recipe orthogonal, seed 0: not run, its folder is full" in done.output
    for label in ("recipe orthogonal without CRF", "linear probe"):
        assert float(cells_of(text, label)[0]) > 0
    # A result and a fit that somebody else wrote are theirs as well.
    out = tmp_path / "out"
    (probe,) = (out / "rows").glob("*probe*")
    probe.write_text("[]")
    baseline = json.loads(next((out / "rows").glob("*baseline*")).read_text())
    fit = out / baseline["model"] / "fit.json"
    fit.write_text(fit.read_text().replace('"fingerprint": "', '"fingerprint": "0'))
    for path in (out / "rows").glob("*baseline*"):
        path.unlink()
    _, text = table1("--seeds", 0)
    assert cells_of(text, "linear probe")[2].endswith("remove the file to repeat the run")
    assert cells_of(text, "baseline")[2] == (
        f"{fit} belongs to another fit; remove the file to repeat the run"
    )
    assert float(cells_of(text, "PriMaPs-EM")[0]) > 0


def test_a_damaged_model_keeps_no_report_from_being_written(table1, tmp_path):
    _, text = table1("--seeds", 0, name="figure10")
    assert "failures-folder-vit0.png" in text
    (model,) = (tmp_path / "out" / "models").glob("*/model.safetensors")
    model.write_bytes(b"")
    _, text = table1("--seeds", 0, name="figure10")
    assert float(cells_of(text, "PriMaPs-EM")[0]) > 0
    assert "failures-folder-vit0.png" not in text


def test_where_no_row_can_run_the_reason_is_the_error(root, vit, tmp_path):
    done = call("reproduce", "table1", "--dataset", "folder", "--root", root, "--backbone", vit,
                "--out", tmp_path / "out", "--size", 60, "--device", "cpu")  # fmt: skip
    assert done.exit_code == 1
    assert "size 60 is not a multiple of the patch size 8" in " ".join(done.output.split())
    assert not (tmp_path / "out" / "table1").exists()
    done = call("reproduce", "table1", "--dataset", "folder", "--root", root, "--backbone",
                "dino-vitb8", "--out", tmp_path / "out", "--device", "cpu")  # fmt: skip
    assert done.exit_code == 1
    assert "no weights for dino-vitb8" in " ".join(done.output.split())
    assert not (tmp_path / "out" / "table1").exists()


def test_a_checkpoint_with_clusters_for_other_classes_is_the_reason_of_its_row(table1, tmp_path):
    """K-means in their place would be another method under the name of this one."""
    for clusters, words in ((torch.randn(5, 6), "5 clusters"), (None, "no clusters")):
        Projection(Head(channels=64, dim=6), clusters=clusters).save(tmp_path / words)
        given = f"HP={tmp_path / words}"
        _, text = table1("--seeds", 0, "--projection", given, "--epochs", 1, name="table6")
        reason = cells_of(text, "HP")[2]
        assert (
            reason
            == f"the checkpoint of HP has {words}; the row needs one for each of the 3 classes"
        )
        assert float(cells_of(text, "baseline")[0]) > 0


@pytest.mark.slow
def test_projections_of_a_folder_are_trained_once_a_seed(table1, vit, tmp_path, monkeypatch):
    few = partial(run.train_projection, steps=3)
    monkeypatch.setattr(run, "train_projection", few)
    _, text = table1("--seeds", 0, name="projections")
    assert "not run" not in text
    for label in ("STEGO + CRF", "STEGO + PriMaPs-EM", "HP", "HP + PriMaPs-EM + CRF"):
        assert float(cells_of(text, label)[0]) > 0
    hp, stego = sorted((tmp_path / "out" / "models").glob("[A-Z]*/projection.safetensors"))
    assert (hp.parent.name[:14], stego.parent.name[:17]) == ("HP-vit0-seed0-", "STEGO-vit0-seed0-")
    report = json.loads((tmp_path / "out" / "projections" / "report.json").read_text())
    digests = {name: load_projection(None, path.parent).digest
               for name, path in (("HP", hp), ("STEGO", stego))}  # fmt: skip
    for row in (row for row in report["rows"] if row["projection"]):
        assert row["runs"][0]["codes"]["projection"] == digests[row["projection"]]
    assert f"(models/{hp.parent.name}): SHA-256 `{digests['HP']}`, network `" in text
    model = primaps.PriMaPsEM(3, backbone=vit, size=64, projection=hp.parent, device="cpu")
    assert model.projection.digest == digests["HP"]  # a person can go on with it
    again, _ = table1("--seeds", 0, name="projections")
    assert again.output.count("(from an earlier run)") == 12


@pytest.mark.slow
def test_a_budget_stops_before_a_row_and_the_same_command_goes_on(table1, tmp_path):
    done, text = table1("--seeds", 0, "--budget", 0)
    for label in ("baseline", "oracle, pixels in masks"):
        assert "the budget ended before baseline, seed 0" in cells_of(text, label)[2]
    assert done.output.count("the same command continues") == 1
    assert not (tmp_path / "out" / "rows").exists()
    _, text = table1("--seeds", 0, "--budget", 60)
    assert "not run" not in text


def test_the_worst_images_are_those_of_lowest_accuracy(table1, tmp_path, monkeypatch):
    shown, labeled = [], []
    predict, load = drawings.predict_samples, drawings.load_pair
    monkeypatch.setattr(
        drawings,
        "predict_samples",
        lambda *a, **k: (shown.extend(s.key for s in a[2]), predict(*a, **k))[1],
    )
    monkeypatch.setattr(
        drawings, "load_pair", lambda *a, **k: (labeled.append(a[1].key), load(*a, **k))[1]
    )
    _, text = table1("--seeds", 0, name="figure10")
    assert "Images with the lowest accuracy of the segmentation (left, of all images)" in text
    about = json.loads((tmp_path / "out" / "figure10" / "report.json").read_text())
    accuracy = about["rows"][0]["runs"][0]["by_image"]
    assert set(accuracy) == {"10", "11", "12"}
    assert [accuracy[key] for key in shown] == sorted(accuracy.values())
    assert set(labeled) == set(accuracy)  # every pseudo label is judged, as there are few
    labeled.clear()
    monkeypatch.setattr(drawings, "JUDGED_IMAGES", 2)
    _, text = table1("--seeds", 0, name="figure10")
    assert labeled == ["10", "12"]  # at even distances
    assert "(right, of at most 2 images)" in text


def test_the_order_of_the_paper_is_judged_by_mean_iou():
    def outcomes(**values):
        named = zip(report.ORDER, values.values(), strict=True)
        rows = [TableRow(label, "folder", "b") for label, _ in named]
        iou = [{"a": value + 0.1, "b": value - 0.1, "c": None} for value in values.values()]
        means = [sum((x["a"], x["b"])) / 2 for x in iou]
        results = [{0: {"mean_iou": m, "iou": x}} for m, x in zip(means, iou, strict=True)]
        return [run.Outcome(row, result) for row, result in zip(rows, results, strict=True)]

    (holds,) = report._order(outcomes(baseline=0.1, em=0.2, probe=0.3, oracle=0.4))
    assert "mean IoU (b: baseline 10.0, PriMaPs-EM 20.0, linear probe 30.0" in holds
    assert holds.endswith("40.0) holds.")
    (broken,) = report._order(outcomes(baseline=0.3, em=0.2, probe=0.3, oracle=0.4))
    text = (
        "does not hold: baseline is not below PriMaPs-EM, mostly because of b (20.0 against 10.0)"
    )
    for part in (text, "a (40.0 against 30.0)"):
        assert part in broken
    assert "c (" not in broken
    (tie,) = report._order(outcomes(baseline=0.3, em=0.3, probe=0.4, oracle=0.5))
    assert tie.endswith("does not hold: baseline is not below PriMaPs-EM.")


def test_all_tables_are_planned_without_data_or_network(monkeypatch):
    def never(*arguments, **options):
        raise AssertionError("a plan asks nobody")

    monkeypatch.setattr("urllib.request.urlopen", never)
    monkeypatch.setattr("primaps.backbones.weights.hub_reachable", never)
    done = call("reproduce", "all", "--plan")
    assert done.exit_code == 0, done.output
    for name in PAPER:
        assert f"{name}: " in done.output
    rows = [line for line in done.output.splitlines() if line.startswith("  ")]
    assert all("data not given; weights not found" in row for row in rows)
    codes = [row for row in rows if "codes of HP's" in row]
    assert codes == [row for row in rows if "checkpoint of HP not given" in row]
    assert re.search(r"total: GPU [\d.]+ (h|days), CPU [\d.]+ days", done.output)


def test_a_plan_counts_shared_work_once_and_writes_nothing(root, vit, tmp_path):
    done = call("reproduce", "table1", "--dataset", "folder", "--root", root, "--backbone", vit,
                "--out", tmp_path / "out", "--plan")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert done.output.count("data found; weights found") == 10
    assert done.output.count("shares the work of another") == 2  # of the oracle
    assert not (tmp_path / "out").exists()


def test_a_plan_counts_the_training_of_projections_once_a_seed(root, vit, tmp_path):
    about = Reproduction(tmp_path, {"folder": root}, "folder", (str(vit),), seeds=(0, 1))
    rows = about.experiment("projections").rows
    plain = Estimator(about).cost(rows[0], 0).products
    step = 5 * 64 * (320 // 8) ** 2 * 3  # images, channels, positions, classes
    for name in ("STEGO", "HP"):
        estimator = Estimator(about)
        first, refined = (r for r in rows if r.projection == name and r.kind == "baseline")
        training = training_products(name, 5, 64, step)
        assert estimator.cost(first, 0).products == plain + training > 1.5 * plain
        assert estimator.cost(refined, 0).products == 0
        assert estimator.cost(first, 1).products == plain + training
        given = replace(about, projections={name: tmp_path})
        assert Estimator(given).cost(first, 0).products == plain


def test_a_plan_speaks_of_augmentation_where_there_is_some():
    assert "--views 2 computes two" in call("reproduce", "figure1", "--plan").output
    assert "--views 2" not in call("reproduce", "table5", "--plan").output


def test_figure_8a_is_printed_beside_its_own_backbone_alone():
    def outcome(row):
        scores = dict.fromkeys(paper.IOU, 0.5)
        return run.Outcome(row, {0: {"iou": scores}})

    rows = experiment("figure8", backbones=["dino-vitb8", "dinov2-vitb14"]).rows
    head, _, *lines = report.iou_table([outcome(row) for row in rows])
    assert head.count("| paper |") == 4
    assert head.endswith("| PriMaPs-EM, dinov2-vitb14 | STEGO, dinov2-vitb14 | "
                         "STEGO + PriMaPs-EM, dinov2-vitb14 |")  # fmt: skip
    assert "| person | 50.0 | 58.3 | 50.0 | 68.7 | 50.0 | 61.7 | 50.0 | 64.3 | 50.0 |" in lines[9]
    for dataset in ("folder", None):
        rows = experiment("figure8", dataset, ["dinov2-vitb14"]).rows
        assert "paper" not in report.iou_table([outcome(row) for row in rows])[0]


def test_every_figure_of_the_paper_is_in_a_row():
    printed = {
        "table1": 12 + 8, "table2": 12 + 8, "table3": 12 + 6, "table4a": 5, "table4b": 5,
        "table5": 18, "table6": 12,
    }  # fmt: skip
    for name, number in printed.items():
        rows = experiment(name).rows
        assert sum(row.paper is not None for row in rows) == len(rows) == number, name
    found = {row.label: row.paper for row in experiment("table4b").rows}
    assert found == paper.EM
    assert {row.label: row.paper for row in experiment("table4a").rows} == paper.MASKS
    quoted = {row.label for row in experiment("table2").rows if row.quoted}
    assert quoted == {"STEGO", "STEGO, linear probe", "HP", "HP, linear probe"}
    boosted = next(r for r in experiment("table6").rows if r.label == "HP + PriMaPs-EM")
    assert boosted.paper == (74.3, 16.6)
    for name in PAPER:
        assert all(row.paper is None for row in experiment(name, "folder", ["a"]).rows), name


def test_rows_of_a_table_differ_in_what_decides_them(tmp_path):
    settings = Reproduction(tmp_path)
    for name in TABLES:
        rows = experiment(name).rows
        about = [
            json.dumps([settings.config(r, 0), r.dataset, r.backbone, r.crf, r.kind, r.pixels,
                        r.projection, r.split], sort_keys=True)
            for r in rows
        ]  # fmt: skip
        assert len(set(about)) == len(rows), name
    assert settings.config(experiment("table2").rows[1], 0)["epochs"] == 5
    assert settings.config(experiment("table1").rows[1], 0)["epochs"] == 50


def test_rows_of_table_4_change_what_they_say_and_nothing_else(tmp_path):
    """The options of Tables 4a and 4b, from their captions."""
    settings = Reproduction(tmp_path)

    def options(name):
        rows = {row.label: row for row in experiment(name).rows}
        full = primaps.Config(27, **settings.config(TableRow("", "cocostuff", "b"), 0))
        changed = {}
        for label, row in rows.items():
            own = primaps.Config(27, **settings.config(row, 0))
            names = vars(own).keys()
            changed[label] = {n: getattr(own, n) for n in names if vars(own)[n] != vars(full)[n]}
        return changed

    assert options("table4a") == {
        "baseline": {"method": "kmeans"},
        "similarity masks": {"anchor": False, "mask_crf": False},
        "+ NN": {"mask_crf": False},
        "+ P-CRF": {},
        "non-iterative": {"iterative": False},
    }
    assert options("table4b") == {
        "baseline": {"method": "kmeans"},
        "+ PriMaPs pseudo label": {"views": 0, "momentum": 0.0, "momentum_every": 1},
        "+ EMA": {"views": 0},
        "+ augment": {},
        "+ CRF": {},
    }


@pytest.mark.slow
def test_the_protocol_of_the_program_is_its_resizing_its_ramp_and_its_positions(table1, tmp_path):
    row = experiment("table1").rows[1]
    ours, program = (Reproduction(tmp_path, protocol=p) for p in ("paper", "program"))
    assert not ours.config(row, 0)["momentum_ramp"]
    assert program.config(row, 0)["momentum_ramp"]
    table1("--seeds", 0, "--protocol", "program", name="table4a")
    about = json.loads((tmp_path / "out" / "table4a" / "report.json").read_text())
    assert {each["runs"][0]["options"]["resize"] for each in about["rows"]} == {"tensor"}
    table1("--seeds", 0, name="table4a")
    exact = json.loads((tmp_path / "out" / "table4a" / "report.json").read_text())
    assert exact["weights"] == about["weights"]  # the same file
    for found, positions in ((about, "scaled"), (exact, "exact")):
        runs = [row["runs"][0] for row in found["rows"]]
        assert found["positions"] == positions
        assert {each["positions"] for each in runs} == {positions}
    fits = [{row["runs"][0]["model"] for row in found["rows"]} for found in (about, exact)]
    assert not fits[0] & fits[1]


def test_what_decides_features_is_in_every_digest(root, vit, tmp_path, monkeypatch):
    """Otherwise a projection, a model or scores of other features would be taken for these."""
    row = TableRow("HP", "folder", str(vit), "baseline", projection="HP")

    def digests(size=64, **options):
        options["options"] = {"size": size, "precision": options.pop("precision", "float32")}
        about = Reproduction(tmp_path, roots={"folder": root}, device="cpu", **options)
        context = RunContext(about)
        found = Run.prepare(row, 0, context, context.backbone(str(vit)))
        return found.images, found.fit, found.result

    plain = digests()
    assert digests() == plain
    assert digests(seeds=(1,)) == plain
    changed = [digests(size=128), digests(precision="bfloat16"), digests(protocol="program")]
    for name, value in (("FORMAT", 99), ("VERSION", "9.9")):
        with monkeypatch.context() as patch:
            patch.setattr(f"primaps.reproduction.run_context.{name}", value)
            changed.append(digests())
    Image.new("RGB", (64, 64)).save(root / "images" / "train" / "3.png")
    changed.append(digests())
    for each in zip(plain, *changed, strict=True):
        assert len(set(each)) == 1 + 6


def test_the_means_of_figure_8a_are_those_of_table_2():
    """As far as they are: the paper's own figures differ by up to 0.8."""
    printed = dict(zip(paper.IOU_METHODS, zip(*paper.IOU.values(), strict=True), strict=True))
    rows = {row.label: row.paper for row in experiment("figure8").rows}
    assert len(paper.IOU) == 27
    for label, values in printed.items():
        assert sum(values) / 27 == pytest.approx(rows[label][1], abs=0.8)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["table9"], "'table9' is not a table or figure; choose one of table1, "),
        (
            ["table1", "--dataset", "potsdam"],
            "table1 does not use the data set 'potsdam'; choose cityscapes",
        ),
        (["table1"], "table1 needs data: add --root cityscapes=FOLDER, or use --plan"),
        (["table5", "--root", "x"], "has no name of a data set; write cityscapes=FOLDER"),
        (["table1", "--root", "x"], "x does not exist; give the folder that holds leftImg8bit/"),
        (
            ["table1", "--seeds", "a,b"],
            "--seeds is 'a,b'; it must be distinct integers such as 0,1,2",
        ),
        (["table1", "--seeds", "1,1"], "--seeds is '1,1'"),
        (["table1", "--views", "many"], "views is 'many'"),
        (["table1", "--projection", "x.pt"], "it must be STEGO=PATH or HP=PATH"),
        (["table1", "--dataset", "folder", "--plan"], "add --root: a folder with images"),
    ],
)
def test_what_users_can_mend_is_one_sentence(arguments, words, tmp_path):
    done = call("reproduce", *arguments, "--out", tmp_path / "out")
    assert done.exit_code == 1
    assert words in done.output.replace("\n", " ")
