"""Edits, cuts, corrections, undo and redo."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from primaps import persistence
from primaps.classes.legend import EditError, legend
from primaps.persistence import change_edits, read_edits
from primaps.studio.corrections import UNCORRECTED, Corrections, run_pixels, to_runs
from primaps.studio.edits import ClassEditor, ConflictError


@pytest.fixture
def editor(tree, tmp_path):
    (tmp_path / "model").mkdir()
    return ClassEditor(tmp_path / "model", tree, tmp_path)


def again(editor):
    """Open the same folder again, as another process would."""
    return ClassEditor(editor.model, editor.tree, editor.model.parent)


@given(
    st.lists(
        st.tuples(st.sampled_from(("merge", "split", "hide", "cut")), st.integers(0, 99)),
        max_size=8,
    ),
    st.integers(1, 20),
)
@settings(max_examples=40, deadline=None)
def test_a_cut_edit_equals_the_cut(tree, steps, classes):
    """After any edits, names and colors are those of ``legend(..., classes)``."""
    edits = [{"rename": "0", "to": "sky"}, {"color": "1", "to": "#010203"}]
    for kind, number in steps:
        found = legend(tree, edits).classes
        one = found[number % len(found)].id
        if kind == "merge" and len(found) > 1:
            edits.append({"merge": [one, found[(number + 1) % len(found)].id]})
        elif kind == "cut":
            edits.append({"cut": 1 + number % 20})
        elif kind == "hide" or (kind == "split" and len(found[number % len(found)].leaves) > 1):
            edits.append({kind: one})
    after = legend(tree, [*edits, {"cut": classes}])
    assert [one.leaves for one in after.classes] == sorted(
        tree.node_leaves[n] for n in tree.nodes(classes)
    )
    if classes != tree.classes:
        assert after == legend(tree, edits, classes)


def test_a_cut_is_one_edit(editor):
    editor.cut(editor.revision, 9)
    editor.cut(editor.revision, 9)
    assert editor.edits == [{"cut": 9}]
    assert editor.next_actions()[0] == "changed to 9 classes"
    editor.cut(editor.revision, 5)
    assert len(editor.legend().classes) == 5
    with pytest.raises(ValueError, match="cut at 1 to 20"):
        editor.cut(editor.revision, 21)


def test_too_many_edits_are_rejected(editor, monkeypatch):
    monkeypatch.setattr(persistence, "MAX_EDITS", 2)
    editor.append(editor.revision, [{"hide": "0"}, {"hide": "1"}])
    lines = editor.history.lines
    with pytest.raises(EditError, match="at most 2 are possible"):
        editor.append(editor.revision, [{"hide": "2"}])
    assert editor.history.lines == lines
    assert len(again(editor).edits) == 2


def test_a_failed_write_keeps_earlier_edits(editor, monkeypatch):
    """The disk is full between the line of an edit and edits.json."""

    def full(path, content):
        raise OSError(28, "No space left on device")

    sky = {"rename": "0", "to": "sky"}
    editor.append(editor.revision, [sky])
    revision = editor.revision
    with monkeypatch.context() as patch:
        patch.setattr(persistence, "write_json", full)
        with pytest.raises(OSError, match="No space"):
            editor.append(revision, [{"hide": "1"}])
    with pytest.raises(ConflictError):  # the page showed "Undo: hid class 1"
        editor.undo(revision)
    assert editor.edits == again(editor).edits == [sky]
    assert editor.next_actions() == ("renamed class 0 to sky", "hid class 1")
    with monkeypatch.context() as patch:
        patch.setattr(persistence, "write_json", full)
        with pytest.raises(OSError, match="No space"):
            editor.undo(editor.revision)
    assert editor.edits == [sky]
    assert editor.next_actions() == ("renamed class 0 to sky", "hid class 1")
    editor.redo(editor.revision)
    assert again(editor).edits == [sky, {"hide": "1"}]


def test_a_change_without_an_effect_is_made_when_it_is_sent_again(editor, monkeypatch):
    """The process is killed between the line of a change and edits.json, twice."""

    def killed(path, content):
        raise KeyboardInterrupt

    sky = [{"rename": "0", "to": "sky"}]
    with monkeypatch.context() as patch:
        patch.setattr(persistence, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            editor.append(editor.revision, sky, "one")
    assert again(editor).edits == again(editor).edits == []
    editor = again(editor)
    editor.append(editor.revision, sky, "one")
    assert again(editor).edits == sky
    with monkeypatch.context() as patch:
        patch.setattr(persistence, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            editor.undo(editor.revision, "two")
    editor = again(editor)
    assert editor.edits == sky
    editor.undo(editor.revision, "two")
    editor.undo("an earlier revision", "two")
    assert again(editor).edits == []


def test_undo_and_redo_restore_identical_bytes(editor):
    path = editor.model / "edits.json"
    change_edits(editor.model, editor.tree, lambda edits: edits)  # a file without edits
    seen, revision = [], editor.revision
    for change in (
        lambda r: editor.append(r, [{"rename": "0", "to": "sky"}]),
        lambda r: editor.cut(r, 9),
        lambda r: editor.append(r, [{"hide": "sky.1"}, {"color": "1", "to": "#010203"}]),
        lambda r: editor.cut(r, 2),
    ):
        seen.append((editor.legend(), path.read_bytes()))
        change(revision)
        assert editor.revision != revision
        revision = editor.revision
    seen.append((editor.legend(), path.read_bytes()))
    assert editor.next_actions()[0] == "changed to 2 classes"
    for expected, written in seen[-2::-1]:
        editor.undo(editor.revision)
        assert editor.legend() == expected
        assert again(editor).legend() == expected
        assert path.read_bytes() == written
    assert editor.next_actions() == (None, "renamed class 0 to sky")
    for expected, written in seen[1:]:
        again(editor).redo(again(editor).revision)
        assert again(editor).legend() == expected
        assert path.read_bytes() == written
    editor = again(editor)
    editor.undo(editor.revision)
    editor.append(editor.revision, [{"hide": "1"}])
    assert editor.next_actions()[1] is None
    with pytest.raises(ConflictError, match="nothing to redo"):
        editor.redo(editor.revision)


def test_a_stale_revision_is_rejected(editor):
    old = editor.revision
    editor.append(old, [{"rename": "0", "to": "sky"}])
    for change in (
        lambda: editor.append(old, [{"rename": "0", "to": "sea"}]),
        lambda: editor.cut(old, 3),
        lambda: editor.undo(old),
        lambda: editor.redo(old),
        lambda: editor.paint(old, "a", (4, 5), "0", [[0, 1]]),
    ):
        with pytest.raises(ConflictError, match="another tab or program"):
            change()
    assert editor.legend().names[0] == "sky"
    assert not list(editor.corrections.keys())


def test_edits_by_another_program_can_be_undone(editor):
    editor.append(editor.revision, [{"rename": "0", "to": "sky"}])
    old = editor.revision
    change_edits(editor.model, editor.tree, lambda edits: [*edits, {"hide": "1"}])
    assert editor.revision != old
    with pytest.raises(ConflictError):
        editor.append(old, [{"hide": "2"}])
    assert editor.next_actions()[0] == "edits by another program"
    editor.undo(editor.revision)
    assert editor.edits == [{"rename": "0", "to": "sky"}]
    # `primaps classes MODEL undo` takes back what the page did, and the page can do it again.
    change_edits(editor.model, editor.tree, lambda edits: edits[:-1])
    assert editor.next_actions() == (None, "renamed class 0 to sky")
    editor.redo(editor.revision)
    change_edits(editor.model, editor.tree, lambda edits: [{"hide": "3"}])
    assert editor.next_actions() == (None, None)
    assert again(editor).edits == editor.edits == [{"hide": "3"}]


def test_an_invalid_edit_changes_nothing(editor):
    editor.append(editor.revision, [{"rename": "0", "to": "sky"}])
    path = editor.model / "edits.json"
    before, lines, revision = path.read_bytes(), editor.history.lines, editor.revision
    for edits in ([{"rename": "1", "to": "sky"}], [{"hide": "1"}, {"split": "none"}], [{"x": "1"}]):
        with pytest.raises(EditError):
            editor.append(editor.revision, edits)
    assert (path.read_bytes(), editor.history.lines) == (before, lines)
    assert editor.revision == revision


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
def test_overlapping_strokes_are_undone_one_by_one(tree, tmp_path_factory, strokes):
    out = tmp_path_factory.mktemp("strokes")
    (out / "model").mkdir()
    editor = ClassEditor(out / "model", tree, out)
    expected = np.full(60, UNCORRECTED)
    seen = [expected.copy()]
    for runs, name in strokes:
        runs = disjoint(runs)
        editor.paint(editor.revision, "sub/a", (6, 10), name, runs)
        for start, length in runs:
            expected[start : start + length] = legend(tree).find(name).leaves[0]
        seen.append(expected.copy())
        found = editor.corrections.read("sub/a", (6, 10))
        assert (found.ravel() == expected).all()
    for step in seen[-2::-1]:
        assert editor.undo(editor.revision) == "sub/a"
        found = editor.corrections.read("sub/a", (6, 10))
        assert (
            np.full(60, UNCORRECTED) if found is None else found.ravel()
        ).tolist() == step.tolist()
    assert not (out / "corrections" / "sub" / "a.png").exists()
    for step in seen[1:]:
        editor.redo(editor.revision)
        assert editor.corrections.read("sub/a", (6, 10)).ravel().tolist() == step.tolist()


def disjoint(runs):
    """Runs without overlaps, as the page sends them."""
    inside = np.zeros(60, bool)
    for start, length in runs:
        inside[start : start + length] = True
    return [run[:2] for run in to_runs(np.flatnonzero(inside), np.zeros(60, int)[inside])]


def test_pixels_and_runs_round_trip():
    random = np.random.default_rng(0)
    for _ in range(50):
        values = random.choice([3, 4, UNCORRECTED], 40)
        runs = to_runs(np.arange(40), values)
        back = np.full(40, UNCORRECTED)
        for start, length, value in runs:
            back[start : start + length] = value
        assert (back == values).all()
    for runs in ([[0, 41]], [[-1, 2]], [[39, 2]], [[0, 0]], [[0, 30], [0, 30]]):
        with pytest.raises(ValueError, match="the correction"):
            run_pixels(runs, 40)


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
def test_a_kill_between_line_and_effect(editor, cut):
    """The line is on the disk first; the next start completes its effect."""
    editor.append(editor.revision, [{"rename": "0", "to": "sky"}])
    editor.paint(editor.revision, "a", (4, 5), "sky", [[2, 3]])
    path = editor.model.parent / "corrections" / "a.png"
    painted = path.read_bytes()
    path.unlink()  # killed before it was written
    assert again(editor).corrections.read("a", (4, 5)).ravel()[2:5].tolist() == [0, 0, 0]
    editor.undo(editor.revision)
    path.write_bytes(painted)  # killed before the undo took effect
    assert again(editor).corrections.read("a", (4, 5)) is None
    # Half a line: killed while it was written, before any effect.
    history = editor.model.parent / "history.jsonl"
    line = json.dumps(
        {"do": "edits", "edits": [{"hide": "1"}], "description": "hid class 1"}
    ).encode()
    history.write_bytes(history.read_bytes() + line[: cut or 1])
    found = again(editor)
    assert found.edits == [{"rename": "0", "to": "sky"}]
    found.append(found.revision, [{"hide": "2"}])
    assert again(found).next_actions()[0] == "hid class 2"
    assert read_edits(found.model, found.tree).edits[-1] == {"hide": "2"}


def test_a_line_without_its_edit_can_be_redone(editor):
    """A kill between the line and edits.json: the page never showed the edit as saved."""
    editor.append(editor.revision, [{"rename": "0", "to": "sky"}])
    editor.history.add({"do": "edits", "edits": [{"hide": "1"}], "description": "hid class 1"})
    found = again(editor)
    assert found.edits == [{"rename": "0", "to": "sky"}]
    assert found.next_actions() == ("renamed class 0 to sky", "hid class 1")
    found.redo(found.revision)
    assert found.edits[-1] == {"hide": "1"}
