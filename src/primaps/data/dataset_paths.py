"""Where the folders of a data set are, and the mistakes one makes with its root."""

from __future__ import annotations

from pathlib import Path

from primaps.data.dataset import DataError
from primaps.utils.errors import InputError
from primaps.utils.inputs import read_bytes

LARGEST_LIST = 64 << 20
"""Bytes of a list of names: 118,287 ids of COCO have 1.5 MB."""


def need_folder(root: Path, folder: str, source: str) -> Path:
    """``root/folder``, or one sentence about what is wrong with the root.

    Args:
        folder: relative path; its first part identifies the data set.
        source: where the data is to be had.

    Raises:
        DataError: no such folder: the root does not exist, is one folder too high or too low, the
            archive is not unpacked, or the data is not there.
    """
    if (root / folder).is_dir():
        return root / folder
    first = Path(folder).parts[0]
    if not root.exists():
        raise DataError(f"{root} does not exist; give the folder that holds {first}/")
    if root.is_file():
        raise DataError(f"{root} is a file; unpack it and give the folder that holds {first}/")
    if (root / first).is_dir():
        raise DataError(f"{root / folder} is not there; it is part of {source}")
    for above in list(root.resolve().parents)[:3]:
        if (above / first).is_dir():
            raise DataError(f"{root} is a folder too low: give {above}, which holds {first}/")
    if below := next((path for path in sorted(root.glob(f"*/{first}")) if path.is_dir()), None):
        raise DataError(f"{root} is a folder too high: give {below.parent}, which holds {first}/")
    packed = [*root.glob("*.zip"), *root.glob("*.tar*"), *root.glob("*.tgz")]
    if packed:
        raise DataError(
            f"{root} has no folder {first}/, but {min(packed).name}, which is not unpacked; needed "
            f"are {source}"
        )
    raise DataError(f"{root} has no folder {first}/; get {source}")


def read_list(path: Path, how: str) -> list[str]:
    """Names in a list, one a line, in their order.

    Args:
        how: sentence on how to come by the list if it is not there.

    Raises:
        DataError: the list is not there, is empty, or is no list of names.
    """
    if not path.is_file():
        raise DataError(f"the list {path} is not there; {how}")
    try:
        names = read_bytes(path, LARGEST_LIST).decode("utf-8-sig").split()
    except UnicodeDecodeError as error:
        raise DataError(f"the list {path} is no text in UTF-8 ({error.reason}); {how}") from None
    except InputError as error:
        raise DataError(f"{error}; {how}") from None
    if strange := next((name for name in names if Path(name).name != name), None):
        raise DataError(f"the list {path} has {strange[:60]!r}, which is no name; {how}")
    if not names:
        raise DataError(f"the list {path} is empty; {how}")
    return names
