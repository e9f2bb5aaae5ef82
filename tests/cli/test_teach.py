"""``ask``, ``teach`` and ``find``: from a fitted model to label maps of taught classes."""

import csv

import numpy as np
import pytest
from PIL import Image

from primaps.data.collection import find_images
from primaps.data.images import load_image
from primaps.model import PriMaPsEM
from primaps.teach.annotations import read_annotations
from tests.cli.test_cli import call

COLORS = {"moss": (60, 160, 50), "rock": (130, 120, 120), "water": (40, 90, 200)}
NAMES = list(COLORS)


def scene(seed):
    """Return an image of three colors, one of them rare, and its label map."""
    generator = np.random.default_rng(seed)
    labels = generator.choice(3, (4, 6), p=[0.45, 0.45, 0.1]).repeat(24, 0).repeat(24, 1)
    # Light and texture differ, so that regions of one class are not all alike.
    light = generator.uniform(0.5, 1.3, (4, 6)).repeat(24, 0).repeat(24, 1)[..., None]
    rough = generator.choice([2, 20, 50], (4, 6)).repeat(24, 0).repeat(24, 1)[..., None]
    noise = generator.normal(0, 1, (*labels.shape, 3)) * rough
    pixels = np.array([*COLORS.values()])[labels] * light + noise
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), labels


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("teach")


@pytest.fixture(scope="module")
def images(work):
    (work / "images").mkdir()
    for seed in range(6):
        scene(seed)[0].save(work / "images" / f"{seed}.png")
    return work / "images"


@pytest.fixture(scope="module")
def model(work, images, vit):
    done = call("fit", images, "--classes", 2, "--out", work / "model", "--backbone", vit,
                "--size", 64, "--min-init-steps", 20, "--cache", "none")  # fmt: skip
    assert done.exit_code == 0, done.output
    return work / "model"


def read_table(folder):
    text = (folder / "questions.csv").read_text("utf-8-sig")
    return list(csv.DictReader(text.splitlines(), delimiter=max(",;", key=text.count)))


def fill(folder, answer):
    """Write ``answer(number, image, mask)`` in each row, as a spreadsheet with semicolons."""
    from primaps.exchange.questions import read_questions
    from primaps.teach.annotations import annotation_mask

    records = {one.number: one for one in read_questions(folder).records}
    rows = read_table(folder)
    for row in rows:
        record = records[int(row["number"])]
        mask = annotation_mask(record.annotation("?", ""), *record.size)
        row["class"] = row["class"] or answer(record.number, record.image, mask)
    with (folder / "questions.csv").open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=";")
        writer.writeheader()
        writer.writerows(rows)
    return rows


def truth(number, image, mask):
    """Answer as a person would who sees the image."""
    found = np.bincount(scene(int(image))[1][mask], minlength=3)
    if number == 3:
        return "?"
    if found.max() < 0.8 * found.sum():
        return "MIXED"
    name = NAMES[found.argmax()]
    return name.upper() if number % 5 == 0 else name


def test_ask_answer_teach_predict(work, images, model):
    ask = work / "ask"
    command = ["ask", model, images, "--out", ask, "-n", 12, "--cache", "none"]
    done = call(*command)
    assert done.exit_code == 0, done.output
    assert "12 new questions, 12 without an answer" in done.output
    assert "Next: fill in the column class" in done.output.replace("\n", " ")
    assert len(list(ask.glob("*.png"))) == 12
    before = (ask / "questions.csv").read_bytes()
    done = call(*command)
    assert "12 questions wait for an answer" in done.output
    assert (ask / "questions.csv").read_bytes() == before

    answered = fill(ask, lambda number, *more: truth(number, *more) if number <= 10 else "")
    assert {row["class"].lower() for row in answered} >= {"moss", "rock", "?", ""}
    before = (ask / "questions.csv").read_bytes()
    done = call(*command[:-2], "--cache", "none")
    assert done.exit_code == 0, done.output
    assert (ask / "questions.csv").read_bytes().startswith(before)
    assert len(list(ask.glob("*.png"))) == 22
    fill(ask, truth)

    done = call("teach", model, images, "--annotations", ask, "--out", work / "taught", "--cache",
                "none")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "22 annotations of" in done.output
    assert "Next: primaps predict" in done.output
    taught = PriMaPsEM.from_pretrained(work / "taught")
    names = [one.name for one in taught.shown_classes]
    answers = {row["class"].lower() for row in read_table(ask)} - {"?", "mixed"}
    assert sorted(name.lower() for name in names) == sorted(answers)
    done = call("predict", work / "taught", images, "--out", work / "maps", "--no-crf")
    assert done.exit_code == 0, done.output
    right = []
    for seed in range(6):
        labels = np.asarray(Image.open(work / "maps" / f"{seed}.png"))
        found = np.array([NAMES.index(name.lower()) for name in names])[labels]
        right.append((found == scene(seed)[1]).mean())
    assert np.mean(right) > 0.8


