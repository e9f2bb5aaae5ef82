"""Images in tar files and behind URLs: streamed, and nothing is lost beside what is damaged."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from primaps.batch import propose_files
from primaps.data import ImageError, content_digest, find_images, load_image
from tests.conftest import painted


def encoded(number, kind="PNG"):
    file = io.BytesIO()
    painted(number)[0].save(file, kind)
    return file.getvalue()


def shard(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            about = tarfile.TarInfo(name)
            about.size = len(content)
            archive.addfile(about, io.BytesIO(content))
    return path


@pytest.fixture
def members():
    """Samples as WebDataset has them: what belongs together has one name."""
    found = {}
    for number in range(5):
        found[f"a/{number:06}.png"] = encoded(number)
        found[f"a/{number:06}.json"] = b'{"caption": "painted"}'
    return found


def test_images_of_a_tar_have_their_paths_in_it_and_their_pixels(members, tmp_path):
    long = "deep/" * 40 + "x.jpg"  # beyond what the old header holds
    extra = {long: encoded(7, "JPEG"), "./b.PNG": encoded(8), ".hidden.png": encoded(9)}
    path = shard(tmp_path / "one.tar", {**members, **extra})
    files = find_images(path)
    assert [file.key for file in files] == [
        *(f"a/{number:06}" for number in range(5)), "deep/" * 40 + "x", "b",
    ]  # fmt: skip
    for number in range(5):
        assert np.array_equal(np.asarray(load_image(files[number].source)), painted(number)[0])
    (tmp_path / "alone.png").write_bytes(members["a/000002.png"])
    (alone,) = find_images(tmp_path / "alone.png")
    assert content_digest(files[2]) == content_digest(alone)


def test_shards_with_the_same_keys_are_told_apart_by_their_names(members, tmp_path):
    for name in ("s-0", "s-1"):
        shard(tmp_path / f"{name}.tar", members)
    keys = [file.key for file in find_images(str(tmp_path / "*.tar"))]
    assert keys == [f"s-{s}/a/{number:06}" for s in range(2) for number in range(5)]
    (tmp_path / "in").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "in" / "y.png")
    both = find_images([str(tmp_path / "in"), str(tmp_path / "s-0.tar")])
    assert [file.key for file in both] == ["y", *(f"a/{number:06}" for number in range(5))]


def header_of(path: Path, name: str) -> tarfile.TarInfo:
    with tarfile.open(path) as archive:
        return archive.getmember(name)


@pytest.mark.parametrize("damage", ["header", "pixels", "end", "inside"])
def test_a_damaged_member_costs_itself_and_one_sentence(colors, members, tmp_path, damage):
    path = shard(tmp_path / "one.tar", members)
    content = bytearray(path.read_bytes())
    third = header_of(path, "a/000002.png")
    if damage == "header":
        content[third.offset : third.offset + 300] = b"\xff" * 300
    elif damage == "pixels":
        middle = third.offset_data + third.size // 2
        content[middle : middle + 200] = bytes(200)
    elif damage == "end":
        content = content[: header_of(path, "a/000004.png").offset_data + 100]
    else:
        content = content[: third.offset_data + 100]
    path.write_bytes(content)
    told = []
    done = propose_files(
        path, tmp_path / "out", backbone=_network(colors), size=64, log=told.append
    )
    left = {"header": [0, 1, 3, 4], "pixels": [0, 1, 3, 4], "end": [0, 1, 2, 3], "inside": [0, 1]}
    assert [out.stem for out in done.written] == [f"{number:06}" for number in left[damage]]
    assert len(told) == 1
    assert "one.tar" in told[0]
    words = {"header": f"is damaged at byte {third.offset}", "pixels": "is damaged"}
    assert words.get(damage, "is truncated") in told[0]
    assert done.problems == told


@pytest.mark.parametrize("content", [b"no tar at all" * 100, b""])
def test_what_is_no_tar_is_one_sentence(colors, tmp_path, content):
    (tmp_path / "bad.tar").write_bytes(content)
    with pytest.raises((ImageError, FileNotFoundError), match=r"is not a tar file|empty file"):
        propose_files(tmp_path / "bad.tar", tmp_path / "out", backbone=_network(colors), size=64)
    (tmp_path / "bad.tar.gz").write_bytes(content)
    with pytest.raises(FileNotFoundError, match=r"decompress it to \.tar"):
        find_images(tmp_path / "bad.tar.gz")


def test_an_archive_is_never_written_over(colors, members, tmp_path):
    path = shard(tmp_path / "one.tar", members)
    before = path.read_bytes()
    out = tmp_path / "out"
    out.mkdir()
    (out / "a").mkdir()
    (out / "a" / "000001.png").hardlink_to(path)
    with pytest.raises(ValueError, match="is the input .*one.tar"):
        propose_files(path, out, backbone=_network(colors), size=64)
    assert path.read_bytes() == before


def test_a_header_about_all_members_is_no_damage(members, tmp_path):
    """As git archive writes one in front."""
    path = tmp_path / "one.tar"
    about = {"comment": "7c4a8d09ca3762af61e59520943dc26494f8941b"}
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers=about) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    assert path.read_bytes()[156:157] == tarfile.XGLTYPE
    assert [file.key for file in find_images(path)] == [f"a/{n:06}" for n in range(5)]


def test_a_folder_of_the_name_of_an_archive_is_a_folder(tmp_path):
    (tmp_path / "photos.tar").mkdir()
    (tmp_path / "photos.tar" / "a.png").write_bytes(encoded(0))
    assert [file.key for file in find_images(tmp_path / "photos.tar")] == ["a"]


@pytest.fixture
def memory(members, tmp_path):
    """A server of fsspec's own: a folder, and a tar file."""
    fsspec = pytest.importorskip("fsspec")
    system = fsspec.filesystem("memory")
    for number in range(3):
        system.pipe(f"/bucket/photos/sub/{number}.png", encoded(number))
    system.pipe("/bucket/photos/notes.txt", b"text")
    system.pipe("/bucket/photos/.hidden/x.png", encoded(0))
    system.pipe("/bucket/one.tar", shard(tmp_path / "one.tar", members).read_bytes())
    yield system
    system.rm("/bucket", recursive=True)


