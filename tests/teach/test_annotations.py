"""The format of annotations: geometries, pixels, file, contradictions."""

import contextlib
import json
import multiprocessing
import os
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from primaps.results import OutputError
from primaps.teach.annotations import (
    Annotation,
    annotation_mask,
    annotation_region,
    append_annotations,
    class_names,
    expand_label_maps,
    iter_annotations,
    mask_geometry,
    merge_annotations,
    paint_annotations,
    read_annotations,
    resolve_annotations,
    scaled,
)
from primaps.utils.errors import InputError, NotFoundError

SIZE = (6, 8)
DIGEST = "ab" * 32
FORK = multiprocessing.get_context("fork")


def annotation(kind="point", geometry=(1, 2), name="a", image="x", size=SIZE, **more):
    return Annotation(image, more.pop("digest", None), kind, name, geometry, size, **more)


def mask_of(rows, columns, size=SIZE):
    mask = np.zeros(size, bool)
    mask[rows, columns] = True
    return mask


def box(left, top, width, height, name, **more):
    mask = mask_of(slice(top, top + height), slice(left, left + width))
    return annotation("mask", mask_geometry(mask), name, **more)


EXAMPLES = [
    (annotation("point", [3.9, 1.2]), mask_of(1, 3)),
    (annotation("point", [8, 6]), mask_of(5, 7)),  # the lower right corner
    (annotation("box", [1, 2, 3, 2]), mask_of(slice(2, 4), slice(1, 4))),
    (annotation("box", [-5, -5, 7, 6]), mask_of(slice(0, 1), slice(0, 2))),
    (annotation("box", [2.2, 2.2, 0.1, 0.1]), mask_of(2, 2)),
    (annotation("polygon", [[[1, 1], [5, 1], [5, 4], [1, 4]]]), mask_of(slice(1, 4), slice(1, 5))),
    (annotation("polygon", [[[2.1, 2.1], [2.2, 2.1], [2.2, 2.2]]]), mask_of(2, 2)),
    (annotation("scribble", {"points": [[1.5, 2.5], [5.5, 2.5]], "width": 1}),
     mask_of(2, slice(1, 6))),
    (annotation("scribble", {"points": [[4, 3]], "width": 2.9}), mask_of(slice(2, 4), slice(3, 5))),
    (annotation("scribble", {"points": [[-9, 0.5], [3.5, 0.5]]}), mask_of(0, slice(0, 4))),
    (annotation("mask", mask_geometry(mask_of([0, 5], [7, 0]))), mask_of([0, 5], [7, 0])),
    (annotation("label_map", {"a": mask_geometry(mask_of(0, 1)), "b": mask_geometry(mask_of(5, 2))},
                None), mask_of([0, 5], [1, 2])),
]  # fmt: skip


@pytest.mark.parametrize(("one", "expected"), EXAMPLES)
def test_every_geometry_covers_its_pixels(one, expected):
    assert annotation_mask(one, *SIZE).astype(int).tolist() == expected.astype(int).tolist()
    left, top, region = annotation_region(one)
    for edge in (region[0], region[-1], region[:, 0], region[:, -1]):
        assert edge.any()
    assert (
        expected[top : top + region.shape[0], left : left + region.shape[1]].sum() == region.sum()
    )


def test_a_hole_of_a_polygon_is_not_covered():
    rings = [[[0, 0], [8, 0], [8, 6], [0, 6]], [[2, 2], [4, 2], [4, 4], [2, 4]]]
    mask = annotation_mask(annotation("polygon", rings), *SIZE)
    assert mask.sum() == 44
    assert not mask[2:4, 2:4].any()


@pytest.mark.parametrize(("one", "expected"), EXAMPLES)
def test_annotations_scale_with_their_image(one, expected):
    twice = annotation_mask(one, 12, 16)
    covered = np.zeros((12, 16), bool)
    covered |= np.kron(expected, np.ones((2, 2), bool))
    if one.kind == "point":  # still one pixel, of those that the pixel became
        assert twice.sum() == 1
        assert covered[twice].all()
    elif one.kind in ("mask", "label_map"):
        assert (twice == covered).all()
    else:
        assert covered[twice].mean() > 0.6
    assert annotation_mask(one, 2, 2).any()


