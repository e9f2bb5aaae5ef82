"""Single files: ours are replaced, those of others never, whatever is written."""

import os

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import SafetensorError

from primaps.pictures.charts import iou_chart, save
from primaps.utils.files import atomic_path, temporary_folder
from primaps.utils.ours import MARKS, own_path, write_png, write_scores
from primaps.utils.outputs import OutputError

MARKED = [suffix for suffix in MARKS if suffix != ".safetensors"]


def test_pictures_and_charts_and_scores_carry_their_mark_and_are_replaced(tmp_path):
    for _ in range(2):
        write_png(Image.new("RGB", (2, 2)), tmp_path / "a.png")
        save(iou_chart({"EM": {"a": 0.5}}), tmp_path / "b.png")
        write_scores(tmp_path / "c.json", {"accuracy": 1.0})
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("suffix", MARKED)
@settings(max_examples=30, deadline=None)
@given(content=st.binary(max_size=300))
def test_what_others_wrote_stays_to_the_byte(tmp_path_factory, suffix, content):
    path = tmp_path_factory.mktemp("own") / f"a{suffix}"
    assume(MARKS[suffix] not in content)
    path.write_bytes(content)
    with (
        pytest.raises(OutputError, match="was not written by primaps"),
        own_path(path) as temporary,
    ):
        temporary.write_bytes(MARKS[suffix])
    assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_appears_while_ours_is_written_stays(tmp_path):
    path = tmp_path / "a.json"

    def write(temporary):
        temporary.write_bytes(MARKS[".json"])
        path.write_text("mine")

    with pytest.raises(OutputError), own_path(path) as temporary:
        write(temporary)
    assert path.read_text() == "mine"


def test_links_and_folders_are_not_replaced(tmp_path):
    (tmp_path / "mine.html").write_bytes(MARKS[".html"])
    (tmp_path / "a.html").symlink_to(tmp_path / "mine.html")
    (tmp_path / "b.html").mkdir()
    for name in ("a.html", "b.html"):
        with pytest.raises(OutputError, match="no ordinary file"), own_path(tmp_path / name):
            pass
    assert (tmp_path / "a.html").is_symlink()


def test_lists_without_a_mark_are_replaced_by_themselves_alone(tmp_path):
    for content in ("a\nb\n", "a\nb\n"):
        with own_path(tmp_path / "a.txt") as temporary:
            temporary.write_text(content)
    with pytest.raises(OutputError), own_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("c\n")
    assert (tmp_path / "a.txt").read_text() == "a\nb\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")  # noqa: PTH110
def test_a_full_disk_names_the_file_whoever_writes(tmp_path):
    def plain(path):
        with open("/dev/full", "wb", buffering=0) as full:  # noqa: PTH123
            full.write(b"a")

    def tensors(path):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    def picture(path):
        with open("/dev/full", "wb") as full:  # noqa: PTH123
            Image.effect_noise((400, 400), 90).save(full, "PNG")

    for write in (plain, tensors, picture):
        target = tmp_path / "masks.bin"
        named = pytest.raises(OSError, match="No space left on device: '.*masks.bin'")
        with named, atomic_path(target) as temporary:
            write(temporary)
        assert not list(tmp_path.iterdir())


def test_an_error_of_a_file_that_is_read_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="source.png"), atomic_path(tmp_path / "a"):
        (tmp_path / "source.png").read_bytes()


def test_what_a_killed_process_left_in_a_folder_is_removed_by_the_next(tmp_path):
    from primaps.utils import files

    dead = tmp_path / f".writing-{files._HOST}-{2**22 + 1}-abc"
    (dead / "below").mkdir(parents=True)
    (dead / "below" / "a.png").write_bytes(b"a")
    mine = tmp_path / ".writing-notes"
    mine.mkdir()
    with temporary_folder(tmp_path):
        assert not dead.exists()
    assert list(tmp_path.iterdir()) == [mine]
