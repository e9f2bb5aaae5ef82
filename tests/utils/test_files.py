import json

import pytest

from primaps.config import Config
from primaps.em.fit import schedule
from primaps.utils.files import atomic_path, cache_dir, sha256, write_json


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_path(target) as temporary:
        temporary.write_text(str(1 / 0))
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_written_files_have_ordinary_permissions(tmp_path):
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


@pytest.mark.parametrize(
    ("images", "steps"),
    [(2975, (184, 4600)), (367, (184, 550)), (8, (184, 150)), (49629, (3100, 77500))],
)
def test_schedules(images, steps):
    assert schedule(Config(classes=27, recipe="paper"), images)[1:] == steps