@pytest.mark.usefixtures("memory")
def test_urls_are_files_folders_globs_and_tars():
    def keys(url):
        return [file.key for file in find_images(url)]

    assert keys("memory://bucket/photos") == ["sub/0", "sub/1", "sub/2"]
    assert keys("memory://bucket/photos/sub/1.png") == ["1"]
    assert keys("memory://bucket/photos/*/[01].png") == ["sub/0", "sub/1"]
    assert keys("memory://bucket/one.tar") == [f"a/{number:06}" for number in range(5)]
    (file,) = find_images("memory://bucket/photos/sub/1.png")
    assert np.array_equal(np.asarray(load_image(file.source)), painted(1)[0])
    both = find_images(["memory://bucket/photos/sub", "memory://bucket/photos/sub/0.png"])
    assert [file.key for file in both] == ["sub/0", "sub/1", "sub/2", "0/0"]


def test_what_a_url_lacks_is_one_sentence(memory, colors, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"memory://bucket/none.png cannot be listed"):
        find_images("memory://bucket/none.png")
    with pytest.raises(FileNotFoundError, match="no image in memory://bucket/empty"):
        find_images("memory://bucket/empty")
    with pytest.raises(FileNotFoundError, match="is not supported by fsspec"):
        find_images("nonsense://bucket")
    told = []
    system_get = type(memory).cat_file

    def broken(self, path, *arguments, **options):
        if path.endswith("1.png"):
            raise PermissionError("not yours")
        return system_get(self, path, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(memory), "cat_file", broken)
        done = propose_files("memory://bucket/photos", tmp_path / "out",
                             backbone=_network(colors), size=64, log=told.append)  # fmt: skip
    assert [path.stem for path in done.written] == ["0", "2"]
    (sentence,) = told
    assert "sub/1.png cannot be read (not yours)" in sentence


def test_a_driver_that_is_not_installed_is_one_sentence(monkeypatch):
    import fsspec.core

    def absent(url):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", absent)
    with pytest.raises(
        ImportError, match=r"s3:// needs a driver that is not installed: Install s3fs"
    ):
        find_images("s3://bucket/photos")


def _network(colors):
    from primaps.backbones.load import load_backbone

    return load_backbone(colors, device="cpu", patch_size=8)