def test_a_line_of_file_is_the_annotation():
    for one, _ in EXAMPLES:
        full = replace(one, digest=DIGEST, time="2026-11-30T21:10:14.125Z", source="ask")
        content = json.loads(full.to_json())
        assert Annotation(**{"name": None, "digest": None, **content}) == full


def test_a_file_is_read_back_in_order(tmp_path):
    listed = [one for one, _ in EXAMPLES] + [
        annotation("point", [1, 1], None, answer="unknown"),
        annotation("point", [1, 1], None, answer="mixed"),
        annotation("point", [1, 1], "Blätter, braun", negative=True),
    ]
    path = tmp_path / "new" / "annotations.jsonl"
    append_annotations(path, listed[:4])
    append_annotations(path, listed[4:])
    assert read_annotations(path) == listed
    assert read_annotations(path.parent) == listed
    assert len(path.read_text("utf-8").splitlines()) == len(listed)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "circle"}, "kind is 'circle'; it must be one of point, "),
        ({"image": ""}, "image is ''; it must be the key"),
        ({"digest": "abc"}, "digest is 'abc'; it must be a SHA-256"),
        ({"name": None}, "a name has 1 to 60 printable characters, got None"),
        ({"name": "class 3"}, "'class 3' is not allowed as a name"),
        ({"name": " tree"}, "' tree' is not allowed as a name"),
        ({"name": "a\nb"}, "printable characters"),
        ({"answer": "unknown"}, "the answer 'unknown' has the class name 'a'; leave"),
        ({"answer": "maybe"}, "answer is 'maybe'; it must be one of class, unknown, mixed"),
        ({"negative": 1}, "negative is 1; it must be true or false"),
        ({"time": "yesterday"}, "time is 'yesterday'; it must be in UTC"),
        ({"size": [0, 8]}, "size is [0, 8]; it must be the height and width"),
        ({"size": [6.0, 8]}, "size is [6.0, 8]"),
        ({"size": [True, 8]}, "size is [True, 8]"),
        ({"geometry": [1]}, "geometry is [1]; a point must be [x, y]"),
        ({"geometry": [1, "2"]}, "a point must be [x, y]"),
        ({"geometry": [1, True]}, "a point must be [x, y]"),
        ({"geometry": [float("nan"), 1]}, "a point must be [x, y]"),
        ({"geometry": [10**400, 1]}, "a point must be [x, y]"),
        ({"geometry": [9, 1]}, "a point at x 9, y 1 is outside the image of 8 x 6 pixels"),
        ({"geometry": [1, -0.5]}, "a point at x 1, y -0.5 is outside the image of 8 x 6 pixels"),
        ({"kind": "box", "geometry": [9, 1, 2, 2]}, "a box at x 9, y 1 is outside"),
        ({"kind": "box", "geometry": [1, 1, 0, 2]}, "width and height must be above 0"),
        ({"kind": "scribble", "geometry": [[1, 1]]}, "a scribble must be"),
        ({"kind": "scribble", "geometry": {"points": [[1, 1]], "width": 0}}, "must be above 0"),
        ({"kind": "scribble", "geometry": {"points": [[-3, -3]]}}, "a scribble at x -3, y -3"),
        ({"kind": "polygon", "geometry": [[[1, 1], [2, 2]]]}, "at least 3 points"),
        ({"kind": "polygon", "geometry": []}, "a polygon must be rings"),
        ({"kind": "polygon", "geometry": [[1, 1, 2, 2, 3, 3]]}, "points must be pairs of numbers"),
        ({"kind": "mask", "geometry": {"size": [8, 6], "counts": "0"}},
         "a mask has the size [8, 6], but its image [6, 8]"),
        ({"kind": "mask", "geometry": {"size": [6, 8], "counts": [48]}}, "covers no pixel"),
        ({"kind": "mask", "geometry": {"size": [6, 8], "counts": [47]}}, "with the sum 48"),
        ({"kind": "mask", "geometry": {"size": 6, "counts": [47]}}, "a mask has the size 6"),
        ({"kind": "label_map", "geometry": {}, "name": None}, "a label map must have a mask"),
        ({"kind": "label_map", "geometry": {"a": 1}}, "a label map has the class name 'a'"),
    ],
)  # fmt: skip
def test_what_is_malformed_is_refused_in_one_sentence(change, words):
    fields = {"image": "x", "digest": None, "kind": "point", "name": "a", "geometry": [1, 2]}
    fields["size"] = SIZE
    with pytest.raises(InputError) as raised:
        Annotation(**{**fields, **change})
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"image": "x"', "line 2 is not JSON"),
        ("[1, 2]", "line 2: the content is [1, 2]; it must be an object"),
        ('{"image": "x", "kind": "point", "geometry": [1, 1]}', "line 2: field 'size' is missing"),
        ('{"image": "x", "kind": "point", "geometry": [1, 1], "size": [6, 8], "name": "a", '
         '"colour": 1}', "line 2: field 'colour' is unknown"),
        ('{"image": "x", "kind": "point", "geometry": [99, 1], "size": [6, 8], "name": "a"}',
         "line 2: a point at x 99, y 1 is outside"),
        ('{"image": "x", "kind": "point", "geometry": [NaN, 1], "size": [6, 8], "name": "a"}',
         "line 2 is not JSON"),
    ],
)  # fmt: skip
def test_a_malformed_line_is_named_and_the_file_is_not_changed(tmp_path, line, words):
    path = tmp_path / "annotations.jsonl"
    text = f"{annotation().to_json()}\n{line}\n{annotation().to_json()}\n"
    path.write_text(text)
    with pytest.raises(InputError, match="annotations.jsonl") as raised:
        read_annotations(path)
    assert words in str(raised.value)
    assert path.read_text() == text


