"""A fitted model with its tree: cuts, edits, naming, evaluation and the commands agree."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from primaps.batch import predict_files
from primaps.classes.legend import legend
from primaps.classes.tree import TreeError
from primaps.evaluation.protocol import evaluate
from primaps.exchange.classes import read_classes
from primaps.exchange.transfer import export_labels, import_labels
from primaps.model import PriMaPsEM
from primaps.persistence import change_edits, read_class_summary
from primaps.pictures.report import write_report
from tests.cli.test_cli import call
from tests.conftest import painted

OPTIONS = {"size": 64, "recipe": "orthogonal", "min_init_steps": 10, "mask_crf": False}


@pytest.fixture(scope="module")
def folder(vit, tmp_path_factory):
    images = [painted(seed)[0] for seed in range(24)]
    model = PriMaPsEM(3, backbone=vit, device="cpu", **OPTIONS).fit(images, cache=None)
    out = tmp_path_factory.mktemp("model")
    model.save_pretrained(out)
    return out


@pytest.fixture
def model(folder, tmp_path):
    """A copy, so that edits stay in their test."""
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def loaded(folder):
    return PriMaPsEM.from_pretrained(folder, device="cpu")


def test_the_cut_at_k_is_bit_identical_to_the_model(model):
    image, whole = painted(3)[0], loaded(model)
    plain = whole.predict(image)
    assert torch.equal(whole.cut(3).predict(image), plain)
    fine = whole.cut(min(9, len(whole.class_summary_.tree))).predict(image)
    table = whole.class_summary_.tree.cut(3)
    finest = whole.cut(len(whole.class_summary_.tree)).predict(image)
    assert torch.equal(table[finest.long()], plain.long())
    assert (fine.unique().numel()) >= plain.unique().numel()
    coarse = whole.cut(2).predict(image)
    for k in range(3):
        assert len(coarse[plain == k].unique()) <= 1
    with pytest.raises(TreeError, match="fit again for more classes"):
        whole.cut(200)


def test_a_loaded_tree_equals_the_saved_one(model):
    one = loaded(model).class_summary_
    loaded(model).save_pretrained(model / "again")
    other = read_class_summary(model / "again")
    assert one.stability == other.stability
    assert one.shares == other.shares
    for name, value in one.tree.tensors().items():
        assert torch.equal(value, other.tree.tensors()[name])
    assert sum(one.shares) == pytest.approx(1)
    (model / "tree.safetensors").write_bytes(b"x" * 40)
    with pytest.raises(TreeError, match=r"tree.safetensors is damaged"):
        loaded(model)


def test_a_model_without_a_tree_still_predicts(model):
    (model / "tree.safetensors").unlink()
    old = loaded(model)
    assert old.predict(painted(1)[0]).shape == (64, 64)
    with pytest.raises(TreeError, match="no class tree"):
        old.cut(2)
    assert "has no class tree" in call("classes", model).output


def test_edits_give_the_same_bytes_from_python_and_the_command_line(model, painted_folder):
    tree = loaded(model).class_summary_.tree
    before = {k: v.clone() for k, v in load_file(model / "model.safetensors").items()}
    large = int(tree.owner.bincount().argmax())
    one, other = (str(k) for k in range(3) if k != large)
    for words in (
        ("rename", str(large), "red"), ("split", "red"), ("merge", one, other),
        ("hide", f"{large}.1"),
    ):  # fmt: skip
        done = call("classes", model, *words)
        assert done.exit_code == 0, done.output
    images, out = painted_folder / "images", painted_folder / "out"
    precision = ("--precision", "float32")  # that of the fit, which Python takes unasked
    done = call("predict", model, images, "--out", out, "--no-crf", *precision)
    assert done.exit_code == 0, done.output
    edited = loaded(model)
    predict_files(edited, images, painted_folder / "python", crf=False)
    for path in sorted(out.glob("*.png")):
        assert path.read_bytes() == (painted_folder / "python" / path.name).read_bytes()
        values = np.unique(np.asarray(Image.open(path)))
        assert set(values.tolist()) <= {0, 1, 255}
    expected = legend(tree, edited.edits_).table()
    finest = edited.cut(len(tree)).predict(Image.open(images / "0.png"), crf=False)
    shown = legend(tree, edited.edits_, len(tree)).table()  # hidden parts are hidden there too
    plain = torch.from_numpy(np.array(Image.open(out / "0.png"))).long()
    known = finest != 255
    back = {int(v): k for k, v in enumerate(shown.tolist()) if v != 255}
    parts = torch.tensor([back[int(v)] for v in finest[known].tolist()])
    assert torch.equal(expected[parts], plain[known])
    for name, value in load_file(model / "model.safetensors").items():
        assert torch.equal(value, before[name])
    for _ in range(4):
        assert call("classes", model, "undo").exit_code == 0
    assert loaded(model).legend_ is None


def test_evaluate_counts_hidden_pixels_as_wrong(model, painted_folder):
    images, labels = painted_folder / "images", painted_folder / "labels"
    plain = evaluate(loaded(model), images, labels, crf=False)
    tree = loaded(model).class_summary_.tree
    change_edits(model, tree, lambda now: [{"hide": "0"}])
    hidden = evaluate(loaded(model), images, labels, crf=False)
    confusion = np.array(plain.confusion)
    assert np.array_equal(np.array(hidden.confusion), confusion[:, [1, 2, 0]])
    assert hidden.assignment[-1] is None
    assert hidden.accuracy < plain.accuracy
    merged = evaluate(loaded(model).cut(2), images, labels, crf=False)
    assert np.array(merged.confusion).sum() == confusion.sum()


def test_names_come_from_a_few_labels(model, painted_folder):
    images, labels = painted_folder / "images", painted_folder / "labels"
    done = call("name", model, images / "0.png", "--labels", labels, "--min-agreement", "0")
    assert done.exit_code == 0, done.output
    named = loaded(model).legend_
    assert {name.split()[0] for name in named.names} <= {"red", "green", "blue"}
    assert len(set(named.names)) == 3


def test_label_values_name_classes_without_classes_json(model, painted_folder):
    images, labels = painted_folder / "images", painted_folder / "labels"
    (labels / "classes.json").unlink()
    done = call("name", model, images, "--labels", labels, "--min-agreement", "0")
    assert done.exit_code == 0, done.output
    assert {" ".join(name.split()[:2]) for name in loaded(model).legend_.names} <= {
        "label 0",
        "label 1",
        "label 2",
    }
    assert "3 of 3 classes named" in done.output


@pytest.mark.parametrize("form", ["coco", "coco-panoptic", "cvat", "labelstudio", "voc", "hf"])
def test_given_colors_survive_predict_export_and_import(model, painted_folder, form):
    images = painted_folder / "images"
    assert call("classes", model, "color", "1", "#123456").exit_code == 0
    out = painted_folder / "out"
    done = call("predict", model, images, "--out", out / "maps", "--no-crf")
    assert done.exit_code == 0, done.output
    export_labels(out / "maps", images, form, out / form)
    expected = loaded(model).legend_.colors
    assert expected[1].tolist() == [0x12, 0x34, 0x56]
    if form == "voc":
        painted = Image.open(out / form / "SegmentationClass" / "0.png")
        assert painted.getpalette()[3:6] == [0x12, 0x34, 0x56]
    import_labels(out / form, form, out / "back")
    np.testing.assert_array_equal(read_classes(out / "back").colors, expected)


def test_a_damaged_file_stops_commands_with_one_sentence(model, painted_folder):
    (model / "edits.json").write_text('{"format": 1, "edits": [{"hide": "7"}]}')
    for command in (("classes", model), ("predict", model, painted_folder / "images")):
        out = ["--out", painted_folder / "o"] if command[0] == "predict" else []
        done = call(*command, *out)
        assert done.exit_code == 1
        assert "edits.json: edits[0]: class '7' does not exist" in done.output.replace("\n", "")
        assert "Traceback" not in done.output


def test_the_report_is_one_file_without_network(model, painted_folder):
    tree = loaded(model).class_summary_.tree
    change_edits(model, tree, lambda now: [{"rename": "0", "to": "<b>red & co</b>"}])
    path = write_report(
        loaded(model), painted_folder / "images", model / "r" / "report.html",
        labels=painted_folder / "labels", crf=False,
    )  # fmt: skip
    text = path.read_text()
    assert "<b>red" not in text
    assert "&lt;b&gt;red &amp; co&lt;/b&gt;" in text
    for word in ("http://", "https://", 'src="/', "<script", "<link", "@import"):
        assert word not in text
    assert text.count("data:image/jpeg;base64,") >= 8
    assert "prefers-color-scheme: dark" in text
    assert "Accuracy" in text
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_auto_prints_evidence_and_uses_the_middle_k(vit, tmp_path, painted_folder):
    done = call(
        "fit", painted_folder / "images", "--classes", "2-4", "--out", tmp_path / "m",
        "--backbone", vit, "--size", "64", "--recipe", "orthogonal", "--min-init-steps", "5",
        "--no-mask-crf", "--cache", tmp_path / "store",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "(fine); using " in done.output
    found = read_class_summary(tmp_path / "m")
    assert [one.classes for one in found.curve] == [2, 3, 4]
    assert found.tree.classes in (2, 3, 4)
    assert "it must be a number, a range" in call(
        "fit", painted_folder / "images", "--classes", "many", "--out", tmp_path / "n"
    ).output.replace("\n", " ")


def test_the_audit_command_asks_stops_and_resumes(model, painted_folder, tmp_path):
    images, out = painted_folder / "images", tmp_path / "audit"
    command = ["audit", model, images, "--out", out, "--answers", 6, "--no-crf"]
    done = call(*command, answers="y\nmaybe\nn\nq\n")
    assert done.exit_code == 0, done.output
    assert "1/6: is the pixel at the cross 'class " in done.output
    assert "answer y, n, ? or q" in done.output
    assert "from 2 answers" in done.output
    assert (out / "question.png").is_file()
    again = call(*command, answers="y\n" * 4)
    assert "3/6: is the pixel at the cross" in again.output
    assert "2/6" not in again.output
    assert "from 6 answers" in again.output
    assert call("classes", model, "rename", "0", "car").exit_code == 0
    assert call(*command).exit_code == 0  # names change no pixel
    merged = call("classes", model, "merge", "0", "1")
    assert merged.exit_code == 0, merged.output
    other = call(*command)
    assert other.exit_code == 1
    assert "an audit of other classes" in other.output.replace("\n", " ")


def test_a_hidden_class_has_a_column_in_charts_of_an_evaluation(model, painted_folder, tmp_path):
    assert call("classes", model, "hide", "1").exit_code == 0
    images, labels = painted_folder / "images", painted_folder / "labels"
    pictures = tmp_path / "pictures"
    done = call("evaluate", model, images, "--labels", labels, "--no-crf", "--pictures", pictures)
    assert done.exit_code == 0, done.output
    assert (pictures / "examples.png").is_file()
