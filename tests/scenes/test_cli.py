"""Scenes from the command line."""

import numpy as np
import pytest
from PIL import Image

from tests.cli.test_cli import call
from tests.conftest import painted
from tests.scenes.conftest import bands, geotiff

rasterio = pytest.importorskip("rasterio")
QUICK = ["--size", 64, "--min-init-steps", 10, "--no-mask-crf"]


def test_fit_predict_and_propose_a_scene(vit, tmp_path, monkeypatch):
    monkeypatch.setenv("PRIMAPS_CACHE", str(tmp_path / "cache"))
    values = bands(painted(1, 256, 192)[0]).astype(np.uint16) * 16
    scene = geotiff(tmp_path / "scene.tif", np.concatenate([values] * 2))
    model, out = tmp_path / "model", tmp_path / "classes.tif"
    look = ["--bands", "3,2,1", "--mpp", 1]
    fit = ["fit", scene, "--scene-tiles", 8, *look, "--classes", 3, "--out", model]
    done = call(*fit, "--backbone", vit, *QUICK)
    assert done.exit_code == 0, done.output
    assert "8 tiles of 64 px" in done.output
    command = ["predict", model, scene, "--out", out, *look, "--polygons", tmp_path / "a.gpkg"]
    own = ["--size", 64, "--tile-overlap", 16, "--crf-tile", 168, "--stretch", "0,4096"]
    done = call(*command, *own)
    assert done.exit_code == 0, done.output
    with rasterio.open(out) as found:
        assert found.shape == (192, 256)
    assert (tmp_path / "a.gpkg").stat().st_size
    done = call(*command, *own)
    assert "kept from an earlier run" in done.output
    done = call("propose", scene, "--out", tmp_path / "masks.tif", "--backbone", vit, *look,
                "--size", 64, "--no-mask-crf")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "masks: " in done.output
    painted(2, 256, 192)[0].save(tmp_path / "photo.png")
    done = call("predict", model, tmp_path / "photo.png", "--out", tmp_path / "maps", "--tiles")
    assert done.exit_code == 0, done.output
    assert Image.open(tmp_path / "maps" / "photo.png").size == (256, 192)
    for words, sentence in (
        (
            ["predict", model, scene, "--out", tmp_path / "o", "--scale", 2],
            "--out that ends",
        ),
        (
            ["predict", model, scene, "--out", tmp_path / "o.tif", "--bands", "r,g"],
            "not a list of band numbers",
        ),
        (
            ["predict", model, scene, "--out", tmp_path / "o.tif", "--stretch", "7"],
            "is not two numbers",
        ),
        (["predict", model, scene, "--out", tmp_path / "o.tif"], "has 6 bands"),
        (
            ["predict", model, scene, "--out", tmp_path / "o", "--tiles", "--mpp", 2],
            "applies to scenes",
        ),
        (["propose", scene, "--out", tmp_path / "o.tif", "--explain"], "applies to images"),
        (
            ["predict", model, f"{tmp_path}/*.png", "--out", tmp_path / "o.tif"],
            "o.tif is the result of one scene, but",
        ),
        (
            ["predict", model, scene, "--out", tmp_path / "o.tif", *look, "--nodata", "-9999"],
            "--nodata -9999:",
        ),
        (
            ["predict", model, scene, "--out", tmp_path / "o", "--no-alpha"],
            "--alpha applies to scenes",
        ),
        (
            ["fit", scene, "--classes", 3, "--out", tmp_path / "m", "--scale", 2],
            "add --scene-tiles",
        ),
    ):
        extra = [] if words[0] == "predict" else ["--backbone", vit]
        done = call(*words, *extra)
        assert done.exit_code == 1
        assert sentence in " ".join(done.output.split()), done.output
