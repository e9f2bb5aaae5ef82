"""The evaluation protocol, compared with scores computed by hand."""

from dataclasses import asdict
from itertools import permutations, product

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from primaps.backbones.load import load_backbone
from primaps.batch import predict_files
from primaps.cli import app
from primaps.data import load_dataset, load_pair
from primaps.em.kmeans import Prototypes
from primaps.evaluation.metrics import majority, match, scores
from primaps.evaluation.oracle import evaluate_oracle
from primaps.evaluation.protocol import evaluate, predict_samples
from primaps.model import PriMaPsEM
from tests.test_model import QUICK

SHADES = (0, 120, 240)


class Gray(torch.nn.Module):
    """A backbone of 4x4 patches with one of three features, selected by the gray value."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        gray = torch.nn.functional.avg_pool2d(images[:, :1] * 0.229 + 0.485, 4)  # of red, in [0, 1]
        return torch.cat([(gray - shade / 255).abs() < 0.1 for shade in SHADES], 1).float()


@pytest.fixture
def model():
    """Three clusters; cluster k has gray value k."""
    network = load_backbone(Gray(), device="cpu", patch_size=4)
    model = PriMaPsEM(3, backbone=network, size=8, method="em", mask_crf=False)
    model.prototypes_ = Prototypes(torch.eye(3) * 20)
    return model


def predicted(model, data, **options):
    """Evaluate, and return the prediction for the first image."""
    options = evaluate(model, data, **options).options
    return next(predict_samples(model, data, data.samples, options)).clusters


def tree(root, grays, labels, classes=("x", "y", "z")):
    """Write one image per entry, in blocks of 4x4 pixels."""
    for kind, maps in (("images", grays), ("labels", labels)):
        (root / kind).mkdir(parents=True)
        for i, cells in enumerate(maps):
            values = np.array(cells, np.uint8).repeat(4, 0).repeat(4, 1)
            values = np.array(SHADES, np.uint8)[values] if kind == "images" else values
            Image.fromarray(values).save(root / kind / f"{i}.png")
    names = ", ".join(f'"{name}"' for name in classes)
    (root / "classes.json").write_text(f'{{"classes": [{names}], "ignore_index": 255}}')
    return root


# Two images of 2x2 cells, by cluster and by label. Clusters 0, 1, 2 are best matched to y, x, z:
# confusion (cells)  x: cluster 1 twice, 0 once;  y: cluster 0 twice;  z: cluster 2 once, 1 once.
GREYS = [[[1, 1], [0, 0]], [[0, 1], [2, 2]]]
LABELS = [[[0, 0], [1, 1]], [[0, 2], [2, 255]]]


def test_scores_of_two_small_images_computed_by_hand(model, tmp_path):
    root = tree(tmp_path, GREYS, LABELS)
    result = evaluate(model, load_dataset("folder", root, "all"), crf=False)
    assert result.confusion == [[16, 32, 0], [32, 0, 0], [0, 16, 16]]
    assert result.assignment == ["y", "x", "z"]
    assert result.accuracy == pytest.approx(5 / 7)
    assert result.iou == pytest.approx({"x": 2 / 4, "y": 2 / 3, "z": 1 / 2})
    assert result.mean_iou == pytest.approx((1 / 2 + 2 / 3 + 1 / 2) / 3)
    assert result.by_image == pytest.approx({"0": 1, "1": 1 / 3})
    assert asdict(result.options) == {
        "size": 8,
        "crop": True,
        "flip": True,
        "crf": False,
        "precision": "float32",
        "resize": "pillow",
        "matching": "hungarian",
        "ignore_index": 255,
        "dataset": "folder",
        "split": "all",
        "root": str(root),
        "include_annotated": None,
        "level": None,
        "reject": False,
    }


def test_folders_and_data_sets_have_the_same_scores(model, tmp_path):
    root = tree(tmp_path, GREYS, LABELS)
    data = evaluate(model, load_dataset("folder", root, "all"), crf=False)
    folders = evaluate(model, root / "images", root / "labels", crf=False)
    assert data.confusion == folders.confusion
    with pytest.raises(ValueError, match="a data set already has labels"):
        evaluate(model, load_dataset("folder", root, "all"), root / "labels")
    with pytest.raises(ValueError, match="give the folder of label maps"):
        evaluate(model, root / "images")


def test_the_crop_is_the_center_and_whole_images_are_an_option(model, tmp_path):
    """Of 2x4 cells the crop keeps the two in the middle."""
    root = tree(tmp_path, [[[0, 1, 1, 2], [0, 1, 1, 2]]], [[[0, 1, 1, 2], [0, 1, 1, 2]]])
    data = load_dataset("folder", root, "all")
    assert np.array(evaluate(model, data, crf=False).confusion).sum(0).tolist() == [0, 64, 0]
    whole = evaluate(model, data, crf=False, crop=False)
    assert whole.confusion == [[32, 0, 0], [0, 64, 0], [0, 0, 32]]
    assert whole.options.crop is False


def test_size_scales_images_and_labels(model, tmp_path):
    data = load_dataset("folder", tree(tmp_path, GREYS, LABELS), "all")
    assert np.sum(evaluate(model, data, crf=False, size=16).confusion) == 7 * 64
    with pytest.raises(ValueError, match="size 18 is not a multiple of the patch size 4"):
        evaluate(model, data, size=18)


def test_flip_averages_features_of_the_image_and_its_flip(model, tmp_path):
    """A backbone with features of the left half only is completed by the flipped image."""
    data = load_dataset("folder", tree(tmp_path, [[[1, 1], [1, 1]]], [[[0, 0], [0, 0]]]), "all")

    class Left(Gray):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            features = super().forward(images)
            features[..., 1:] = torch.tensor([0.1, 0, 0])[:, None, None]
            return features

    model.encoder = load_backbone(Left(), device="cpu", patch_size=4)
    once = predicted(model, data, flip=False, crf=False)
    both = predicted(model, data, flip=True, crf=False)
    assert once[:, 0].unique().tolist() == [1]
    assert once[:, -1].unique().tolist() == [0]
    assert both.unique().tolist() == [1]


def test_the_crf_removes_a_patch_of_another_class_in_an_image_of_one_color(model, tmp_path):
    data = load_dataset("folder", tree(tmp_path, [[[1] * 4] * 4], [[[0] * 4] * 4]), "all")

    class Wrong(Gray):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            features = super().forward(images) * 0.05
            features[..., 1, 2] = torch.tensor([0.1, 0, 0])
            return features

    model.encoder = load_backbone(Wrong(), device="cpu", patch_size=4)
    plain = predicted(model, data, size=16, flip=False, crf=False)
    refined = predicted(model, data, size=16, flip=False, crf=True)
    assert (plain[5:7, 9:11] == 0).all()
    assert (plain == 1).sum() > 200
    assert (refined == 1).all()


@pytest.mark.parametrize("options", [{}, {"flip": True}, {"crf": False, "size": 12}])
def test_whole_images_have_the_scores_of_the_label_maps_that_predict_writes(
    model, tmp_path, options
):
    """At the size of each image: 22 x 13 pixels are scaled to a shorter side of 8 or 12."""
    generator = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    for name in ("a", "b", "c"):
        label = generator.integers(0, 3, (3, 5)).repeat(5, 0)[:13].repeat(5, 1)[:, :22]
        shade = np.array(SHADES)[np.where(generator.random(label.shape) < 0.1, 0, label)]
        Image.fromarray(shade.astype(np.uint8)).save(tmp_path / f"images/{name}.png")
        Image.fromarray(label.astype(np.uint8)).save(tmp_path / f"labels/{name}.png")
    images, labels, out = (tmp_path / name for name in ("images", "labels", "out"))
    predict_files(model, images, out, **options)
    expected = evaluate(model, images, labels, crop=False, **{"flip": False, **options})
    for found in (evaluate(out, labels=labels), evaluate(out, images, labels)):
        assert found.confusion == expected.confusion
        assert found.by_image == expected.by_image
        assert found.assignment == expected.assignment
        assert (found.accuracy, found.mean_iou) == (expected.accuracy, expected.mean_iou)
        assert found.iou == expected.iou
    assert expected.accuracy > 0.4
    assert sum(map(sum, expected.confusion)) == 3 * 13 * 22


def test_label_maps_that_do_not_fit_their_labels_are_skipped(model, tmp_path):
    root = tree(tmp_path, GREYS, LABELS)
    maps = tmp_path / "maps"
    maps.mkdir()
    Image.fromarray(np.array(GREYS[0], np.uint8).repeat(4, 0).repeat(4, 1)).save(maps / "0.png")
    log = []
    found = evaluate(maps, labels=root / "labels", log=log.append)
    assert (found.images, found.accuracy) == (1, 1)
    assert found.options.crop is False
    assert found.options.flip is None
    assert log == [f"{root}/labels/1.png: {maps} has no label map 1.png"]
    Image.fromarray(np.zeros((8, 9), np.uint8)).save(maps / "1.png")
    assert "9x8 pixels and its label 8x8" in evaluate(maps, labels=root / "labels").skipped[0]
    with pytest.raises(ValueError, match="crf applies to models, but .* label maps"):
        evaluate(maps, labels=root / "labels", crf=False)
    with pytest.raises(FileNotFoundError, match="not a folder of label maps"):
        evaluate(tmp_path / "nowhere", labels=root / "labels")


def test_label_maps_from_elsewhere_are_matched_or_taken_as_classes(tmp_path):
    """Three classes and 255, which counts as hidden: its pixels are wrong."""
    root = tree(tmp_path, GREYS, LABELS)
    maps = tmp_path / "maps"
    maps.mkdir()
    for i, cells in enumerate([[[0, 0], [1, 255]], [[0, 2], [2, 2]]]):
        values = np.array(cells, np.uint8).repeat(4, 0).repeat(4, 1)
        Image.fromarray(values).save(maps / f"{i}.png")
    found = evaluate(maps, labels=root / "labels", matching="none")
    assert found.accuracy == pytest.approx(6 / 7)
    assert found.assignment == ["x", "y", "z", None]
    assert found.confusion == [[48, 0, 0, 0], [0, 16, 0, 16], [0, 0, 32, 0]]
    assert evaluate(maps, labels=root / "labels").accuracy == pytest.approx(6 / 7)


def test_more_clusters_than_classes_by_majority(model, tmp_path):
    """Two classes, three clusters: Hungarian leaves cluster 2 out, majority gives it to y."""
    labels = [[[0, 0], [1, 1]], [[1, 0], [1, 255]]]
    data = load_dataset("folder", tree(tmp_path, GREYS, labels, ("x", "y")), "all")
    hungarian = evaluate(model, data, crf=False)
    assert hungarian.assignment == ["y", "x", None]
    assert hungarian.accuracy == pytest.approx(6 / 7)
    result = evaluate(model, data, crf=False, matching="majority")
    assert result.assignment == ["y", "x", "y"]
    assert result.accuracy == 1
    assert result.iou == {"x": 1, "y": 1}
    with pytest.raises(ValueError, match="matching is 'best'; it must be 'names', 'hungarian'"):
        evaluate(model, data, matching="best")


@pytest.mark.parametrize("shape", [(3, 3), (3, 5), (5, 3), (4, 4)])
def test_hungarian_matching_against_every_one_to_one_assignment(shape):
    generator = np.random.default_rng(0)
    for _ in range(20):
        counts = generator.integers(0, 50, shape)
        fewer, more = sorted(shape)
        pairs = [zip(range(fewer), p, strict=True) for p in permutations(range(more), fewer)]
        turned = counts if shape[0] <= shape[1] else counts.T
        best = max(sum(turned[i, j] for i, j in pair) for pair in pairs)
        found = match(torch.from_numpy(counts))
        assert sum(counts[c, k] for k, c in enumerate(found) if c is not None) == best
        assert scores(torch.from_numpy(counts)).accuracy == pytest.approx(best / counts.sum())


def test_majority_against_every_assignment():
    generator = np.random.default_rng(0)
    for _ in range(20):
        counts = generator.integers(0, 50, (3, 5))
        best = max(
            sum(counts[c, k] for k, c in enumerate(choice))
            for choice in product(range(3), repeat=5)
        )
        counts = torch.from_numpy(counts)
        assert scores(counts, majority(counts)).accuracy == pytest.approx(best / int(counts.sum()))


def test_listed_images_that_do_not_exist_are_logged_once(model, tmp_path):
    from tests.trees import cocostuff_tree

    root = cocostuff_tree(tmp_path)
    (root / "images" / "val2017" / "000000000285.jpg").unlink()
    log = []
    result = evaluate(model, load_dataset("cocostuff", root, "val"), crf=False, log=log.append)
    assert result.images == 1
    assert log == result.skipped
    assert "1 of 2 ids of cocostuff val have no image" in log[0]


def test_oracle_takes_data_sets(tmp_path, model):
    data = load_dataset("folder", tree(tmp_path, GREYS, LABELS), "all")
    options = {"backbone": model.backbone, "size": 8, "crf": None}
    folders = (tmp_path / "images", tmp_path / "labels")
    assert evaluate_oracle(data, **options) == evaluate_oracle(*folders, **options)


def test_the_command_takes_data_sets_and_draws(model, tmp_path, monkeypatch):
    root = tree(tmp_path / "data", GREYS, LABELS)
    monkeypatch.setattr(PriMaPsEM, "from_pretrained", lambda *args, **kwargs: model)
    pictures = tmp_path / "pictures"
    options = "--dataset folder --split all --no-flip --no-crf --matching majority --pictures"
    arguments = ["evaluate", "model", str(root), *options.split(), str(pictures)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "flip False" in done.output
    assert "matching majority" in done.output
    assert {path.name for path in pictures.iterdir()} == {
        "confusion.png",
        "iou.png",
        "examples.png",
    }


def test_resizing_as_the_authors_program_does(model, tmp_path):
    """Without antialiasing a bilinear pixel at 1/4 of the size is the mean of the middle four."""
    image = np.arange(16 * 16 * 3, dtype=np.float32).reshape(16, 16, 3) % 251
    image = image.astype(np.uint8)
    label = (np.arange(256).reshape(16, 16) % 3).astype(np.uint8)
    for kind, array in (("images", image), ("labels", label)):
        (tmp_path / kind).mkdir()
        Image.fromarray(array).save(tmp_path / kind / "a.png")
    (tmp_path / "classes.json").write_text('{"classes": ["a", "b", "c"]}')
    data = load_dataset("folder", tmp_path, "all")
    found, labels = load_pair(data, data.samples[0], 4, resize="tensor")
    middle = image.reshape(4, 4, 4, 4, 3)[:, 1:3, :, 1:3].astype(float).mean((1, 3))
    assert np.abs(found.permute(1, 2, 0).numpy() - middle).max() <= 0.5
    assert labels.tolist() == label[::4, ::4].tolist()  # the upper left of each block
    smooth, _ = load_pair(data, data.samples[0], 4)
    assert not torch.equal(smooth, found)
    result = evaluate(model, data, crf=False, resize="tensor")
    assert result.options.resize == "tensor"
    with pytest.raises(ValueError, match="applies to center crops"):
        evaluate(model, data, crop=False, resize="tensor")
    with pytest.raises(ValueError, match="resize"):
        evaluate(model, data, resize="nearest")


@pytest.fixture
def fitted(colors, painted_folder):
    network = load_backbone(colors, device="cpu", patch_size=8)
    return PriMaPsEM(3, backbone=network, **QUICK).fit(painted_folder / "images")


def test_scores_of_a_fitted_model(fitted, painted_folder):
    result = evaluate(fitted, painted_folder / "images", painted_folder / "labels")
    assert result.accuracy > 0.95
    assert set(result.iou) == {"red", "green", "blue"}
    assert sorted(result.assignment) == ["blue", "green", "red"]
    assert np.sum(result.confusion) == 8 * 64 * 64
    assert result.images == 8
    assert result.options.ignore_index == 255


def test_ignored_pixels_are_not_counted(fitted, painted_folder):
    for path in (painted_folder / "labels").glob("*.png"):
        label = np.asarray(Image.open(path)).copy()
        label[:16] = 255
        Image.fromarray(label).save(path)
    result = evaluate(fitted, painted_folder / "images", painted_folder / "labels")
    assert np.sum(result.confusion) == 8 * 48 * 64


def test_images_without_usable_label_are_skipped_by_name(fitted, painted_folder):
    labels = painted_folder / "labels"
    (labels / "0.png").unlink()
    Image.new("L", (63, 64)).save(labels / "1.png")
    Image.new("L", (64, 64), 9).save(labels / "2.png")
    Image.new("RGB", (64, 64)).save(labels / "3.png")
    result = evaluate(fitted, painted_folder / "images", labels, log=lambda sentence: None)
    assert result.images == 4
    words = [
        "has no label",
        "63x64 pixels, but its image has 64x64",
        "has the value 9",
        "one channel",
    ]
    for word, sentence in zip(words, result.skipped, strict=True):
        assert word in sentence


def test_labels_without_classes_json(fitted, painted_folder):
    (painted_folder / "labels" / "classes.json").unlink()
    result = evaluate(fitted, painted_folder / "images", painted_folder / "labels")
    assert list(result.iou) == ["class 0", "class 1", "class 2"]
    with pytest.raises(FileNotFoundError, match="not a folder of label maps"):
        evaluate(fitted, painted_folder / "images", painted_folder / "nowhere")
