"""Edits, cuts, corrections and the way back: nothing lost, nothing written over."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from primaps.classes import classes_json
from primaps.classes.classes_json import change_edits, read_edits
from primaps.classes.edits import legend
from primaps.classes.legend import EditError
from primaps.studio.corrections import NOTHING, Corrections, as_runs, pixels
from primaps.studio.edited import ConflictError, Edited


@pytest.fixture
def edited(tree, tmp_path):
    (tmp_path / "model").mkdir()
    return Edited(tmp_path / "model", tree, tmp_path)


def again(edited):
    """What another process would find."""
    return Edited(edited.model, edited.tree, edited.model.parent)


@given(
    st.lists(
        st.tuples(st.sampled_from(("merge", "split", "hide", "cut")), st.integers(0, 99)),
        max_size=8,
    ),
    st.integers(1, 20),
)
@settings(max_examples=40, deadline=None)
def test_a_cut_as_an_edit_is_the_cut(tree, steps, classes):
    """After any edits: the classes of ``legend(..., classes)``, names and colors with them."""
    edits = [{"rename": "0", "to": "sky"}, {"color": "1", "to": "#010203"}]
    for kind, number in steps:
        found = legend(tree, edits).classes
        one = found[number % len(found)].id
        if kind == "merge" and len(found) > 1:
            edits.append({"merge": [one, found[(number + 1) % len(found)].id]})
        elif kind == "cut":
            edits.append({"cut": 1 + number % 20})
        elif kind == "hide" or (kind == "split" and len(found[number % len(found)].parts) > 1):
            edits.append({kind: one})
    after = legend(tree, [*edits, {"cut": classes}])
    assert [one.parts for one in after.classes] == sorted(
        tree.leaves[n] for n in tree.nodes(classes)
    )
    if classes != tree.classes:
        assert after == legend(tree, edits, classes)


def test_a_cut_is_one_edit_and_none_if_it_is_there(edited):
    edited.cut(edited.revision, 9)
    edited.cut(edited.revision, 9)
    assert edited.edits == [{"cut": 9}]
    assert edited.next()[0] == "9 classes"
    edited.cut(edited.revision, 5)
    assert len(edited.legend().classes) == 5
    with pytest.raises(ValueError, match="cuts of 1 to 20"):
        edited.cut(edited.revision, 21)


def test_more_edits_than_the_file_may_have_are_not_written(edited, monkeypatch):
    monkeypatch.setattr(classes_json, "MOST_EDITS", 2)
    edited.append(edited.revision, [{"hide": "0"}, {"hide": "1"}])
    lines = edited.history.lines
    with pytest.raises(EditError, match="2 are the most"):
        edited.append(edited.revision, [{"hide": "2"}])
    assert edited.history.lines == lines
    assert len(again(edited).edits) == 2


def test_an_edit_that_was_not_written_takes_no_other_with_it(edited, monkeypatch):
    """A full disk, between the line of an edit and classes.json."""

    def full(path, content):
        raise OSError(28, "No space left on device")

    sky = {"rename": "0", "to": "sky"}
    edited.append(edited.revision, [sky])
    revision = edited.revision
    with monkeypatch.context() as patch:
        patch.setattr(classes_json, "write_json", full)
        with pytest.raises(OSError, match="No space"):
            edited.append(revision, [{"hide": "1"}])
    with pytest.raises(ConflictError):  # the person saw "undo hide 1"
        edited.undo(revision)
    assert edited.edits == again(edited).edits == [sky]
    assert edited.next() == ("rename 0 to sky", "hide 1")
    with monkeypatch.context() as patch:
        patch.setattr(classes_json, "write_json", full)
        with pytest.raises(OSError, match="No space"):
            edited.undo(edited.revision)
    assert edited.edits == [sky]
    assert edited.next() == ("rename 0 to sky", "hide 1")
    edited.redo(edited.revision)
    assert again(edited).edits == [sky, {"hide": "1"}]


def test_undo_and_redo_are_the_bytes_of_before(edited):
    path = edited.model / "classes.json"
    change_edits(edited.model, edited.tree, lambda edits: edits)  # a file without edits
    seen, revision = [], edited.revision
    for change in (
        lambda r: edited.append(r, [{"rename": "0", "to": "sky"}]),
        lambda r: edited.cut(r, 9),
        lambda r: edited.append(r, [{"hide": "sky.1"}, {"color": "1", "to": "#010203"}]),
        lambda r: edited.cut(r, 2),
    ):
        seen.append((edited.legend(), path.read_bytes()))
        change(revision)
        assert edited.revision != revision
        revision = edited.revision
    seen.append((edited.legend(), path.read_bytes()))
    assert edited.next()[0] == "2 classes"
    for expected, written in seen[-2::-1]:
        edited.undo(edited.revision)
        assert edited.legend() == expected
        assert again(edited).legend() == expected
        assert path.read_bytes() == written
    assert edited.next() == (None, "rename 0 to sky")
    for expected, written in seen[1:]:
        again(edited).redo(again(edited).revision)
        assert again(edited).legend() == expected
        assert path.read_bytes() == written
    edited = again(edited)
    edited.undo(edited.revision)
    edited.append(edited.revision, [{"hide": "1"}])
    assert edited.next()[1] is None
    with pytest.raises(ConflictError, match="nothing to do again"):
        edited.redo(edited.revision)


def test_a_second_tab_does_not_write_over_the_first(edited):
    old = edited.revision
    edited.append(old, [{"rename": "0", "to": "sky"}])
    for change in (
        lambda: edited.append(old, [{"rename": "0", "to": "sea"}]),
        lambda: edited.cut(old, 3),
        lambda: edited.undo(old),
        lambda: edited.redo(old),
        lambda: edited.paint(old, "a", (4, 5), "0", [[0, 1]]),
    ):
        with pytest.raises(ConflictError, match="another tab or program"):
            change()
    assert edited.legend().names[0] == "sky"
    assert not list(edited.corrections.keys())


def test_edits_of_another_program_are_seen_and_can_be_undone(edited):
    edited.append(edited.revision, [{"rename": "0", "to": "sky"}])
    old = edited.revision
    change_edits(edited.model, edited.tree, lambda edits: [*edits, {"hide": "1"}])
    assert edited.revision != old
    with pytest.raises(ConflictError):
        edited.append(old, [{"hide": "2"}])
    assert edited.next()[0] == "edits of another program"
    edited.undo(edited.revision)
    assert edited.edits == [{"rename": "0", "to": "sky"}]
    # `primaps classes MODEL undo` takes back what the page did, and the page can do it again.
    change_edits(edited.model, edited.tree, lambda edits: edits[:-1])
    assert edited.next() == (None, "rename 0 to sky")
    edited.redo(edited.revision)
    change_edits(edited.model, edited.tree, lambda edits: [{"hide": "3"}])
    assert edited.next() == (None, None)
    assert again(edited).edits == edited.edits == [{"hide": "3"}]


def test_an_edit_that_cannot_be_made_leaves_no_trace(edited):
    edited.append(edited.revision, [{"rename": "0", "to": "sky"}])
    path = edited.model / "classes.json"
    before, lines, revision = path.read_bytes(), edited.history.lines, edited.revision
    for edits in ([{"rename": "1", "to": "sky"}], [{"hide": "1"}, {"split": "none"}], [{"x": "1"}]):
        with pytest.raises(EditError):
            edited.append(edited.revision, edits)
    assert (path.read_bytes(), edited.history.lines) == (before, lines)
    assert edited.revision == revision


RUN = st.tuples(st.integers(0, 59), st.integers(1, 12)).map(
    lambda run: (run[0], min(run[1], 60 - run[0]))
)


@given(
    st.lists(
        st.tuples(st.lists(RUN, min_size=1, max_size=4), st.sampled_from("01234")),
        min_size=1,
        max_size=5,
    )
)
@settings(max_examples=30, deadline=None)
def test_strokes_that_overlap_are_undone_one_by_one(tree, tmp_path_factory, strokes):
    out = tmp_path_factory.mktemp("strokes")
    (out / "model").mkdir()
    edited = Edited(out / "model", tree, out)
    expected = np.full(60, NOTHING)
    seen = [expected.copy()]
    for runs, name in strokes:
        runs = disjoint(runs)
        edited.paint(edited.revision, "sub/a", (6, 10), name, runs)
        for start, length in runs:
            expected[start : start + length] = legend(tree).find(name).parts[0]
        seen.append(expected.copy())
        found = edited.corrections.read("sub/a", (6, 10))
        assert (found.ravel() == expected).all()
    for step in seen[-2::-1]:
        assert edited.undo(edited.revision) == "sub/a"
        found = edited.corrections.read("sub/a", (6, 10))
        assert (np.full(60, NOTHING) if found is None else found.ravel()).tolist() == step.tolist()
    assert not (out / "corrections" / "sub" / "a.png").exists()
    for step in seen[1:]:
        edited.redo(edited.revision)
        assert edited.corrections.read("sub/a", (6, 10)).ravel().tolist() == step.tolist()


def disjoint(runs):
    """No pixel twice, as the page sends them."""
    inside = np.zeros(60, bool)
    for start, length in runs:
        inside[start : start + length] = True
    return [run[:2] for run in as_runs(np.flatnonzero(inside), np.zeros(60, int)[inside])]


def test_pixels_and_runs_are_each_other():
    random = np.random.default_rng(0)
    for _ in range(50):
        values = random.choice([3, 4, NOTHING], 40)
        runs = as_runs(np.arange(40), values)
        back = np.full(40, NOTHING)
        for start, length, value in runs:
            back[start : start + length] = value
        assert (back == values).all()
    for runs in ([[0, 41]], [[-1, 2]], [[39, 2]], [[0, 0]], [[0, 30], [0, 30]]):
        with pytest.raises(ValueError, match="the correction"):
            pixels(runs, 40)


def test_a_correction_of_a_scaled_image_is_scaled(tmp_path):
    corrections = Corrections(tmp_path)
    corrections.paint("a", (2, 2), [([[0, 1]], 7)])
    assert Image.open(tmp_path / "a.png").mode == "I;16"
    found = corrections.read("a", (4, 4))
    assert found[:2, :2].tolist() == [[7, 7], [7, 7]]
    assert (found == 7).sum() == 4
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"a.png is damaged"):
        corrections.read("a", (4, 4))


@pytest.mark.parametrize("cut", [0, 1, 10, -1])
def test_a_kill_between_the_line_and_its_effect_loses_nothing(edited, cut):
    """The line is on the disk first; at the next start its effect is there, or it is none."""
    edited.append(edited.revision, [{"rename": "0", "to": "sky"}])
    edited.paint(edited.revision, "a", (4, 5), "sky", [[2, 3]])
    path = edited.model.parent / "corrections" / "a.png"
    painted = path.read_bytes()
    path.unlink()  # killed before it was written
    assert again(edited).corrections.read("a", (4, 5)).ravel()[2:5].tolist() == [0, 0, 0]
    edited.undo(edited.revision)
    path.write_bytes(painted)  # killed before the undo took effect
    assert again(edited).corrections.read("a", (4, 5)) is None
    # Half a line: killed while it was written, before any effect.
    history = edited.model.parent / "history.jsonl"
    line = json.dumps({"do": "edits", "edits": [{"hide": "1"}], "about": "hide 1"}).encode()
    history.write_bytes(history.read_bytes() + line[: cut or 1])
    found = again(edited)
    assert found.edits == [{"rename": "0", "to": "sky"}]
    found.append(found.revision, [{"hide": "2"}])
    assert again(found).next()[0] == "hide 2"
    assert read_edits(found.model, found.tree).edits[-1] == {"hide": "2"}


def test_a_line_without_its_edit_can_be_done_again(edited):
    """Killed between the line of an edit and classes.json: it was not shown as saved."""
    edited.append(edited.revision, [{"rename": "0", "to": "sky"}])
    edited.history.add({"do": "edits", "edits": [{"hide": "1"}], "about": "hide 1"})
    found = again(edited)
    assert found.edits == [{"rename": "0", "to": "sky"}]
    assert found.next() == ("rename 0 to sky", "hide 1")
    found.redo(found.revision)
    assert found.edits[-1] == {"hide": "1"}
