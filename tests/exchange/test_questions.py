"""The folder of questions: pictures, the CSV file as spreadsheets save it, and answers."""

import csv
import io
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from primaps.data.collection import find_images
from primaps.data.stream import content_digest
from primaps.exchange.questions import (
    CSV,
    draw_region,
    is_question_folder,
    read_answers,
    read_questions,
    write_questions,
)
from primaps.results import OutputError
from primaps.teach.annotations import annotation_mask
from primaps.utils.errors import InputError, NotFoundError

HEIGHT, WIDTH = 60, 90


@dataclass
class Question:
    image: str
    left: int
    guesses: tuple = ((1, 0.75), (0, 0.2), (2, 0.05))

    def mask(self, height, width):
        mask = np.zeros((height, width), bool)
        mask[20:30, self.left : self.left + 10] = True
        return mask


QUESTIONS = [Question("a", 0), Question("a", 70), Question("sub/b", 33)]


@pytest.fixture
def files(tmp_path):
    for name, color in (("a.png", "red"), ("sub/b.png", "blue")):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT), color).save(path)
    return find_images(tmp_path / "images")


@pytest.fixture
def folder(files, tmp_path):
    write_questions(tmp_path / "ask", QUESTIONS, files, ["road", "sky", "=tree"])
    return tmp_path / "ask"


