"""Names, colors and edits of the classes of a model: what ``classes.json`` says, applied.

The prototypes never change. An edit moves parts of the tree between classes or says how a class is
shown; all of them together are a table from parts to the values of a label map, with a name and a
color for each. The file holds the edits in the order in which they were made, so undoing one is
leaving it out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from primaps.classes.legend import Class, EditError, Legend
from primaps.classes.tree import Tree, TreeError
from primaps.utils.colors import palette
from primaps.utils.validation import short

RESERVED = re.compile(r"(class )?\d+(\.[12])*(\+\d+(\.[12])*)*")
"""Names that a person may not give: they look like ids (``3``, ``3.1``, ``0+4``) or like the names
of classes without a name."""
COLOR = re.compile(r"#[0-9a-fA-F]{6}")
KINDS = ("rename", "color", "merge", "split", "cut", "hide", "show")
LONGEST_NAME = 60
"""Letters of a name."""


def legend(tree: Tree, edits: Sequence[Any] = (), classes: int | None = None) -> Legend:
    """The classes of a cut, after edits in their order.

    Args:
        edits: ``{"rename": class, "to": name}``, ``{"color": class, "to": "#rrggbb"}``,
            ``{"merge": [class, ...]}``, ``{"split": class}``, ``{"cut": number of classes}``,
            ``{"hide": class}``, ``{"show": class}``; a class is given by its id or its name at that
            point.
        classes: number of classes of another cut than the model's own. It has the names, colors
            and hidden classes that edits gave, but not their merges, splits and cuts.

    Raises:
        EditError: an edit cannot be made.
        TreeError: the tree has no such cut.

    Examples:
        >>> import torch
        >>> tree = Tree(torch.eye(3), torch.tensor([5, 2, 4]), torch.tensor([[0, 1], [3, 2]]),
        ...             torch.tensor([0.1, 0.2]), classes=2)
        >>> found = legend(tree, [{"rename": "0", "to": "car"}, {"split": "car"}, {"hide": "1"}])
        >>> found.names, found.table().tolist()
        (['car.1', 'car.2'], [0, 1, 255])
        >>> legend(tree, [{"rename": "0", "to": "car"}], classes=3).names
        ['car.1', 'car.2', 'class 1']
    """
    state = _after(tree, edits)
    if classes is not None and classes != tree.classes:
        state.groups = [tree.leaves[node] for node in tree.nodes(classes)]
    return state.legend()


def node_classes(tree: Tree, edits: Sequence[Any] = ()) -> list[Class]:
    """What every node of the tree would be as a class, after the edits: all cuts at once.

    Examples:
        >>> import torch
        >>> tree = Tree(torch.eye(3), torch.tensor([5, 2, 4]), torch.tensor([[0, 1], [3, 2]]),
        ...             torch.tensor([0.1, 0.2]), classes=2)
        >>> [node.name for node in node_classes(tree, [{"rename": "0", "to": "car"}])]
        ['car.1', 'car.2', 'class 1', 'car', 'car + class 1']
    """
    state = _after(tree, edits)
    return [state.shown(parts) for parts in tree.leaves]


def _after(tree: Tree, edits: Sequence[Any]) -> _State:
    state = _State(tree, [tree.leaves[node] for node in tree.nodes(tree.classes)])
    for number, edit in enumerate(edits):
        try:
            state.apply(edit)
        except EditError as error:
            raise EditError(f"edits[{number}]: {error}") from error
    return state


@dataclass
class _State:
    """Edits made so far: groups of parts; names and colors by id; parts that are hidden."""

    tree: Tree
    groups: list[tuple[int, ...]]
    names: dict[str, str] = field(default_factory=dict)
    colors: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    hidden: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        tree = self.tree
        below = 2 * len(tree) - tree.classes  # nodes that are classes of the model or in them
        self.node = dict(zip(tree.names()[:below], range(below), strict=True))
        self.palette = palette(tree.classes + len(tree)).tolist()
        largest = sorted(self.node.items(), key=lambda one: -len(tree.leaves[one[1]]))
        self.largest = [(key, tree.leaves[node]) for key, node in largest]
        self.ids: dict[tuple[int, ...], str] = {}  # found so far; they never change

    def legend(self) -> Legend:
        return Legend(tuple(map(self.shown, sorted(self.groups))), len(self.tree))

    def shown(self, parts: tuple[int, ...]) -> Class:
        """The class that parts are."""
        key = self.id(parts)
        return Class(
            key,
            self.name(key),
            self.color(key),
            parts,
            hidden=set(parts) <= self.hidden,
            named=key in self.names,
        )

    def apply(self, edit: Any) -> None:
        kinds = [kind for kind in KINDS if isinstance(edit, dict) and kind in edit]
        if len(kinds) != 1:
            raise EditError(
                f"an edit is an object with one of {', '.join(KINDS)}, not {short(edit)}"
            )
        kind = kinds[0]
        allowed = {kind, "to"} if kind in ("rename", "color") else {kind}
        if odd := sorted(edit.keys() - allowed):
            raise EditError(f"{kind} knows no field {short(odd[0])}")
        if missing := allowed - edit.keys():
            raise EditError(f"{kind} needs the field {short(missing.pop())}")
        getattr(self, f"_{kind}")(edit[kind], *([edit["to"]] if "to" in edit else []))

    def _rename(self, which: Any, name: Any) -> None:
        key = self.id(self.groups[self.find(which)])
        fine = isinstance(name, str) and name.isprintable()
        if not (fine and 0 < len(name.strip()) <= LONGEST_NAME):
            raise EditError(f"a name is text of 1 to {LONGEST_NAME} letters, not {short(name)}")
        if name != name.strip() or RESERVED.fullmatch(name):
            raise EditError(
                f"{short(name)} cannot be a name: it looks like an id or has outer blanks"
            )
        for other in map(self.id, self.groups):
            if other != key and self.name(other) == name:
                raise EditError(f"class {other} has the name {short(name)}: merge them instead")
        self.names[key] = name

    def _color(self, which: Any, color: Any) -> None:
        key = self.id(self.groups[self.find(which)])
        if not isinstance(color, str) or not COLOR.fullmatch(color):
            raise EditError(f'a color reads "#rrggbb", not {short(color)}')
        self.colors[key] = tuple(bytes.fromhex(color[1:]))  # type: ignore[assignment]

    def _merge(self, which: Any) -> None:
        if not isinstance(which, list) or len(which) < 2:
            raise EditError(f"merge takes a list of two classes or more, not {short(which)}")
        places = [self.find(one) for one in which]
        if len(set(places)) < len(places):
            raise EditError(f"merge names a class twice: {', '.join(map(str, which))}")
        joined = tuple(sorted(part for place in places for part in self.groups[place]))
        self.groups = [g for place, g in enumerate(self.groups) if place not in places] + [joined]

    def _split(self, which: Any) -> None:
        place = self.find(which)
        key = self.id(self.groups[place])
        if "+" in key:  # what was merged comes apart
            halves = [self.tree.leaves[self.node[one]] for one in key.split("+")]
        else:
            node = self.node[key]
            if node < len(self.tree):
                raise EditError(f"class {short(which)} is one part of the tree and cannot be split")
            pair = self.tree.merges[node - len(self.tree)].tolist()
            halves = [self.tree.leaves[one] for one in pair]
        self.groups[place : place + 1] = halves

    def _cut(self, classes: Any) -> None:
        if not isinstance(classes, int) or isinstance(classes, bool):
            raise EditError(f"cut takes a number of classes, not {short(classes)}")
        try:
            self.groups = [self.tree.leaves[node] for node in self.tree.nodes(classes)]
        except TreeError as error:
            raise EditError(str(error)) from None

    def _hide(self, which: Any) -> None:
        self.hidden |= set(self.groups[self.find(which)])

    def _show(self, which: Any) -> None:
        self.hidden -= set(self.groups[self.find(which)])

    def find(self, which: Any) -> int:
        """Place in ``groups`` of the class with an id or name."""
        if not isinstance(which, str):
            raise EditError(f"a class is given as text, its id or name, not as {short(which)}")
        ids = [self.id(group) for group in self.groups]
        if which in ids:
            return ids.index(which)
        for place in sorted(range(len(ids)), key=self.groups.__getitem__):
            if self.name(ids[place]) == which:
                return place
        return self.groups.index(self.legend().find(which).parts)  # raises, and says what there is

    def id(self, parts: tuple[int, ...]) -> str:
        """The largest nodes, at or below classes of the model, that make up these parts."""
        if parts not in self.ids:
            left, found = set(parts), []
            for key, own in self.largest:
                if left.issuperset(own):
                    found.append((own[0], key))
                    left -= set(own)
            self.ids[parts] = "+".join(key for _, key in sorted(found))
        return self.ids[parts]

    def name(self, key: str) -> str:
        """Given, or made of the names of the classes around or inside."""
        if key in self.names:
            return self.names[key]
        if "+" in key:
            return " + ".join(self.name(one) for one in key.split("+"))
        above, dot, half = key.rpartition(".")
        return f"{self.name(above)}.{half}" if dot else f"class {key}"

    def color(self, key: str) -> tuple[int, int, int]:
        """Given; else that of the first member, or of the class around for its first half."""
        if key in self.colors:
            return self.colors[key]
        if "+" in key:
            return self.color(key.split("+")[0])
        above, dot, half = key.rpartition(".")
        if dot and half == "1":
            return self.color(above)
        place = self.tree.classes + self.tree.leaves[self.node[key]][0] if dot else int(key)
        return tuple(self.palette[place])