def test_a_file_that_does_not_exist_or_has_something_else(tmp_path):
    with pytest.raises(NotFoundError, match="does not exist"):
        read_annotations(tmp_path / "annotations.jsonl")
    path = tmp_path / "notes.txt"
    path.write_text("buy milk\n")
    with pytest.raises(OutputError, match="does not have annotations"):
        append_annotations(path, [annotation()])
    assert path.read_text() == "buy milk\n"
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(OutputError, match="is not a regular file"):
        append_annotations(tmp_path / "link", [annotation()])
    (tmp_path / "empty.jsonl").write_text("")
    assert read_annotations(tmp_path / "empty.jsonl") == []


@pytest.mark.parametrize("cut", [1, 10, 60])
def test_a_torn_last_line_is_said_and_loses_no_confirmed_line(tmp_path, cut, caplog):
    path = tmp_path / "annotations.jsonl"
    first, torn, later = annotation(name="a"), annotation(name="torn"), annotation(name="later")
    append_annotations(path, [first, torn])
    content = path.read_bytes()
    fragment = content[content.index(b"\n") + 1 : -cut - 1]
    path.write_bytes(content[: -cut - 1])
    said = []
    assert list(iter_annotations(path, said.append)) == [first]
    assert len(said) == 1
    assert "line 2 is incomplete and was skipped" in said[0]
    append_annotations(path, [later])
    assert read_annotations(path) == [first, later]
    assert (tmp_path / "annotations.jsonl.incomplete").read_bytes() == fragment + b"\n"
    assert "the last line is incomplete" in caplog.text


