"""``classes.json`` in a model's folder: the edits of its classes, safe for several writers.

    {
      "format": 1,
      "tree": "3f0c9a1be2d4",
      "edits": [
        {"rename": "3", "to": "car"},
        {"color": "3", "to": "#a1caf1"},
        {"merge": ["0", "4"]},
        {"split": "5"},
        {"cut": 9},
        {"hide": "7"}
      ]
    }

``edits`` are made in their order (:func:`primaps.classes.edits.legend`); leaving one out undoes it.
``tree`` is the digest of the tree that the ids are of; a file without it fits every model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Len

from primaps.classes.edits import legend
from primaps.classes.legend import EditError, Legend
from primaps.classes.tree import Tree
from primaps.utils.errors import InputError
from primaps.utils.files import locked, write_json
from primaps.utils.inputs import parse_json, read_bytes

NAME = "classes.json"
FORMAT = 1
MOST_EDITS = 10_000


@dataclass(frozen=True)
class EditsRecord:
    """The content of the file.

    Attributes:
        format: of the file.
        edits: in their order; what each may say, :func:`primaps.classes.edits.legend` knows.
        tree: digest of the tree that ids are of; None fits every tree.
    """

    format: Literal[1]
    edits: Annotated[list[Any], Len(0, MOST_EDITS)]
    tree: str | None = None


@dataclass(frozen=True)
class Edits:
    """What a file says.

    Attributes:
        edits: in their order.
        revision: of the file's content; "" if there is no file.
    """

    edits: tuple[dict[str, Any], ...] = ()
    revision: str = ""


def digest(tree: Tree) -> str:
    """What tells a tree from others: 12 hexadecimal digits."""
    found = hashlib.sha256()
    for _, tensor in sorted(tree.tensors().items()):
        found.update(tensor.numpy().tobytes())
    return found.hexdigest()[:12]


def read_edits(folder: str | Path, tree: Tree) -> Edits:
    """The edits of the model in a folder; none if it has no ``classes.json``.

    Raises:
        EditError: the file is damaged, of another model, or has an edit that cannot be made; the
            message names file and field.
    """
    path = Path(folder) / NAME
    try:
        data = read_bytes(path)
    except FileNotFoundError:
        return Edits()
    except InputError as error:
        raise EditError(f"{error}: mend it or move it away") from None
    try:
        content: EditsRecord = parse_json(data, EditsRecord, str(path))
    except InputError as error:
        raise EditError(f"{error}: mend it or move it away") from None
    own = digest(tree)
    if content.tree not in (None, own):
        raise EditError(
            f"{path}: tree is {content.tree!r}, but that of this model is {own!r}, so the names "
            "belong to another fit: move the file away, or remove the field to keep them"
        )
    try:
        legend(tree, content.edits)
    except EditError as error:
        raise EditError(f"{path}: {error}") from None
    return Edits(tuple(content.edits), _revision(data))


def current_revision(folder: str | Path) -> str:
    """Revision of the file as it is now, whatever it says; "" if there is none."""
    path = Path(folder) / NAME
    return _revision(path.read_bytes()) if path.is_file() else ""


def _revision(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]


def read_legend(folder: str | Path, tree: Tree, classes: int | None = None) -> Legend:
    """The classes of the model in a folder with all edits, or of another cut; see
    :func:`primaps.classes.edits.legend`."""
    return legend(tree, read_edits(folder, tree).edits, classes)


def change_edits(
    folder: str | Path,
    tree: Tree,
    change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]],
    revision: str | None = None,
    note: Callable[[], object] = lambda: None,
) -> Edits:
    """Read, change and write the edits while no other process does.

    Args:
        change: the edits as they are now to what they become.
        revision: what the person saw; if the file has another one by now, nothing is written.
        note: called when the change was found fine, before it is written.

    Returns:
        What the file says now.

    Raises:
        EditError: the file was changed meanwhile, is not fine before or after the change, or would
            have more than :data:`MOST_EDITS` edits.

    Examples:
        >>> import tempfile, torch
        >>> tree = Tree(torch.eye(2), torch.tensor([5, 2]), torch.tensor([[0, 1]]),
        ...             torch.tensor([0.1]), classes=2)
        >>> folder = tempfile.mkdtemp()
        >>> done = change_edits(folder, tree, lambda edits: [*edits, {"rename": "1", "to": "sky"}])
        >>> read_legend(folder, tree).names
        ['class 0', 'sky']
    """
    with locked(Path(folder) / NAME):  # of its own, since `fit` holds the folder
        now = read_edits(folder, tree)
        if revision is not None and revision != now.revision:
            raise EditError(f"{Path(folder) / NAME} was changed meanwhile: look at it again")
        edits = change(list(now.edits))
        if len(edits) > MOST_EDITS:
            raise EditError(
                f"{Path(folder) / NAME} would have {len(edits)} edits, and {MOST_EDITS} are the "
                "most: undo some"
            )
        try:
            legend(tree, edits)
        except EditError as error:
            kept = edits[: len(now.edits)] == list(now.edits)
            # Those that were there are fine, so it is what was added: its number says nothing.
            raise EditError(str(error.__cause__ if kept else error)) from None
        note()
        content = {"format": FORMAT, "tree": digest(tree), "edits": edits}
        write_json(Path(folder) / NAME, content)
        return Edits(tuple(edits), current_revision(folder))


def undone(edits: list[dict[str, Any]], number: int | None = None) -> list[dict[str, Any]]:
    """The edits without the last one, or without the one with a number (from 0).

    Raises:
        EditError: there is no such edit.

    Examples:
        >>> undone([{"hide": "1"}, {"hide": "2"}], 0)
        [{'hide': '2'}]
    """
    if not edits:
        raise EditError("there is no edit to undo")
    place = len(edits) - 1 if number is None else number
    if not 0 <= place < len(edits):
        raise EditError(f"there is no edit {number}; there are 0 to {len(edits) - 1}")
    return edits[:place] + edits[place + 1 :]
