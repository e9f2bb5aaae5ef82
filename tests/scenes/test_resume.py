"""Killed runs are resumed, and foreign files are never overwritten."""

import subprocess
import sys

import numpy as np
import pytest

import primaps
from primaps.results import OutputError, RawFile
from tests.scenes.conftest import bands, geotiff

CHILD = """
import os, signal, sys
import primaps
seen = 0
def progress(stage, done, total, figures):
    global seen
    seen += 1
    if stage == sys.argv[4] and done >= int(sys.argv[5]):
        os.kill(os.getpid(), signal.SIGKILL)
model = primaps.PriMaPsEM.from_pretrained(sys.argv[1], device="cpu")
look = {"size": 64, "tile_overlap": 16, "crf_tile": 168}
primaps.predict_scene(model, sys.argv[2], sys.argv[3], progress=progress, **look)
"""


@pytest.mark.slow
def test_a_killed_run_resumes_to_identical_bytes(vit, painted_folder, tmp_path, picture):
    pytest.importorskip("rasterio")
    quick = {"min_init_steps": 10, "mask_crf": False}
    model = primaps.PriMaPsEM(3, backbone=vit, size=64, device="cpu", **quick)
    model.fit(painted_folder / "images").save_pretrained(tmp_path / "model")
    path = geotiff(tmp_path / "scene.tif", bands(picture))
    look = {"size": 64, "tile_overlap": 16, "crf_tile": 168}
    primaps.predict_scene(model, path, tmp_path / "whole.tif", **look)
    words = [str(tmp_path / "model"), str(path), str(tmp_path / "parts.tif")]
    for stage, place in (("tiles", 8), ("labels", 4)):
        done = subprocess.run([sys.executable, "-c", CHILD, *words, stage, str(place)], check=False)
        assert done.returncode == -9
        assert not (tmp_path / "parts.tif").exists()
    seen = []
    primaps.predict_scene(
        model, path, tmp_path / "parts.tif", progress=lambda *a: seen.append(a), **look
    )
    assert "tiles" not in {stage for stage, *_ in seen}  # they were finished
    assert [each[1:3] for each in seen if each[0] == "labels"] == [(n, 6) for n in (4, 5, 6)]
    assert (tmp_path / "parts.tif").read_bytes() == (tmp_path / "whole.tif").read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_foreign_files_and_results_of_other_options_are_refused(model, picture, tmp_path):
    pytest.importorskip("rasterio")
    path = geotiff(tmp_path / "scene.tif", bands(picture))
    before = path.read_bytes()
    with pytest.raises(OutputError, match="is the input itself"):
        primaps.predict_scene(model, path, path)
    mine = tmp_path / "mine.tif"
    mine.write_bytes(b"a map")
    with pytest.raises(OutputError, match="exists and is not the result"):
        primaps.predict_scene(model, path, mine)
    assert primaps.predict_scene(model, path, tmp_path / "out.tif", crf=False)
    with pytest.raises(OutputError, match="exists and is not the result"):
        primaps.predict_scene(model, path, tmp_path / "out.tif")
    with pytest.raises(OutputError, match=r"choose .*regions\.gpkg"):
        primaps.predict_scene(
            model, path, tmp_path / "out.tif", crf=False, polygons=tmp_path / "regions.shp"
        )
    (tmp_path / ".new.tif.primaps").mkdir()
    (tmp_path / ".new.tif.primaps" / "letter.txt").write_text("keep me")
    with pytest.raises(OutputError, match="was not written by primaps"):
        primaps.predict_scene(model, path, tmp_path / "new.tif")
    (tmp_path / "b.tif.aux.xml").write_text("<PAMDataset/>")
    with pytest.raises(OutputError, match="aux.xml was not written"):
        primaps.predict_scene(model, path, tmp_path / "b.tif")
    assert path.read_bytes() == before
    assert mine.read_bytes() == b"a map"
    assert (tmp_path / ".new.tif.primaps" / "letter.txt").read_text() == "keep me"


def test_other_options_start_over(model, picture, tmp_path):
    pytest.importorskip("rasterio")
    path = geotiff(tmp_path / "scene.tif", bands(picture))

    def stop(stage, done, total, figures):
        if stage == "labels":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        primaps.predict_scene(model, path, tmp_path / "out.tif", progress=stop)
    assert (tmp_path / ".out.tif.primaps").is_dir()
    primaps.predict_scene(model, path, tmp_path / "out.tif", size=96)
    primaps.predict_scene(model, path, tmp_path / "other.tif", size=96)
    assert (tmp_path / "out.tif").read_bytes() == (tmp_path / "other.tif").read_bytes()


def test_arrays_on_disk_return_what_was_written(tmp_path):
    path = tmp_path / "a.raw"
    path.write_bytes(bytes(5 * 7 * 2))
    raw, wanted = RawFile(path, (5, 7), np.dtype("uint16")), np.zeros((5, 7), np.uint16)
    for top, left, high, wide in ((1, 2, 3, 4), (0, 0, 2, 7), (4, 6, 1, 1)):
        values = np.arange(high * wide).reshape(high, wide) + 7 * top
        raw.put(values, top, left)
        wanted[top : top + high, left : left + wide] = values
    assert (raw.rows(0, 5) == wanted).all()
    assert (raw.rows(2, 4) == wanted[2:4]).all()
