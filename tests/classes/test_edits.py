"""Names and edits: the effect of each edit, undo, and files that are not valid."""

import json
import os
import subprocess
import sys

import pytest
import torch

from primaps.classes.legend import EditError, legend, undone
from primaps.persistence import change_edits, read_edits, read_legend, tree_digest


def test_without_edits_a_legend_is_the_cut(tree):
    for classes in (2, 5, 9, 20):
        found = legend(tree, classes=classes)
        assert found.table().tolist() == tree.cut(classes).tolist()
        assert len({one.id for one in found.classes}) == classes
        assert len({one.color for one in found.classes}) == classes
    assert [one.id for one in legend(tree).classes] == ["0", "1", "2", "3", "4"]


def test_merge_and_split_are_tables(tree):
    merged = legend(tree, [{"merge": ["1", "3"]}])
    expected = torch.tensor([0, 1, 2, 1, 3])[tree.owner]
    assert merged.table().tolist() == expected.tolist()
    assert [one.id for one in merged.classes] == ["0", "1+3", "2", "4"]
    assert merged.names[1] == "class 1 + class 3"
    split = legend(tree, [{"split": "1"}, {"split": "1.2"}])
    assert [one.id for one in split.classes] == ["0", "1.1", "1.2.1", "1.2.2", "2", "3", "4"]
    whole = tree.node_leaves[tree.names().index("1.2")]
    assert set(split.classes[2].leaves) | set(split.classes[3].leaves) == set(whole)
    back = legend(tree, [{"merge": ["1", "3"]}, {"split": "1+3"}])
    assert back == legend(tree)
    again = legend(tree, [{"split": "1"}, {"merge": ["1.1", "1.2"]}])
    assert again == legend(tree)


def test_names_stay_when_k_moves(tree):
    edits = [{"rename": "3", "to": "car"}, {"color": "3", "to": "#010203"}]
    for classes in range(5, 21):
        names = legend(tree, edits, classes).names
        assert any(name.startswith("car") for name in names)
    fine = legend(tree, edits, 20)
    assert (1, 2, 3) in {one.color for one in fine.classes}
    coarse = legend(tree, edits, 2)
    assert any("car" in name for name in coarse.names)


def test_hidden_classes_have_the_value_255(tree):
    found = legend(tree, [{"hide": "0"}])
    assert found.table()[tree.owner == 0].unique().tolist() == [255]
    assert found.table()[tree.owner == 1].unique().tolist() == [0]
    assert legend(tree, [{"hide": "0"}, {"show": "0"}]) == legend(tree)
    finer = legend(tree, [{"hide": "0"}], classes=20)
    assert [one.hidden for one in finer.classes] == [k == 0 for k in tree.owner.tolist()]


BROKEN = [
    ({"rename": "9", "to": "car"}, "class '9' does not exist; the classes are 0, 1, 2, 3, 4"),
    ({"rename": "1"}, "rename needs the field 'to'"),
    ({"rename": "1", "to": ""}, "a name has 1 to 60 printable characters"),
    ({"rename": "1", "to": "3.1"}, "looks like an id"),
    ({"rename": "1", "to": "a\nb"}, "a name has 1 to 60"),
    ({"rename": 1, "to": "car"}, "a class is an id or a name, got 1"),
    ({"color": "1", "to": "red"}, "a color has the form \"#rrggbb\", got 'red'"),
    ({"merge": ["1"]}, "merge needs a list of at least two"),
    ({"merge": ["1", "1"]}, "merge has a class twice"),
    ({"hide": "1", "split": "2"}, "an edit has exactly one of"),
    ({"hide": "1", "why": "x"}, "hide does not have the field 'why'"),
    ({"cut": "3"}, "cut needs a number of classes, got '3'"),
    ({"cut": 21}, "the tree can be cut at 1 to 20 classes, got 21"),
    ("hide 1", "an edit has exactly one of"),
]


@pytest.mark.parametrize(("edit", "sentence"), BROKEN)
def test_a_wrong_edit_is_one_sentence_with_file_and_field(tree, tmp_path, edit, sentence):
    path = tmp_path / "edits.json"
    path.write_text(json.dumps({"format": 1, "edits": [{"hide": "0"}, edit]}))
    with pytest.raises(EditError) as error:
        read_edits(tmp_path, tree)
    text = str(error.value)
    assert text.startswith(f"{path}: edits[1]: ")
    assert sentence in text
    assert "\n" not in text


@pytest.mark.parametrize(("edit", "sentence"), BROKEN[:-1])
def test_a_new_edit_is_refused_without_its_number(tree, tmp_path, edit, sentence):
    change_edits(tmp_path, tree, lambda edits: [{"hide": "0"}])
    with pytest.raises(EditError) as error:
        change_edits(tmp_path, tree, lambda edits: [*edits, edit])
    assert sentence in str(error.value)
    assert "edits[" not in str(error.value)
    assert read_edits(tmp_path, tree).edits == ({"hide": "0"},)