def test_the_model_that_is_taught_stays(work, images, model):
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    labels = work / "labels"
    labels.mkdir(exist_ok=True)
    for seed in (0, 1):
        Image.fromarray(scene(seed)[1].astype(np.uint8)).save(labels / f"{seed}.png")
    (labels / "classes.json").write_text('{"classes": ["moss", "rock", "water"]}')
    arguments = ["teach", model, images, "--annotations", labels, "--cache", "none"]
    done = call(*arguments, "--out", model)
    assert done.exit_code == 1
    assert "is the model that is taught; choose another folder" in done.output.replace("\n", " ")
    done = call(*arguments, "--out", work / "from-maps")
    assert done.exit_code == 0, done.output
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before


def test_find_writes_what_looks_like_a_point(work, images, model):
    labels = scene(0)[1]
    y, x = np.argwhere(labels == 0)[40]
    accepted = work / "accepted.jsonl"
    arguments = ["find", model, images, "--image", "0.png", "--point", x + 0.5, y + 0.5, "--out",
                 work / "found", "--name", "moss", "--cache", "none"]  # fmt: skip
    done = call(*arguments, "--accept", accepted)
    assert done.exit_code == 0, done.output
    assert "found in" in done.output
    found = np.asarray(Image.open(work / "found" / "0.png"))
    scores = np.asarray(Image.open(work / "found" / "0.scores.tif"))
    assert found.shape == scores.shape == labels.shape
    assert set(np.unique(found)) <= {0, 255}
    assert found[y, x] == 0
    assert ((scores >= 128) == (found == 0)).mean() > 0.99
    assert (labels[found == 0] == 0).mean() > 0.8
    listed = read_annotations(accepted)
    assert {one.name for one in listed} == {"moss"}
    assert {one.source for one in listed} == {"find"}
    assert load_image(find_images(images)[0].source).size[::-1] == listed[0].size
    done = call(*arguments, "--threshold", 0.7)
    assert done.exit_code == 0, done.output
    fewer = np.asarray(Image.open(work / "found" / "0.png"))
    assert 0 < (fewer == 0).sum() < (found == 0).sum()
    assert (found[fewer == 0] == 0).all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ask", "{model}", "{images}", "--out", "{work}"], "is not empty; choose another folder"),
        (["teach", "{model}", "{images}", "--annotations", "{work}/none", "--out", "{work}/t"],
         "none does not exist; give a file or folder of annotations"),
        (["teach", "{model}", "{images}", "--annotations", "{work}/one.jsonl", "--out", "{work}/t"],
         "at least two classes"),
        (["find", "{model}", "{images}", "--image", "9", "--point", "1", "1", "--out", "{work}/f"],
         "the collection has no image '9'"),
        (["find", "{model}", "{images}", "--image", "1", "--point", "999", "1", "--out",
          "{work}/f"], "a point at x 999, y 1 is outside the image of 144 x 96 pixels"),
    ],
)  # fmt: skip
def test_input_errors_are_one_sentence(work, images, model, arguments, words):
    (work / "one.jsonl").write_text(
        '{"image": "0", "kind": "point", "name": "moss", "geometry": [1, 1], "size": [96, 144]}\n'
    )
    done = call(*(a.format(model=model, images=images, work=work) for a in arguments))
    assert done.exit_code == 1, done.output
    assert words in done.output.replace("\n", " ")
    assert not (work / "t").exists()