def test_a_last_line_without_line_break_is_an_annotation(tmp_path):
    path = tmp_path / "annotations.jsonl"
    append_annotations(path, [annotation(name="a"), annotation(name="b")])
    path.write_bytes(path.read_bytes()[:-1])
    assert class_names(read_annotations(path)) == ["a", "b"]
    append_annotations(path, [annotation(name="c")])
    assert class_names(read_annotations(path)) == ["a", "b", "c"]
    assert not (tmp_path / "annotations.jsonl.incomplete").exists()


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "annotations.jsonl"
    append_annotations(path, [annotation(name="a")])
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"No space left on device: .*annotations.jsonl"):
            append_annotations(path, [annotation(name="b")])
    assert path.read_bytes() == before


KILLS = int(os.environ.get("PRIMAPS_KILLS", "20"))


def append_until_killed(path, pipe):
    for number in range(10**6):
        points = [[i % 500, (number + i) % 500] for i in range(1 + number * 37 % 2000)]
        geometry = {"points": points, "width": 1}
        one = Annotation("x", None, "scribble", f"n{number}x", geometry, (500, 500))
        append_annotations(path, [one])
        pipe.send(number)


@pytest.mark.slow
def test_a_kill_at_any_moment_loses_no_confirmed_annotation(tmp_path):
    random = np.random.default_rng(0)
    path = tmp_path / "annotations.jsonl"
    before = 0
    for _ in range(KILLS):
        ours, theirs = FORK.Pipe()
        process = FORK.Process(target=append_until_killed, args=(path, theirs))
        process.start()
        theirs.close()
        confirmed = [ours.recv()]
        time.sleep(random.uniform(0, 0.2))
        process.kill()
        with contextlib.suppress(EOFError):
            while True:
                confirmed.append(ours.recv())
        process.join()
        found = [int(one.name.strip("nx")) for one in read_annotations(path)]
        # At most the annotation that was being written is there without a confirmation.
        assert found[before:][: len(confirmed)] == confirmed
        assert len(found) - before <= len(confirmed) + 1
        before = len(found)
    assert before > KILLS


def append_some(path, who):
    for i in range(40):
        append_annotations(path, [annotation(name=f"{who}{i}x")])


def test_processes_that_append_at_once_lose_nothing(tmp_path):
    path = tmp_path / "annotations.jsonl"
    running = [FORK.Process(target=append_some, args=(path, who)) for who in "pq"]
    for process in running:
        process.start()
    for process in running:
        process.join()
        assert process.exitcode == 0
    names = [one.name for one in read_annotations(path)]
    for who in "pq":
        assert [name for name in names if name[0] == who] == [f"{who}{i}x" for i in range(40)]


def test_the_later_of_two_contradicting_annotations_wins():
    first, later = box(0, 0, 4, 4, "a"), box(2, 2, 4, 2, "b")
    kept, conflicts = resolve_annotations([first, later])
    assert [(str(c), c.pixels) for c in conflicts] == [("x: 'a', later 'b', on 4 pixels", 4)]
    assert kept[1] == later
    assert annotation_mask(kept[0], *SIZE).sum() == 12
    assert (
        paint_annotations(kept, "ab", *SIZE) == paint_annotations([first, later], "ab", *SIZE)
    ).all()
    kept, conflicts = resolve_annotations([later, box(0, 0, 8, 6, "a")])
    assert [one.name for one in kept] == ["a"]
    assert len(conflicts) == 1


def test_same_class_other_image_and_open_answers_are_no_contradiction():
    listed = [
        box(0, 0, 4, 4, "a"), box(2, 2, 4, 2, "a"), box(0, 0, 4, 4, "b", image="y"),
        annotation("point", [1, 1], None, answer="unknown"),
        annotation("point", [1, 1], None, answer="mixed"),
    ]  # fmt: skip
    assert resolve_annotations(listed) == (listed, [])


def test_duplicates_are_dropped_and_the_last_one_counts():
    a, b = box(0, 0, 2, 2, "a"), box(0, 0, 2, 2, "b")
    again = replace(a, time="2026-11-30T21:10:14Z", source="other")
    assert resolve_annotations([a, again]) == ([again], [])
    kept, conflicts = resolve_annotations([a, b, again])
    assert kept == [again]
    assert [str(one) for one in conflicts] == ["x: 'b', later 'a', on 4 pixels"]


