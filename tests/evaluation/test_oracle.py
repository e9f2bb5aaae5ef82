"""Oracle scores by hand, and on a folder of painted pictures."""

import pytest
import torch
from PIL import Image

from primaps.backbones.load import load_backbone
from primaps.data import ImageError, load_pair, pair_up
from primaps.evaluation.oracle import (
    count_masks,
    evaluate_oracle,
    oracle_classes,
    oracle_confusion,
    oracle_scores,
)


def test_majority_ties_and_ignored_labels():
    mask = torch.tensor([[1, 1, 1, 2, 2, 3, 0]])
    label = torch.tensor([[2, 2, 0, 1, 0, 255, 1]])
    # Mask 2 ties (the smaller class), mask 3 has no labeled pixel.
    assert oracle_classes(mask, label, 3).tolist() == [3, 2, 0, 0]
    confusion = oracle_confusion(mask[None], label[None], 3)
    assert confusion.tolist() == [[1, 0, 1, 0], [1, 0, 0, 1], [0, 0, 2, 0]]
    found = oracle_scores(confusion, masks=3, images=1)
    assert found.assigned.accuracy == pytest.approx(3 / 5)
    assert found.all_pixels.accuracy == pytest.approx(3 / 6)
    assert found.assigned.iou == pytest.approx([1 / 3, 0, 2 / 3])
    assert found.all_pixels.iou == pytest.approx([1 / 3, 0, 2 / 3])
    # The pixel of class 1 in no mask: half a wrong prediction of class 0, half one of class 2.
    assert found.all_wrong.accuracy == pytest.approx(3 / 6)
    assert found.all_wrong.iou == pytest.approx([1 / 3.5, 0, 2 / 3.5])
    assert found.ignored == pytest.approx(1 / 6)
    assert found.masks_per_image == 3


def test_pixels_in_no_mask_are_wrong_where_there_is_one_class_alone():
    found = oracle_scores(torch.tensor([[6, 0, 2], [0, 0, 0]]), masks=1, images=1)
    assert found.assigned.accuracy == 1
    assert found.all_pixels.accuracy == found.all_wrong.accuracy == 0.75


def test_perfect_masks_are_perfect():
    labels = torch.randint(0, 5, (3, 8, 9))
    found = oracle_scores(oracle_confusion(labels + 1, labels, 5), count_masks(labels + 1), 3)
    assert found.assigned.accuracy == found.all_pixels.mean_iou == 1
    assert found.ignored == 0


def test_masks_are_numbered_per_image():
    masks = torch.tensor([[[1, 1]], [[1, 1]]])
    labels = torch.tensor([[[0, 0]], [[1, 1]]])
    assert oracle_confusion(masks, labels, 2)[:, :2].tolist() == [[2, 0], [0, 2]]


def test_no_assigned_pixel_is_an_error():
    with pytest.raises(ValueError, match="no labeled pixel"):
        oracle_scores(torch.tensor([[0, 3]]), masks=0, images=1)


def test_folder(painted_folder, colors):
    backbone = load_backbone(colors, device="cpu", patch_size=8)
    seen = []
    result = evaluate_oracle(
        painted_folder / "images",
        painted_folder / "labels",
        backbone=backbone,
        size=64,
        batch_size=3,
        crf=None,
        median=False,
        progress=lambda stage, done, total, figures: seen.append((done, total)),
    )
    assert result.images == 8
    assert not result.skipped
    assert seen[-1] == (8, 8)
    assert list(result.assigned.iou) == ["red", "green", "blue"]
    assert result.assigned.accuracy > 0.9
    assert result.all_pixels.accuracy <= result.assigned.accuracy
    assert 1 <= result.masks_per_image <= 4


def test_folder_without_names_and_with_gaps(painted_folder, colors):
    (painted_folder / "labels" / "classes.json").unlink()
    (painted_folder / "labels" / "3.png").unlink()
    backbone = load_backbone(colors, device="cpu", patch_size=8)
    options = {"backbone": backbone, "size": 64, "crf": None}
    problems = []
    folders = (painted_folder / "images", painted_folder / "labels")
    result = evaluate_oracle(*folders, log=problems.append, **options)
    assert result.images == 7
    assert len(problems) == 1
    assert "3.png" in problems[0]
    assert set(result.assigned.iou) == {"class 0", "class 1", "class 2"}
    with pytest.raises(FileNotFoundError, match="no-such"):
        evaluate_oracle(folders[0], "no-such", **options)
    for path in folders[1].iterdir():
        path.unlink()
    with pytest.raises(ImageError, match="none of the 8 images"):
        evaluate_oracle(*folders, log=problems.append, **options)


def test_label_is_cut_like_the_image(tmp_path):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (40, 20)).save(tmp_path / "images" / "a.png")
    label = Image.new("L", (40, 20), 1)
    label.paste(2, (10, 0, 30, 20))
    label.save(tmp_path / "labels" / "a.png")
    data = pair_up(tmp_path / "images", tmp_path / "labels")
    cut = load_pair(data, data.samples[0], 10)[1]
    assert cut.shape == (10, 10)
    assert (cut == 2).all()


def test_real_images(data_root, dinov2, tmp_path):
    source = data_root / "aerial260"
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
        for path in sorted((source / kind).glob("*.*"))[:4]:
            (tmp_path / kind / path.name).write_bytes(path.read_bytes())
    result = evaluate_oracle(
        tmp_path / "images", tmp_path / "labels", backbone=dinov2, ignore_index=255, crf=None
    )
    assert result.images == 4
    assert result.assigned.accuracy > 0.7
