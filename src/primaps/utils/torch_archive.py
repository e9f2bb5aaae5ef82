"""The zip archives of PyTorch, looked through before anything in them is read.

A file gets no memory for what it only declares: members are as large as they say and lie side by
side, and no instruction of the pickle reserves more than the file has.
"""

from __future__ import annotations

import io
import pickletools
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from primaps.utils.errors import PrimapsError
from primaps.utils.inputs import need_file

LARGEST_PICKLE = 64 << 20
"""Bytes of the description of objects, without the numbers of tensors: a ViT's has 40 kB."""
MOST_INSTRUCTIONS = 1_000_000
"""Of a pickle, each of which may make one small object: a ViT's has 10,000."""
LARGEST_NUMBER = 1 << 64
"""Of whole numbers in a pickle. Larger ones could be chosen to have one hash, all of them."""


class UnsafeFileError(PrimapsError, RuntimeError):
    """A file names something that no file of weights needs, or is no such file."""


@contextmanager
def checked_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """The zip archive that ``torch.save`` writes, whose members have no more bytes than the file.

    Raises:
        UnsafeFileError: it is no zip archive, or a member is packed, encrypted or overlaps another.
        InputError: it is no regular file.
        OSError: there is no such file.
    """
    need_file(path, sys.maxsize)
    size = path.stat().st_size
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            raise UnsafeFileError(
                f"{path} is not a PyTorch file of version 1.6 or newer (no zip archive); save it "
                "again with a newer PyTorch"
            )
        try:
            archive = zipfile.ZipFile(file)
        except Exception as error:  # zipfile raises whatever a broken byte leads to
            raise UnsafeFileError(f"{path} is a damaged zip archive ({error})") from None
        with archive:
            members = archive.infolist()
            for one in members:
                stored = one.compress_type == zipfile.ZIP_STORED and not one.flag_bits & 1
                if not stored or one.file_size != one.compress_size:
                    raise UnsafeFileError(
                        f"{path}: {one.filename} is packed or encrypted, which torch.save never "
                        "does; save the weights again"
                    )
            if len({one.filename for one in members}) < len(members):
                raise UnsafeFileError(f"{path} has two members of one name")
            if sum(one.file_size for one in members) > size:
                raise UnsafeFileError(
                    f"{path} declares more bytes than it has: it is damaged or was made to harm"
                )
            yield archive


def check_pickle(data: bytes, path: Path) -> None:
    """Refuse instructions that reserve memory by a number that they name.

    Raises:
        UnsafeFileError: there is one, or there are more than any file of weights needs.
    """
    number = -1
    for number, (code, argument, _) in enumerate(pickletools.genops(io.BytesIO(data))):
        # The table of remembered objects grows to the largest place, and bytearrays are reserved
        # before they are read.
        place = int(argument or 0) if code.name in ("PUT", "BINPUT", "LONG_BINPUT") else 0
        large = isinstance(argument, int) and abs(argument) > LARGEST_NUMBER
        if number > MOST_INSTRUCTIONS or place > number or large or code.name == "BYTEARRAY8":
            break
    else:
        return
    raise UnsafeFileError(
        f"{path} asks for more memory than a file of weights needs ({code.name} at instruction "
        f"{number:,})"
    )