def test_not_this_class_contradicts_the_class():
    yes, no = box(0, 0, 4, 4, "a"), box(0, 0, 2, 4, "a", negative=True)
    kept, conflicts = resolve_annotations([yes, no])
    assert [str(one) for one in conflicts] == ["x: 'a', later not 'a', on 8 pixels"]
    assert annotation_mask(kept[0], *SIZE).sum() == 8
    assert kept[1] == no
    kept, conflicts = resolve_annotations([no, yes])
    assert kept == [yes]
    assert [str(one) for one in conflicts] == ["x: not 'a', later 'a', on 8 pixels"]
    other = box(0, 0, 4, 4, "b")
    assert resolve_annotations([other, no]) == ([other, no], [])


def test_a_label_map_contradicts_in_the_class_that_differs():
    sky, road = mask_of(slice(0, 3), slice(0, 8)), mask_of(slice(3, 6), slice(0, 8))
    whole = {"sky": mask_geometry(sky), "road": mask_geometry(road)}
    labels = annotation("label_map", whole, None)
    point = annotation("point", [2.5, 4.5], "car")
    kept, conflicts = resolve_annotations([labels, point])
    assert [str(one) for one in conflicts] == ["x: 'road', later 'car', on 1 pixels"]
    masks = {one.name: annotation_mask(one, *SIZE).sum() for one in kept}
    assert masks == {"sky": 24, "road": 23, "car": 1}
    painted = paint_annotations([labels, point], ["sky", "road"], *SIZE)
    assert painted[4, 2] == 1
    assert [one.name for one in expand_label_maps([labels])] == ["sky", "road"]


def test_two_sizes_of_one_image_are_refused():
    with pytest.raises(InputError, match="sizes of 8 x 6 and 16 x 12; annotate one version"):
        resolve_annotations([annotation(), scaled(annotation(), 12, 16)])


def test_files_of_two_people_are_merged_by_time(tmp_path):
    def at(minute, **more):
        return box(0, 0, 2, 2, time=f"2026-11-30T21:{minute:02}:00Z", **more)

    mine, yours = tmp_path / "mine.jsonl", tmp_path / "yours.jsonl"
    append_annotations(mine, [at(1, name="a"), at(9, name="c", image="y"), box(5, 5, 1, 1, "d")])
    append_annotations(yours, [at(5, name="b"), at(6, name="c", image="y")])
    kept, conflicts = merge_annotations(mine, yours)
    assert [(one.image, one.name, one.time[14:16]) for one in kept] == [
        ("x", "b", "05"), ("y", "c", "09"), ("x", "d", ""),
    ]  # fmt: skip
    assert [(one.earlier.name, one.later.name) for one in conflicts] == [("a", "b")]
    assert merge_annotations(yours, mine) == (kept, conflicts)


@pytest.mark.slow
def test_a_million_annotations_are_read_in_bounded_memory(tmp_path):
    path = tmp_path / "annotations.jsonl"
    with path.open("w") as file:
        for i in range(1_000_000):
            one = {"image": f"i{i % 1000}", "kind": "point", "name": f"c{i % 10}x",
                   "size": [1000, 1000], "geometry": [i % 997 + 0.5, i // 997 % 997]}  # fmt: skip
            file.write(json.dumps(one) + "\n")
    code = (
        "import resource, sys, time; from primaps.teach.annotations import *\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; began = time.process_time()\n"
        "kept, conflicts = resolve_annotations(read_annotations(sys.argv[1]))\n"
        "after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(len(kept), len(conflicts), (after - before) // 1024, time.process_time() - began)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], check=True, capture_output=True, text=True
    )
    kept, conflicts, megabytes, seconds = map(float, done.stdout.split())
    assert (kept, conflicts) == (1_000_000, 0)
    assert megabytes < 2000
    assert seconds < 90
