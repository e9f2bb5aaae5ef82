"""Callables for engines compute the label maps that the commands write."""

import io
import pickle

import numpy as np
import pytest
from PIL import Image

from primaps import Predictor, Proposer
from primaps.backbones.load import load_backbone
from primaps.batch import propose_files
from primaps.model import PriMaPsEM
from tests.conftest import painted
from tests.test_model import QUICK

pytestmark = pytest.mark.usefixtures("unchecked")


def encoded(image, kind="PNG"):
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def test_arrays_bytes_paths_and_images_have_the_same_label_maps(fitted, painted_folder):
    paths = sorted((painted_folder / "images").glob("*.png"))[:3]
    images = [Image.open(path) for path in paths]
    expected = np.stack([fitted.predict(path).numpy() for path in paths])
    forms = {
        "array": np.stack([np.asarray(image) for image in images]),
        "bytes": np.array([encoded(image) for image in images], object),
        "paths": np.array([str(path) for path in paths]),
        "images": images,
        "undecoded": [{"bytes": encoded(image), "path": None} for image in images],
        "named": [{"bytes": None, "path": str(path)} for path in paths],
    }
    for name, column in forms.items():
        rows = Predictor(fitted)({"image": column, "id": [3, 1, 2]})
        assert np.array_equal(rows["labels"], expected), name
        assert rows["labels"].dtype == np.uint8
        assert rows["id"] == [3, 1, 2]
        assert list(rows["problem"]) == ["", "", ""]
        assert "image" not in rows


def test_masks_of_mixed_sizes_equal_those_that_propose_writes(network, tmp_path):
    (tmp_path / "in").mkdir()
    for number, (width, height) in enumerate([(64, 64), (96, 64), (64, 64)]):
        painted(number, width, height)[0].save(tmp_path / "in" / f"{number}.png")
    propose_files(tmp_path / "in", tmp_path / "out", backbone=network, size=64)
    paths = sorted((tmp_path / "in").glob("*.png"))
    proposer = Proposer(network, size=64, encoded=True, column="file", output="png")
    rows = proposer({"file": [str(path) for path in paths]})
    for path, content in zip(paths, rows["png"], strict=True):
        written = np.asarray(Image.open(tmp_path / "out" / path.name))
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), written)


def test_a_damaged_image_becomes_a_row_with_a_problem(fitted, painted_folder):
    good = encoded(painted(0)[0])
    rows = Predictor(fitted)({"image": [good, good[:200], b"text", good]})
    assert [labels.shape for labels in rows["labels"]] == [(64, 64), (0, 0), (0, 0), (64, 64)]
    assert "damaged" in rows["problem"][1]
    assert "not an image" in rows["problem"][2]
    encoded_rows = Predictor(fitted, encoded=True)({"image": [b"text", good]})
    assert encoded_rows["labels"][0] == b""
    with pytest.raises(ValueError, match="no column 'image'; it has picture"):
        Predictor(fitted)({"picture": [good]})
    assert len(Predictor(fitted)({"image": []})["labels"]) == 0


def test_a_pickled_callable_has_no_weights_and_loads_them_once(
    vit, painted_folder, tmp_path, monkeypatch
):
    model = PriMaPsEM(3, backbone=vit, **QUICK).fit(painted_folder / "images")
    model.save_pretrained(tmp_path / "model")
    loaded = []
    load = PriMaPsEM.from_pretrained.__func__

    def counted(cls, folder, **options):
        loaded.append(folder)
        return load(cls, folder, **options)

    monkeypatch.setattr(PriMaPsEM, "from_pretrained", classmethod(counted))
    call = Predictor(str(tmp_path / "model"), device="cpu")
    content = pickle.dumps(call)
    assert len(content) < 1000
    batch = {"image": [np.asarray(painted(0)[0])]}
    assert not loaded
    for one in (call, pickle.loads(content), pickle.loads(content)):
        assert np.array_equal(one(batch)["labels"][0], model.predict(painted(0)[0]).numpy())
    assert len(loaded) == 1
    with pytest.raises(RuntimeError, match="is not a model of primaps"):
        Predictor(tmp_path / "nothing")(batch)


def test_two_ray_workers_write_parquet_of_images_as_one_process_does(vit, painted_folder, tmp_path):
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'ray[data]'")
    data = pytest.importorskip("ray.data", reason="Ray has no Data: pip install 'ray[data]'")
    parquet = pytest.importorskip("pyarrow.parquet")
    model = PriMaPsEM(3, backbone=vit, **QUICK).fit(painted_folder / "images")
    model.save_pretrained(tmp_path / "model")
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level="error",
             object_store_memory=100 * 2**20)  # fmt: skip
    try:
        rows = data.read_binary_files(str(painted_folder / "images"), include_paths=True)
        rows = rows.repartition(4).map_batches(
            Predictor, batch_size=2, concurrency=2,
            fn_constructor_kwargs={
                "model": str(tmp_path / "model"), "column": "bytes", "encoded": True,
                "device": "cpu",
            },
        )  # fmt: skip
        rows.write_parquet(str(tmp_path / "rows"))
    finally:
        ray.shutdown()
    table = parquet.read_table(tmp_path / "rows").to_pylist()
    assert len(table) == 8
    for row in table:
        assert row["problem"] == ""
        labels = np.asarray(Image.open(io.BytesIO(row["labels"])))
        assert np.array_equal(labels, model.predict(row["path"]).numpy())


def test_a_backbone_is_found_by_its_name(vit, network):
    image = np.asarray(painted(0)[0])
    found = Proposer(vit, size=64, device="cpu")({"image": [image]})["masks"]
    given = Proposer(load_backbone(vit, "cpu"), size=64)({"image": [image]})["masks"]
    assert np.array_equal(found, given)
