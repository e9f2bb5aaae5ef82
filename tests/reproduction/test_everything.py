"""``primaps reproduce all`` from end to end, on miniatures of everything that it needs."""

import json
import re

import pytest
import torch
from PIL import Image

import primaps
from primaps.data import load_dataset
from primaps.reproduction import PAPER
from tests.cli.test_cli import call
from tests.reproduction import miniature
from tests.reproduction.test_captions import CAPTIONS

pytestmark = pytest.mark.slow
QUICK = (
    "--size", 56, "--epochs", 1, "--min-steps", 12, "--init-epochs", 1, "--min-init-steps", 4,
    "--views", 0, "--seeds", 0, "--device", "cpu",
)  # fmt: skip
THREE = ("cityscapes", "cocostuff", "potsdam")
SHEETS = {
    "figure1": "pseudo-labels", "figure3": "oracle", "figure4": "examples",
    "figure5": "similarities", "figure6": "thresholds", "figure9": "examples",
    "figure10": "failures",
}  # fmt: skip
METHODS = ("baseline", "primaps-em", "stego", "stego-primaps-em")


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    root = tmp_path_factory.mktemp("everything")
    patch = pytest.MonkeyPatch()
    patch.setenv("PRIMAPS_CACHE", str(root / "cache"))
    patch.setattr("primaps.backbones.weights.hub_reachable", lambda: False)
    miniature.backbones(root / "cache")
    roots = miniature.data_sets(root / "data")
    files = miniature.checkpoints(root / "checkpoints", PAPER)
    arguments = [part for k, v in roots.items() for part in ("--root", f"{k}={v}")]
    arguments += [part for k, v in files.items() for part in ("--projection", f"{k}={v}")]
    arguments += ["--cache", root / "store", "--out", root / "out", *QUICK]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # of the smallest products, which others would wait for
    done = call("reproduce", "all", *arguments)
    torch.set_num_threads(threads)
    patch.undo()
    assert done.exit_code == 0, done.output
    return root / "out", done.output


@pytest.mark.parametrize("name", PAPER)
def test_every_row_has_a_number(everything, name):
    out, _ = everything
    about = json.loads((out / name / "report.json").read_text())
    assert len(about["rows"]) == len(CAPTIONS[name])
    for row in about["rows"]:
        assert not row["reason"], row["label"]
        (run,) = row["runs"]
        assert 0 < run["accuracy"] <= 1, row["label"]
        assert 0 < run["mean_iou"] <= 1, row["label"]
    text = (out / name / "report.md").read_text("utf-8")
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert not any("| - |" in line for line in table[: len(CAPTIONS[name])])
    if any(row["quoted"] for row in about["rows"]):
        assert "Scores with * are quoted in the paper" in text


@pytest.mark.parametrize(
    ("name", "dataset"), zip(("table1", "table2", "table3"), THREE, strict=True)
)
def test_scores_are_those_of_the_saved_models(everything, monkeypatch, name, dataset):
    out, _ = everything
    monkeypatch.setenv("PRIMAPS_CACHE", str(out.parent / "cache"))
    monkeypatch.setattr("primaps.backbones.weights.hub_reachable", lambda: False)
    rows = json.loads((out / name / "report.json").read_text())["rows"]
    data = load_dataset(dataset, out.parent / "data" / dataset, "val")
    for kind in ("baseline", "em", "probe"):
        row = next(row for row in rows if row["kind"] == kind and not row["projection"])
        (run,) = row["runs"]
        model = primaps.PriMaPsEM.from_pretrained(out / run["model"], device="cpu")
        scores = primaps.evaluate(model, data, crf=row["crf"])
        assert scores.confusion == run["confusion"], (dataset, kind)
        assert (scores.accuracy, scores.mean_iou) == (run["accuracy"], run["mean_iou"])


@pytest.mark.parametrize("name", PAPER)
def test_every_figure_is_drawn(everything, name):
    out, _ = everything
    drawn = re.findall(r"\]\(([^)]*\.png)\)", (out / name / "report.md").read_text("utf-8"))
    for picture in drawn:
        colors = Image.open(out / name / picture).convert("RGB").getcolors(1 << 24)
        assert len(colors) > 20, picture
    if name in SHEETS:
        backbone = "dino-vits8" if name == "figure9" else "dino-vitb8"
        assert drawn == [f"{SHEETS[name]}-{data}-{backbone}.png" for data in THREE]
    elif name == "figure7":
        assert drawn == ["psi.png"]
    elif name == "figure8":
        assert drawn == [f"confusion-{method}-cocostuff-dino-vitb8.png" for method in METHODS]
    else:
        assert any(picture.startswith("iou-") for picture in drawn)


def test_figure8_has_the_papers_27_ious_beside_ours(everything):
    text = (everything[0] / "figure8" / "report.md").read_text("utf-8")
    assert "| class | baseline | paper | PriMaPs-EM | paper | STEGO | paper |" in text
    rows = dict(re.findall(r"^\| (\S+) \|(.*)\|$", text, re.MULTILINE))
    assert [cell.strip() for cell in rows["person"].split("|")][1::2] == [
        "58.3", "68.7", "61.7", "64.3",
    ]  # fmt: skip
    assert sum(line.count("|") == 10 for line in text.splitlines()) == 27 + 2


def test_codes_come_from_the_network_of_the_checkpoint_where_it_is_another(everything):
    out, _ = everything
    carried = {path.parents[1].name for path in (out / "models").glob("*/backbone/config.json")}
    for name, backbone in (("table1", "dino-vits8"), ("table1", "dino-vitb8")):
        rows = json.loads((out / name / "report.json").read_text())["rows"]
        for row in rows:
            if row["projection"] and row["backbone"] == backbone:
                model = row["runs"][0]["model"].removeprefix("models/")
                assert (model in carried) == (backbone == "dino-vits8"), row["label"]
                scale = 2.0 if row["kind"] == "clusters" else None
                assert row["runs"][0]["config"]["cosine_scale"] == scale
