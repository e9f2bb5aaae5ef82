"""Files of the user are never replaced; results of this package are, unless they were changed."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from primaps.backbones.load import load_backbone
from primaps.batch import propose_files
from primaps.pictures.charts import iou_chart, save
from primaps.results import (
    MARKS,
    OutputError,
    OutputFolder,
    check_set,
    output_file,
    output_folder,
    write_marked_json,
    write_marked_png,
)
from tests.conftest import Colors, painted


def state(folder: Path) -> dict[str, str]:
    """Every file below a folder and the digest of its content; links are not followed."""
    return {
        str(path.relative_to(folder)): str(path.readlink())
        if path.is_symlink()
        else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def picture(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    painted(seed, 32, 32)[0].save(path)
    return path


@pytest.fixture(scope="module")
def network():
    return load_backbone(Colors(), device="cpu", patch_size=8)


def propose(network, inputs, out, **options):
    return propose_files(inputs, out, backbone=network, size=32, mask_crf=False, **options)


FOLDERS = st.sampled_from([".", "in", "in/sub", "link", "out", "out/in", "in/out"])
PLACES = st.sampled_from(["in", "in/sub", "in/sub/deep", "out", "out/in", "in/out", "."])
NAMES = st.sampled_from(
    ["a.png", "b.jpg", "b.png", "a.overlay.jpg", "primaps.json", "b.overlay.jpg"]
)
INPUTS = st.sampled_from(
    ["in", "in/*", "in/**/*", ".", "link", "in/sub", "*/*.png", "in/sub/a.png"]
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    files=st.lists(st.tuples(PLACES, NAMES), min_size=1, max_size=6, unique=True),
    inputs=st.lists(INPUTS, min_size=1, max_size=2),
    out=FOLDERS,
    back=st.booleans(),
)
def test_existing_files_are_not_changed(network, tmp_path_factory, files, inputs, out, back):
    root = tmp_path_factory.mktemp("any")
    for number, (folder, name) in enumerate(files):
        if name.endswith(".json"):
            (root / folder).mkdir(parents=True, exist_ok=True)
            (root / folder / name).write_text("[1]")
        else:
            picture(root / folder / name, number)
    (root / "in").mkdir(exist_ok=True)
    (root / "link").symlink_to(root / "in", target_is_directory=True)
    if back and not (root / "out").exists():
        (root / "out").symlink_to(root / "in", target_is_directory=True)
    before = state(root)
    for threshold in (0.4, 0.3):
        try:
            propose(network, [str(root / i) for i in inputs], root / out, threshold=threshold)
        except (ValueError, OSError):
            continue
    after = state(root)
    assert {name: after.get(name) for name in before} == before
    shutil.rmtree(root)


@pytest.mark.parametrize("out", ["in", "in/sub", "link"])
def test_the_only_png_of_a_subfolder_survives(network, tmp_path, out):
    picture(tmp_path / "in/sub/only.png")
    (tmp_path / "link").symlink_to(tmp_path / "in", target_is_directory=True)
    before = state(tmp_path)
    with pytest.raises((OutputError, FileNotFoundError), match=r"only.png|output folder .*in/sub"):
        propose(network, tmp_path / "in", tmp_path / out)
    assert state(tmp_path) == before


def test_label_maps_of_others_are_not_replaced(network, tmp_path):
    picture(tmp_path / "in/a.jpg")
    (tmp_path / "out").mkdir()
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(tmp_path / "out/a.png")
    before = state(tmp_path)
    with pytest.raises(OutputError, match="a.png was not written by primaps"):
        propose(network, tmp_path / "in", tmp_path / "out")
    assert state(tmp_path) == before


def test_a_corrected_map_is_not_replaced(network, tmp_path):
    picture(tmp_path / "in/a.jpg")
    propose(network, tmp_path / "in", tmp_path / "out")
    Image.fromarray(np.full((32, 32), 7, np.uint8)).save(tmp_path / "out/a.png")
    with pytest.raises(OutputError, match="or was changed since"):
        propose(network, tmp_path / "in", tmp_path / "out", threshold=0.2)
    assert np.asarray(Image.open(tmp_path / "out/a.png"))[0, 0] == 7


def test_a_link_under_the_name_of_a_result_is_not_followed(network, tmp_path):
    picture(tmp_path / "in/a.jpg")
    original = picture(tmp_path / "elsewhere/mine.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a.png").symlink_to(original)
    before = state(tmp_path)
    with pytest.raises(OutputError, match="was not written by primaps"):
        propose(network, tmp_path / "in", tmp_path / "out")
    (tmp_path / "out/a.png").unlink()
    (tmp_path / "out/a.png").hardlink_to(tmp_path / "in/a.jpg")
    with pytest.raises(OutputError, match="is the input .*a.jpg"):
        propose(network, tmp_path / "in", tmp_path / "out")
    (tmp_path / "out/a.png").unlink()
    before.pop("out/a.png")
    assert state(tmp_path) == before


def test_a_changed_source_is_processed_again_whatever_its_time(network, tmp_path):
    image = picture(tmp_path / "in/a.png", 1)
    propose(network, tmp_path / "in", tmp_path / "out")
    picture(image, 2)
    os.utime(image, (0, 0))  # as cp -p or unpacking leave it
    assert len(propose(network, tmp_path / "in", tmp_path / "out").written) == 1


@pytest.mark.parametrize("damage", [b"", b"half"])
def test_a_damaged_result_is_refused(network, tmp_path, damage):
    picture(tmp_path / "in/a.png")
    propose(network, tmp_path / "in", tmp_path / "out")
    (tmp_path / "out/a.png").write_bytes(damage)
    with pytest.raises(OutputError, match="changed since"):
        propose(network, tmp_path / "in", tmp_path / "out")


def test_results_of_other_options_do_not_stay_beside_new_ones(network, tmp_path):
    for name in ("a", "b"):
        picture(tmp_path / f"in/{name}.jpg")
    propose(network, tmp_path / "in", tmp_path / "out")
    (tmp_path / "in/b.jpg").unlink()
    with pytest.raises(OutputError, match="2 results of other options"):
        propose(network, tmp_path / "in", tmp_path / "out", threshold=0.3)
    assert len(propose(network, tmp_path / "in", tmp_path / "out").kept) == 1


def test_a_second_run_with_other_options_stops_the_first(tmp_path):
    first = OutputFolder(tmp_path, {"primaps": "1", "threshold": 0.4}, [], ["a"])
    second = OutputFolder(tmp_path, {"primaps": "1", "threshold": 0.3}, [], ["a"])
    second.write("source", {"a": lambda path: path.write_text("mask")})
    with pytest.raises(OutputError, match="another run with other options"):
        first.write("source", {"a": lambda path: path.write_text("mask")})


def test_results_of_another_process_are_read_from_the_journal(tmp_path):
    """The folder was opened before they were written."""
    options, names = {"primaps": "1"}, ["a", "b"]
    first, second = (OutputFolder(tmp_path, options, [], names) for _ in range(2))
    first.write("source", {"a": lambda path: path.write_text("1")})
    assert second.finished("source", ["a"])
    second.write("newer", {"a": lambda path: path.write_text("2")})  # ours, whoever wrote it
    assert first.finished("newer", ["a"])
    assert not first.finished("source", ["a"])


def test_an_incomplete_line_of_the_journal_is_ignored(tmp_path):
    options = {"primaps": "1"}
    OutputFolder(tmp_path, options, [], ["a"]).write(
        "source", {"a": lambda path: path.write_text("1")}
    )
    journal = tmp_path / "primaps.jsonl"
    with journal.open("a") as file:
        file.write('{"source": "so')
    OutputFolder(tmp_path, options, [], ["b"]).write(
        "source", {"b": lambda path: path.write_text("2")}
    )
    again = OutputFolder(tmp_path, options, [], ["a", "b"])
    assert again.finished("source", ["a"])
    assert again.finished("source", ["b"])
    assert not again.finished("other", ["a"])
    assert len(journal.read_text().splitlines()) == 3


def test_a_manifest_of_another_program_is_refused(tmp_path):
    (tmp_path / "primaps.json").write_text(json.dumps({"mine": 1}))
    with pytest.raises(OutputError, match="was not written by primaps"):
        OutputFolder(tmp_path, {"primaps": "1"}, [], ["a"])
    assert (tmp_path / "primaps.json").read_text() == '{"mine": 1}'
    (tmp_path / "primaps.json").unlink()
    os.mkfifo(tmp_path / "primaps.json")  # never opened
    with pytest.raises(OutputError, match="was not written by primaps"):
        OutputFolder(tmp_path, {"primaps": "1"}, [], ["a"])


def test_temporary_files_of_a_killed_process_are_removed(tmp_path):
    import subprocess
    import sys

    code = (
        "import os, sys; from primaps.utils.files import atomic_path\n"
        "with atomic_path(sys.argv[1]) as path: os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.png")], check=False)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".writing-")
    (tmp_path / ".writing-other-1-x.png").touch()  # of another machine: it may still run
    code = "import sys; from primaps.utils.files import write_json; write_json(sys.argv[1], 1)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "b.json")], check=True)
    assert {path.name for path in tmp_path.iterdir()} == {"b.json", ".writing-other-1-x.png"}


def test_special_files_are_never_opened(tmp_path):
    from primaps.data import find_images

    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    with pytest.raises(FileNotFoundError, match="pipe.png is neither a file nor a folder"):
        find_images(tmp_path / "pipe.png")
    for name in ("dangling", "loop"):
        with pytest.raises(FileNotFoundError, match=f"{name}.png is a link to .* does not exist"):
            find_images(tmp_path / f"{name}.png")
    with pytest.raises(FileNotFoundError, match="no image in"):
        find_images(str(tmp_path / "*"))
    picture(tmp_path / "a.png")
    assert [file.key for file in find_images([str(tmp_path / "*"), str(tmp_path)])] == ["a"]


MARKED = list(MARKS)


def test_marked_files_are_replaced(tmp_path):
    for _ in range(2):
        write_marked_png(Image.new("RGB", (2, 2)), tmp_path / "a.png")
        save(iou_chart({"EM": {"a": 0.5}}), tmp_path / "b.png")
        write_marked_json(tmp_path / "c.json", {"accuracy": 1.0})
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("suffix", MARKED)
@settings(max_examples=30, deadline=None)
@given(content=st.binary(max_size=300))
def test_files_without_the_mark_are_not_changed(tmp_path_factory, suffix, content):
    path = tmp_path_factory.mktemp("own") / f"a{suffix}"
    assume(MARKS[suffix] not in content)
    path.write_bytes(content)
    with (
        pytest.raises(OutputError, match="was not written by primaps"),
        output_file(path) as temporary,
    ):
        temporary.write_bytes(MARKS[suffix])
    assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_appears_during_writing_is_not_replaced(tmp_path):
    path = tmp_path / "a.json"

    def write(temporary):
        temporary.write_bytes(MARKS[".json"])
        path.write_text("mine")

    with pytest.raises(OutputError), output_file(path) as temporary:
        write(temporary)
    assert path.read_text() == "mine"


def test_links_and_folders_are_not_replaced(tmp_path):
    (tmp_path / "mine.html").write_bytes(MARKS[".html"])
    (tmp_path / "a.html").symlink_to(tmp_path / "mine.html")
    (tmp_path / "b.html").mkdir()
    for name in ("a.html", "b.html"):
        with pytest.raises(OutputError, match="not a regular file"), output_file(tmp_path / name):
            pass
    assert (tmp_path / "a.html").is_symlink()


def test_files_of_kinds_without_a_mark_are_replaced_by_identical_content_only(tmp_path):
    for content in ("a\nb\n", "a\nb\n"):
        with output_file(tmp_path / "a.txt") as temporary:
            temporary.write_text(content)
    with pytest.raises(OutputError), output_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("c\n")
    assert (tmp_path / "a.txt").read_text() == "a\nb\n"


def test_a_set_of_files_is_written_again_after_a_kill(tmp_path):
    """The description is written first, so that it marks what a killed process left."""
    write_marked_json(tmp_path / "config.json", {})
    (tmp_path / "weights.bin").write_bytes(b"half")
    check_set(tmp_path, "config.json", ["weights.bin"])
    (tmp_path / "config.json").unlink()
    with pytest.raises(OutputError, match="weights.bin was not written by primaps"):
        check_set(tmp_path, "config.json", ["weights.bin"])


def test_a_link_in_a_set_of_files_is_not_followed(tmp_path):
    write_marked_json(tmp_path / "set" / "projection.json", {})
    (tmp_path / "mine").mkdir()
    (tmp_path / "set" / "backbone").symlink_to(tmp_path / "mine")
    with pytest.raises(OutputError, match="backbone is a link"):
        check_set(tmp_path / "set", "projection.json", ["backbone"])


def test_a_folder_that_was_changed_is_not_replaced(tmp_path):
    def write(text):
        with output_folder(tmp_path / "out") as folder:
            (folder / "empty").mkdir()
            (folder / "a.txt").write_text(text)

    write("1")
    write("2")
    assert (tmp_path / "out" / "a.txt").read_text() == "2"
    (tmp_path / "out" / "mine.txt").touch()
    with pytest.raises(OutputError, match="was changed since primaps wrote it"):
        write("3")
    (tmp_path / "out" / "mine.txt").unlink()
    (tmp_path / "out" / "a.txt").write_text("mine")
    with pytest.raises(OutputError, match="was changed since primaps wrote it"):
        write("3")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_link_in_place_of_the_journal_is_refused(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "out").mkdir()
    for name in ("primaps.jsonl", ".primaps.lock"):
        (tmp_path / "out" / name).symlink_to(tmp_path / "mine")
        with pytest.raises(OutputError, match="was not written by primaps"):
            OutputFolder(tmp_path / "out", {"primaps": "1"}, [], ["a"])
        (tmp_path / "out" / name).unlink()
    assert (tmp_path / "mine").read_text() == "mine"