def test_undo_names_the_edits_that_need_the_edit(tree, tmp_path):
    change_edits(tmp_path, tree, lambda edits: [{"split": "0"}, {"hide": "0.1"}])
    with pytest.raises(EditError, match=r"^edits\[0\]: "):
        change_edits(tmp_path, tree, lambda edits: undone(edits, 0))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "is not JSON"),
        ("\xff", "is not JSON"),
        ("[]", r"the content is \[\]; it must be an object"),
        ('{"format": 2, "edits": []}', 'field "format" is 2; it must be 1'),
        ('{"format": 1}', 'field "edits" is missing'),
        ('{"format": 1, "edits": [], "names": {}}', 'field "names" is unknown'),
        ('{"format": 1, "edits": [], "tree": "0"}', "but this model has tree"),
    ],
)
def test_a_damaged_file_is_one_sentence(tree, tmp_path, content, sentence):
    (tmp_path / "edits.json").write_bytes(content.encode("latin-1"))
    before = (tmp_path / "edits.json").read_bytes()
    with pytest.raises(EditError, match=sentence) as error:
        change_edits(tmp_path, tree, lambda edits: [*edits, {"hide": "1"}])
    assert "edits.json" in str(error.value)
    assert (tmp_path / "edits.json").read_bytes() == before


@pytest.mark.parametrize(
    ("edits", "sentence"),
    [
        ([{"hide": [[]] * 100_000}], "a class is an id or a name"),
        ([7] * 10_001, '"edits" has the length 10001'),
        ([{"rename": "0", "to": "x" * 10**6}], "a name has 1 to 60 printable characters"),
    ],
)
def test_a_long_file_is_one_short_sentence(tree, tmp_path, edits, sentence):
    (tmp_path / "edits.json").write_text(json.dumps({"format": 1, "edits": edits}))
    with pytest.raises(EditError, match=sentence) as error:
        read_edits(tmp_path, tree)
    assert len(str(error.value)) < 500


def test_a_named_pipe_is_refused(tree, tmp_path):
    os.mkfifo(tmp_path / "edits.json")
    with pytest.raises(EditError, match="edits.json is not a regular file"):
        read_edits(tmp_path, tree)


def test_two_names_cannot_be_the_same(tree):
    edits = [{"rename": "0", "to": "car"}, {"rename": "1", "to": "car"}]
    with pytest.raises(EditError, match=r"edits\[1\]: class 0 already has the name 'car'"):
        legend(tree, edits)


def test_every_edit_can_be_undone(tree, tmp_path):
    edits = [
        {"rename": "0", "to": "car"},
        {"color": "car", "to": "#112233"},
        {"split": "car"},
        {"merge": ["1", "2"]},
        {"hide": "3"},
    ]
    seen = [legend(tree)]
    for edit in edits:
        change_edits(tmp_path, tree, lambda now, edit=edit: [*now, edit])
        seen.append(read_legend(tmp_path, tree))
    for before in reversed(seen[:-1]):
        change_edits(tmp_path, tree, undone)
        assert read_legend(tmp_path, tree) == before
    with pytest.raises(EditError, match="has no edit to undo"):
        change_edits(tmp_path, tree, undone)


def test_an_edit_that_others_need_is_not_undone(tree, tmp_path):
    change_edits(tmp_path, tree, lambda now: [{"split": "0"}, {"hide": "0.1"}])
    with pytest.raises(EditError, match=r"edits\[0\]: class '0.1' does not exist"):
        change_edits(tmp_path, tree, lambda now: undone(now, 0))
    assert len(read_edits(tmp_path, tree).edits) == 2


def test_an_edit_with_an_old_revision_is_refused(tree, tmp_path):
    seen = read_edits(tmp_path, tree).revision
    change_edits(tmp_path, tree, lambda now: [{"hide": "0"}], seen)
    with pytest.raises(EditError, match="was changed by another program"):
        change_edits(tmp_path, tree, lambda now: [{"hide": "1"}], seen)
    assert json.loads((tmp_path / "edits.json").read_text()) == {
        "format": 1,
        "tree": tree_digest(tree),
        "edits": [{"hide": "0"}],
    }


@pytest.mark.slow
def test_concurrent_processes_lose_no_edit(tree, tmp_path):
    torch.save(tree.tensors(), tmp_path / "tree.pt")
    program = """if True:
        import sys, torch
        from primaps.persistence import change_edits
        from primaps.classes.tree import Tree
        folder, k = sys.argv[1:]
        tree = Tree.from_tensors(torch.load(folder + "/tree.pt"))
        for number in range(20):
            name = f"{'abcde'[int(k)]}{number}"
            change_edits(folder, tree, lambda now: [*now, {"rename": k, "to": name}])
    """
    running = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path), str(k)]) for k in range(3)
    ]
    assert [process.wait() for process in running] == [0, 0, 0]
    assert len(read_edits(tmp_path, tree).edits) == 60
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"edits.json", "tree.pt"}  # and no lock
    assert read_legend(tmp_path, tree).names[:3] == ["a19", "b19", "c19"]
