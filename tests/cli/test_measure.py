"""The command measure, end to end on two label maps."""

import csv
import json

import numpy as np
from PIL import Image
from typer.testing import CliRunner

from primaps.cli.app import app


def test_measure_prints_totals_and_writes_both_tables(tmp_path):
    maps = tmp_path / "maps"
    maps.mkdir()
    (maps / "classes.json").write_text(json.dumps({"classes": ["soil", "plant"]}))
    labels = np.zeros((10, 10), np.uint8)
    labels[2:4, 2:7] = 1
    Image.fromarray(labels).save(maps / "a.png")
    out, objects = tmp_path / "a.csv", tmp_path / "o.csv"
    command = ["measure", str(maps), "--out", str(out), "--objects", str(objects)]
    found = CliRunner().invoke(app, [*command, "--only", "plant", "--resolution", "1cm"])
    assert found.exit_code == 0, found.output
    assert "plant" in found.output
    assert "10.0 %" in found.output
    with objects.open(encoding="utf-8-sig", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["x"], row["y"], row["area_cm2"]) == ("4.5", "3.0", "10.0")
    assert len(out.read_text("utf-8-sig").splitlines()) == 3