def table(folder):
    with (folder / CSV).open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def save(folder, rows, encoding="utf-8-sig", end="\r\n", **dialect):
    """Save the table as a spreadsheet does."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator=end, **dialect)
    writer.writerows(rows)
    (folder / CSV).write_bytes(text.getvalue().encode(encoding))


def fill(folder, *answers, **saved):
    rows = table(folder)
    cells = [[*row.values()][:-1] for row in rows]
    answers = (*answers, *[""] * (len(rows) - len(answers)))
    save(folder, [[*rows[0]], *([*c, a] for c, a in zip(cells, answers, strict=True))], **saved)


def test_a_folder_has_pictures_a_table_and_a_page(folder):
    assert {path.name for path in folder.iterdir()} == {
        "001.png", "002.png", "003.png", "questions.csv", "questions.json", "index.html",
    }  # fmt: skip
    assert (folder / CSV).read_bytes().startswith(b"\xef\xbb\xbfnumber,image,guess 1,")
    rows = table(folder)
    assert [row["number"] for row in rows] == ["001", "002", "003"]
    assert [row["image"] for row in rows] == ["a", "a", "sub/b"]
    assert [*rows[0].values()][2:] == ["sky (75 %)", "road (20 %)", "'=tree (5 %)", ""]
    page = (folder / "index.html").read_text("utf-8")
    assert page.count("<figure>") == 3
    assert "sky (75 %), road (20 %), =tree (5 %)" in page
    assert is_question_folder(folder)
    assert is_question_folder(folder / CSV)
    assert read_questions(folder).open == 3


def test_answers_become_annotations_of_the_region(folder, files):
    fill(folder, "sky", "?", "Mixed")
    sky, unknown, mixed = read_answers(folder)
    assert (sky.image, sky.name, sky.answer, sky.source) == ("a", "sky", "class", "ask")
    assert (unknown.name, unknown.answer) == (None, "unknown")
    assert (mixed.image, mixed.answer) == ("sub/b", "mixed")
    assert (annotation_mask(sky, HEIGHT, WIDTH) == QUESTIONS[0].mask(HEIGHT, WIDTH)).all()
    assert (annotation_mask(mixed, HEIGHT, WIDTH) == QUESTIONS[2].mask(HEIGHT, WIDTH)).all()
    assert [one.digest for one in (sky, mixed)] == [content_digest(file) for file in files]
    assert sky.time
    assert read_answers(folder / CSV) == [sky, unknown, mixed]


@pytest.mark.parametrize(
    "saved",
    [
        {},
        {"end": "\n"},
        {"end": "\r"},
        {"encoding": "utf-8"},
        {"delimiter": ";"},
        {"delimiter": "\t", "encoding": "utf-16"},
        {"delimiter": ";", "encoding": "cp1252"},
        {"quoting": csv.QUOTE_ALL},
    ],
)
def test_every_form_in_which_spreadsheets_save_is_read_and_extended(folder, files, saved):
    fill(folder, "Blätter", "  Blätter ", "blätter", **saved)
    assert [one.name for one in read_answers(folder)] == ["Blätter"] * 3
    before = (folder / CSV).read_bytes()
    done = write_questions(folder, [Question("a", 40)], files, ["road", "sky", "=tree"])
    assert done.open == 1
    assert (folder / CSV).read_bytes().startswith(before)
    assert len(done.records) == 4
    assert [one.name for one in read_answers(folder)] == ["Blätter"] * 3
    text = (folder / CSV).read_bytes().decode(saved.get("encoding", "utf-8-sig"))
    dialect = {"delimiter": saved.get("delimiter", ",")}
    rows = list(csv.reader(io.StringIO(text, newline=""), **dialect))
    assert len(rows) == 5
    assert rows[4][:3] == ["004", "a", "sky (75 %)"]
    assert (folder / "004.png").is_file()


def test_what_a_spreadsheet_changes_does_no_harm(folder):
    """Leading zeros go, columns and rows are moved, removed and added, empty rows appear."""
    rows = [["Class ", "note", " NUMBER", "image"], ["", "", "", ""], ["sky, blue", "x", "3", "?"],
            ["road", "", "1.0", ""], [], ["", "later", "2,0", ""]]  # fmt: skip
    save(folder, rows, delimiter=";")
    assert [(one.image, one.name) for one in read_answers(folder)] == [
        ("a", "road"), ("sub/b", "sky, blue"),
    ]  # fmt: skip
    text = (folder / CSV).read_text("utf-8-sig")
    (folder / CSV).write_text("sep=;\r\n" + text)
    assert len(read_answers(folder)) == 2


def test_names_have_the_spelling_of_the_model_then_of_the_first_answer(folder):
    fill(folder, "dark  SKY", "Moss", "moss")
    assert [one.name for one in read_answers(folder, ["Dark sky"])] == ["Dark sky", "Moss", "Moss"]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([["number", "name"], ["1", "sky"]], "must have one column 'class', got 'number', 'name'"),
        ([["number", "class", "Class"], ["1", "sky", ""]], "must have one column 'class'"),
        ([], "must have one column 'number', got no columns"),
        ([["number", "class"], ["9", "sky"]], "row 2: '9' is not the number of a question"),
        ([["number", "class"], ["", "sky"]], "row 2: '' is not the number of a question"),
        ([["number", "class"], ["one", "sky"]], "row 2: 'one' is not the number of a question"),
        ([["number", "class"], ["1", "sky"], ["01", "road"]],
         "row 3: question 1 has the answers 'sky' and 'road'; remove one"),
        ([["number", "class"], ["1", "sky", "blue"]], "row 2 has 3 cells for 2 columns; quote"),
        ([["number", "class"], ["1", "class 3"]], "question 1: class name: 'class 3' is not allow"),
        ([["number", "class"], ["1", "x" * 61]], "question 1: class name: a name has 1 to 60"),
    ],
)  # fmt: skip
def test_a_malformed_table_is_one_sentence_and_stays(folder, files, rows, words):
    save(folder, rows)
    before = (folder / CSV).read_bytes()
    with pytest.raises(InputError, match=r"questions\.csv") as raised:
        read_answers(folder)
    assert words in str(raised.value)
    assert (folder / CSV).read_bytes() == before


def test_answers_need_the_record_beside_them(folder, tmp_path):
    (tmp_path / "mail.csv").write_bytes((folder / CSV).read_bytes())
    with pytest.raises(
        NotFoundError, match=r"questions\.json does not exist; give the folder that"
    ):
        read_answers(tmp_path / "mail.csv")


def test_rows_that_were_removed_come_back_and_no_answer_is_lost(folder, files):
    rows = [["number", "image", "class"], ["2", "a", "moss"]]
    save(folder, rows)
    done = write_questions(folder, [], files, ["road", "sky", "=tree"])
    assert done.answers == {2: "moss"}
    assert [row["number"] for row in table(folder)] == ["2", "001", "003"]
    assert [row["class"] for row in table(folder)] == ["moss", "", ""]


def test_a_run_that_was_killed_is_repeated(folder, files):
    """Pictures come first, then the record, then the rows."""
    record, rows = (folder / "questions.json").read_bytes(), (folder / CSV).read_bytes()
    more = [Question("a", 40)]
    write_questions(folder, more, files, ["road", "sky", "=tree"])
    after = (folder / CSV).read_bytes()
    (folder / CSV).write_bytes(rows)  # killed before the rows
    write_questions(folder, [], files, ["road", "sky", "=tree"])
    assert (folder / CSV).read_bytes() == after
    (folder / CSV).write_bytes(rows)
    (folder / "questions.json").write_bytes(record)  # killed before the record
    write_questions(folder, more, files, ["road", "sky", "=tree"])
    assert (folder / CSV).read_bytes() == after


def test_a_folder_of_other_files_is_not_written_to(files, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "photo.png").write_bytes(b"x")
    with pytest.raises(OutputError, match="is not empty; choose another folder"):
        write_questions(tmp_path / "full", QUESTIONS, files, ["road", "sky", "tree"])
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / CSV).write_text("number,class\n1,mine\n")
    with pytest.raises(OutputError, match=r"questions\.csv was not written by primaps"):
        write_questions(tmp_path / "own", QUESTIONS, files, ["road", "sky", "tree"])
    assert (tmp_path / "own" / CSV).read_text() == "number,class\n1,mine\n"


def test_the_region_keeps_its_colors_and_what_is_around_it_is_darker():
    image = Image.new("RGB", (90, 60), (200, 40, 40))
    mask = np.zeros((60, 90), bool)
    mask[20:30, 40:50] = True
    picture = np.asarray(draw_region(image, mask, 120).convert("RGB")).astype(int)
    assert picture.shape == (120, 120, 3)
    middle, around = picture[60, 60], picture[10, 10]
    assert middle[0] > 2 * middle[1]
    assert around.sum() < middle.sum()
    assert around[0] - around[1] < middle[0] - middle[1]
    yellow = (picture[..., 0] > 200) & (picture[..., 1] > 180) & (picture[..., 2] < 80)
    rows, columns = np.nonzero(yellow)
    # The view is 30 pixels wide, four times enlarged; the region is the middle third.
    assert abs(rows.min() - 40) <= 2
    assert abs(rows.max() - 80) <= 2
    assert abs(columns.min() - 40) <= 2
    assert abs(columns.max() - 80) <= 2


@pytest.mark.parametrize("shape", [(1, 1), (1, 400), (400, 1), (3, 5)])
def test_pictures_of_tiny_and_narrow_images(shape):
    mask = np.zeros(shape, bool)
    mask[0, -1] = True
    picture = draw_region(Image.new("RGB", shape[::-1]), mask)
    assert max(picture.size) == 420
