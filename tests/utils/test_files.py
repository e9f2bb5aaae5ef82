import json
import os

import pytest
from PIL import Image
from safetensors import SafetensorError

from primaps.utils.files import atomic_path, cache_dir, sha256, temporary_folder, write_json


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_path(target) as temporary:
        temporary.write_text(str(1 / 0))
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_written_files_have_default_permissions(tmp_path):
    (tmp_path / "ordinary").touch()
    write_json(tmp_path / "a.json", {"x": 1})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}
    assert (tmp_path / "a.json").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_sha256_of_a_known_file(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256(tmp_path / "abc").startswith("ba7816bf8f01cfea")


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("PRIMAPS_CACHE", raising=False)
    assert cache_dir() == tmp_path / "primaps"
    monkeypatch.setenv("PRIMAPS_CACHE", str(tmp_path / "own"))
    assert cache_dir() == tmp_path / "own"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")  # noqa: PTH110
def test_errors_of_a_full_disk_name_the_file(tmp_path):
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


def test_a_temporary_folder_of_a_killed_process_is_removed(tmp_path):
    from primaps.utils import files

    dead = tmp_path / f".writing-{files._HOST}-{2**22 + 1}-abc"
    (dead / "below").mkdir(parents=True)
    (dead / "below" / "a.png").write_bytes(b"a")
    mine = tmp_path / ".writing-notes"
    mine.mkdir()
    with temporary_folder(tmp_path):
        assert not dead.exists()
    assert list(tmp_path.iterdir()) == [mine]
