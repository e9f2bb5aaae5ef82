"""Names and edits: the effect of each edit, undo, and files that are not valid."""

import json
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from primaps.classes.legend import EditError, legend, node_classes, undone
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


def test_a_name_below_and_above_gives_distinct_names_in_every_cut(tree):
    """The class that contains a named one gets the same name: no two parts have one name."""
    key = next(key for key in ("1", "2", "0") if f"{key}.1.1" in tree.names())
    edits = [{"cut": 20}]
    while f"{key}.1" not in [one.id for one in legend(tree, edits).classes]:
        edits[0] = {"cut": edits[0]["cut"] - 1}
    edits += [{"rename": f"{key}.1", "to": "sky"}, {"cut": 5}, {"rename": key, "to": "sky"}]
    for classes in range(1, 21):
        names = legend(tree, edits, classes).names
        assert len(set(names)) == len(names)
    titles = {one.id: one.name for one in node_classes(tree, edits)}
    assert [titles[f"{key}{end}"] for end in ("", ".1", ".1.1", ".2")] == [
        "sky", "sky", "sky.1.1", "sky.2",
    ]  # fmt: skip


def test_a_name_stays_when_the_class_is_merged(tree):
    edits = [{"split": "1"}, {"rename": "1.1", "to": "sky"}]
    one = next(one for one in legend(tree, edits, 4).classes if "1" in one.id.split("+"))
    assert (one.name, one.named) == ("sky", True)
    (whole,) = [one for one in node_classes(tree, edits) if one.id == "1"]
    assert (whole.name, whole.named) == ("sky", True)
    edits += [{"rename": "1.2", "to": "tree"}]
    (whole,) = [one for one in node_classes(tree, edits) if one.id == "1"]
    assert (whole.name, whole.named) == ("sky + tree", False)
    named = [{"rename": "1", "to": "car"}, {"merge": ["1", "3"]}]
    assert legend(tree, named).names[1] == "car"


def test_a_typed_name_wins_over_an_automatic_one(tree):
    edits = [{"rename": "0", "to": "sky"}, {"split": "0"}, {"rename": "3", "to": "sky.2"}]
    found = {one.id: one.name for one in legend(tree, edits).classes}
    assert (found["3"], found["0.1"], found["0.2"]) == ("sky.2", "sky.1", "sky.2 (class 0.2)")
    assert legend(tree, [*edits, {"hide": "sky.2 (class 0.2)"}]).classes[1].hidden


STEP = st.tuples(st.sampled_from(("rename", "rename", "merge", "split", "cut")), st.integers(0, 99))


@given(st.lists(STEP, max_size=12))
@settings(max_examples=60, deadline=None)
def test_names_are_distinct_after_any_edits(tree, steps):
    """In every cut: an export needs distinct names."""
    edits = []
    for kind, number in steps:
        found = legend(tree, edits).classes
        one = found[number % len(found)].id
        if kind == "rename":
            new = {"rename": one, "to": ("sky", "sky.1", "sky.2", "tree", "sky + tree")[number % 5]}
        elif kind == "merge":
            new = {"merge": [one, found[(number + 1) % len(found)].id]}
        else:
            new = {"cut": 1 + number % 20} if kind == "cut" else {"split": one}
        try:
            legend(tree, [*edits, new])
        except EditError:  # another class has the name, or the class is a leaf
            continue
        edits.append(new)
    for classes in (None, *range(1, 21)):
        names = legend(tree, edits, classes).names
        assert len(set(names)) == len(names)
    nodes = {one.leaves: one.name for one in node_classes(tree, edits)}
    shown = legend(tree, edits).classes
    assert [one.name for one in shown if one.leaves in nodes] == [
        nodes[one.leaves] for one in shown if one.leaves in nodes
    ]


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


def test_a_label_map_has_at_most_255_classes():
    """The value 255 means no class."""
    from primaps.classes.class_count import parse_range
    from primaps.classes.tree import Tree
    from primaps.config import Config
    from primaps.model import PriMaPsEM

    merges = torch.stack([torch.tensor([0, *range(256, 510)]), torch.arange(1, 256)], 1)
    directions = torch.randn(256, 8, generator=torch.Generator().manual_seed(0))
    tree = Tree(directions, torch.ones(256).long(), merges, torch.arange(255.0), classes=255)
    assert legend(tree).table().max() == 254
    assert len(legend(tree, classes=256).shown) == 256  # leaf maps of the studio
    for edits in ([{"split": "0"}], [{"cut": 256}]):
        with pytest.raises(EditError, match="gives 256 classes, but a label map has at most 255"):
            legend(tree, edits)
    hidden = legend(tree, [{"hide": "7"}, {"split": "0"}])
    assert sorted(hidden.table().tolist()) == list(range(256))
    with pytest.raises(EditError, match="gives 256 classes"):
        legend(tree, [{"hide": "7"}, {"split": "0"}, {"show": "7"}])
    assert Config(255).classes == 255
    for refused in (lambda: Config(256), lambda: PriMaPsEM(256), lambda: PriMaPsEM.cut(None, 256)):
        with pytest.raises(ValueError, match="classes is 256; it must be"):
            refused()
    with pytest.raises(ValueError, match="between 2 and 255, got 5-256"):
        parse_range("5-256")
