"""Classes after edits: names, colors, merges, splits and hidden classes, and their label maps.

Edits never change the prototypes. They move leaves of the tree between classes, or change how a
class is displayed. All edits together are a table from leaves to the values of a label map, with a
name and a color per value. Edits are applied in order; removing an edit from the list undoes it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Integer, UInt8
from torch import Tensor

from primaps.classes.tree import Tree, TreeError, leaf_map
from primaps.utils.colors import palette
from primaps.utils.errors import PrimapsError
from primaps.utils.validation import short

HIDDEN = 255
"""Label of the pixels of hidden classes, and of pixels that are not counted."""
RESERVED = re.compile(r"(class )?\d+(\.[12])*(\+\d+(\.[12])*)*")
"""Names that are not allowed: they look like ids (``3``, ``3.1``, ``0+4``) or default names."""
COLOR = re.compile(r"#[0-9a-fA-F]{6}")
KINDS = ("rename", "color", "merge", "split", "cut", "hide", "show")
MAX_NAME = 60
"""Maximum number of characters of a name."""


class EditError(PrimapsError, ValueError):
    """An edit cannot be made, or a class does not exist; the message says which and why."""


def check_name(name: Any) -> str:
    """Return a name that a class may be given.

    Raises:
        EditError: It is not 1 to 60 printable characters, looks like an id, or starts or ends with
            a space.
    """
    if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= MAX_NAME:
        raise EditError(f"a name has 1 to {MAX_NAME} printable characters, got {short(name)}")
    if name != name.strip() or RESERVED.fullmatch(name):
        raise EditError(
            f"{short(name)} is not allowed as a name: it looks like an id, or has spaces at its "
            "ends"
        )
    return name


@dataclass(frozen=True)
class Class:
    """A class after edits.

    Attributes:
        id: nodes of the tree that the class consists of: ``3``, ``3.1``, ``0+4``. It does not
            depend on other edits or on the cut.
        name: name that a person gave, or one derived from the names of the classes in it or above
            it. Classes without a common leaf have different names, whatever the cut.
        color: red, green and blue, 0..255.
        leaves: leaves of the tree.
        hidden: whether its pixels have no class in label maps.
        named: whether a person gave the name, to the class or to all named classes in it.
    """

    id: str
    name: str
    color: tuple[int, int, int]
    leaves: tuple[int, ...]
    hidden: bool = False
    named: bool = False


@dataclass(frozen=True)
class Legend:
    """All classes after the edits, ordered by their first leaves.

    Attributes:
        classes: the shown ones have the values 0, 1, ... of label maps, in this order.
        leaves: number of leaves of the tree.
    """

    classes: tuple[Class, ...]
    leaves: int

    @property
    def shown(self) -> tuple[Class, ...]:
        """Classes that label maps show: all except hidden ones."""
        return tuple(one for one in self.classes if not one.hidden)

    @property
    def hides(self) -> bool:
        """Whether label maps have pixels of the value 255, which have no class."""
        return len(self.shown) < len(self.classes)

    @property
    def names(self) -> list[str]:
        """Names of the shown classes."""
        return [one.name for one in self.shown]

    @property
    def colors(self) -> UInt8[np.ndarray, "k 3"]:
        """Colors of the shown classes."""
        return np.array([one.color for one in self.shown], np.uint8).reshape(-1, 3)

    def table(self) -> Integer[Tensor, " l"]:
        """Return the value of each leaf in a label map, 255 for hidden classes.

        Raises:
            EditError: A shown class would have the value 255.
        """
        if self.hides and len(self.shown) > HIDDEN:
            raise EditError(
                f"label maps support at most {HIDDEN} classes besides hidden ones, got "
                f"{len(self.shown)}; hide or merge more classes, or cut at fewer"
            )
        found = torch.full((self.leaves,), HIDDEN, dtype=torch.long)
        for value, one in enumerate(self.shown):
            found[list(one.leaves)] = value
        return found

    def find(self, text: str) -> Class:
        """Return the class with this id or, if no class has it, with this name.

        Raises:
            EditError: The class does not exist.
        """
        for key in ("id", "name"):
            for one in self.classes:
                if getattr(one, key) == text:
                    return one
        known = ", ".join(f"{one.id} ({one.name})" if one.named else one.id for one in self.classes)
        raise EditError(f"class {short(text)} does not exist; the classes are {known}")


def legend(tree: Tree, edits: Sequence[Any] = (), classes: int | None = None) -> Legend:
    """Return the classes of a cut after edits.

    Args:
        edits: ``{"rename": class, "to": name}``, ``{"color": class, "to": "#rrggbb"}``,
            ``{"merge": [class, ...]}``, ``{"split": class}``, ``{"cut": number of classes}``,
            ``{"hide": class}``, ``{"show": class}``, in their order. A class is its id or its name
            at that point.
        classes: number of classes of another cut than that of the model. It has the names, colors
            and hidden classes of the edits, but not their merges, splits and cuts.

    Raises:
        EditError: An edit cannot be made.
        TreeError: The tree does not have this cut.

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
        state.groups = [tree.node_leaves[node] for node in tree.nodes(classes)]
    return state.legend()


def node_classes(tree: Tree, edits: Sequence[Any] = ()) -> list[Class]:
    """Return every node of the tree as a class, after the edits.

    Examples:
        >>> import torch
        >>> tree = Tree(torch.eye(3), torch.tensor([5, 2, 4]), torch.tensor([[0, 1], [3, 2]]),
        ...             torch.tensor([0.1, 0.2]), classes=2)
        >>> [node.name for node in node_classes(tree, [{"rename": "0", "to": "car"}])]
        ['car.1', 'car.2', 'class 1', 'car', 'car']
    """
    return _after(tree, edits).as_classes(tree.node_leaves)


def undone(edits: list[dict[str, Any]], number: int | None = None) -> list[dict[str, Any]]:
    """Return the edits without the last one, or without the one with a number (from 0).

    Raises:
        EditError: The edit does not exist.

    Examples:
        >>> undone([{"hide": "1"}, {"hide": "2"}], 0)
        [{'hide': '2'}]
    """
    if not edits:
        raise EditError("the model has no edit to undo")
    place = len(edits) - 1 if number is None else number
    if not 0 <= place < len(edits):
        raise EditError(f"edit {number} does not exist; edits are numbered 0 to {len(edits) - 1}")
    return edits[:place] + edits[place + 1 :]


def divides_classes(tree: Tree, legend: Legend) -> bool:
    """Return whether a class of the model is divided, which requires the leaf of each pixel."""
    table = legend.table()
    return any(len(table[tree.owner == k].unique()) > 1 for k in range(tree.classes))


def final_map(
    tree: Tree,
    legend: Legend,
    classes: Integer[Tensor, "H W"],
    features: Float[Tensor, "c h w"],
) -> Integer[Tensor, "H W"]:
    """Return the label map after a cut or edits: values of ``legend``, 255 for hidden classes.

    Args:
        classes: classes of the model, refined, at image size.
        features: features that the prototypes are compared with, at any size.

    Examples:
        >>> tree = Tree(torch.eye(3), torch.tensor([5, 2, 4]), torch.tensor([[0, 1], [3, 2]]),
        ...             torch.tensor([0.1, 0.2]), classes=2)
        >>> inputs = torch.tensor([[0, 1]]), torch.ones(3, 1, 1)
        >>> final_map(tree, legend(tree, [{"hide": "1"}]), *inputs).tolist()
        [[0, 255]]
    """
    if not divides_classes(tree, legend):
        return legend_values(tree, legend, classes)
    return legend.table().to(features.device)[leaf_map(tree, classes, features).long()]


def legend_values(
    tree: Tree, legend: Legend, classes: Integer[Tensor, "*shape"]
) -> Integer[Tensor, "*shape"]:
    """Return :func:`final_map` where no class is divided."""
    first = torch.tensor([int((tree.owner == k).nonzero()[0]) for k in range(tree.classes)])
    return legend.table()[first].to(classes.device)[classes.long()]


def hidden_last(
    labels: Integer[Tensor, "*shape"], legend: Legend | None
) -> Integer[Tensor, "*shape"]:
    """Return labels with pixels of no class as an additional last class, to count or color them.

    Examples:
        >>> sky, car = Class("0", "sky", (0, 0, 0), (0,)), Class("1", "car", (0, 0, 0), (1,), True)
        >>> hidden_last(torch.tensor([0, 255]), Legend((sky, car), 2)).tolist()
        [0, 1]
    """
    if legend is None or len(legend.shown) > HIDDEN:  # then 255 is a class
        return labels
    return labels.where(labels != HIDDEN, len(legend.shown))


def _joined(names: list[str]) -> str:
    """Join names to one of at most :data:`MAX_NAME` characters.

    Examples:
        >>> _joined(["sky", "tree"]), _joined(["sky", 30 * "tree"])
        ('sky + tree', 'sky + ...')
    """
    shown = len(names)
    text = " + ".join(names)
    while len(text) > MAX_NAME and shown > 1:
        shown -= 1
        text = " + ".join([*names[:shown], "..."])
    return text


def _after(tree: Tree, edits: Sequence[Any]) -> _State:
    state = _State(tree, [tree.node_leaves[node] for node in tree.nodes(tree.classes)])
    for number, edit in enumerate(edits):
        try:
            state.apply(edit)
            shown = sum(not state.hidden.issuperset(leaves) for leaves in state.groups)
            if shown > HIDDEN:
                raise EditError(
                    f"the edit gives {shown} classes, but a label map has at most {HIDDEN}; merge "
                    "or hide classes first"
                )
        except EditError as error:
            raise EditError(f"edits[{number}]: {error}") from error
    return state


@dataclass
class _State:
    """Groups of leaves, names and colors by id, and hidden leaves, after some edits."""

    tree: Tree
    groups: list[tuple[int, ...]]
    names: dict[str, str] = field(default_factory=dict)
    colors: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    hidden: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        tree = self.tree
        below = 2 * len(tree) - tree.classes  # nodes at or below the classes of the model
        self.node = dict(zip(tree.names()[:below], range(below), strict=True))
        self.palette = palette(tree.classes + len(tree)).tolist()
        largest = sorted(self.node.items(), key=lambda one: -len(tree.node_leaves[one[1]]))
        self.largest = [(key, tree.node_leaves[node]) for key, node in largest]
        self.ids: dict[tuple[int, ...], str] = {}  # cache of id()

    def legend(self) -> Legend:
        return Legend(tuple(self.as_classes(sorted(self.groups))), len(self.tree))

    def as_classes(self, groups: Sequence[tuple[int, ...]]) -> list[Class]:
        """Return the classes of these leaves."""
        titles, found = self.titles(), []
        for leaves in groups:
            key = self.id(leaves)
            name, named = titles[key]
            hidden = set(leaves) <= self.hidden
            found.append(Class(key, name, self.color(key), leaves, hidden, named))
        return found

    def apply(self, edit: Any) -> None:
        kinds = [kind for kind in KINDS if isinstance(edit, dict) and kind in edit]
        if len(kinds) != 1:
            raise EditError(f"an edit has exactly one of {', '.join(KINDS)}, got {short(edit)}")
        kind = kinds[0]
        allowed = {kind, "to"} if kind in ("rename", "color") else {kind}
        if unknown := sorted(edit.keys() - allowed):
            raise EditError(f"{kind} does not have the field {short(unknown[0])}")
        if missing := allowed - edit.keys():
            raise EditError(f"{kind} needs the field {short(missing.pop())}")
        getattr(self, f"_{kind}")(edit[kind], *([edit["to"]] if "to" in edit else []))

    def _rename(self, which: Any, name: Any) -> None:
        key = self.id(self.groups[self.find(which)])
        name = check_name(name)
        for other in map(self.id, self.groups):
            if other != key and self.names.get(other) == name:
                raise EditError(
                    f"class {other} already has the name {short(name)}; merge the classes instead"
                )
        self.names.pop(key, None)
        self.names[key] = name

    def _color(self, which: Any, color: Any) -> None:
        key = self.id(self.groups[self.find(which)])
        if not isinstance(color, str) or not COLOR.fullmatch(color):
            raise EditError(f'a color has the form "#rrggbb", got {short(color)}')
        self.colors[key] = tuple(bytes.fromhex(color[1:]))  # type: ignore[assignment]

    def _merge(self, which: Any) -> None:
        if not isinstance(which, list) or len(which) < 2:
            raise EditError(f"merge needs a list of at least two classes, got {short(which)}")
        places = [self.find(one) for one in which]
        if len(set(places)) < len(places):
            raise EditError(f"merge has a class twice: {', '.join(map(str, which))}")
        joined = tuple(sorted(leaf for place in places for leaf in self.groups[place]))
        self.groups = [g for place, g in enumerate(self.groups) if place not in places] + [joined]

    def _split(self, which: Any) -> None:
        place = self.find(which)
        key = self.id(self.groups[place])
        if "+" in key:  # a merged class is split into the merged classes
            halves = [self.tree.node_leaves[self.node[one]] for one in key.split("+")]
        else:
            node = self.node[key]
            if node < len(self.tree):
                raise EditError(f"class {short(which)} is one leaf of the tree; it cannot be split")
            pair = self.tree.merges[node - len(self.tree)].tolist()
            halves = [self.tree.node_leaves[one] for one in pair]
        self.groups[place : place + 1] = halves

    def _cut(self, classes: Any) -> None:
        if not isinstance(classes, int) or isinstance(classes, bool):
            raise EditError(f"cut needs a number of classes, got {short(classes)}")
        try:
            self.groups = [self.tree.node_leaves[node] for node in self.tree.nodes(classes)]
        except TreeError as error:
            raise EditError(str(error)) from None

    def _hide(self, which: Any) -> None:
        self.hidden |= set(self.groups[self.find(which)])

    def _show(self, which: Any) -> None:
        self.hidden -= set(self.groups[self.find(which)])

    def find(self, which: Any) -> int:
        """Return the index in ``groups`` of the class with an id or name."""
        if not isinstance(which, str):
            raise EditError(f"a class is an id or a name, got {short(which)}")
        ids = [self.id(group) for group in self.groups]
        if which in ids:
            return ids.index(which)
        titles = self.titles()
        for place in sorted(range(len(ids)), key=self.groups.__getitem__):
            if titles[ids[place]][0] == which:
                return place
        return self.groups.index(self.legend().find(which).leaves)  # raises, and lists the classes

    def id(self, leaves: tuple[int, ...]) -> str:
        """Return the largest nodes within classes of the model that have these leaves."""
        if leaves not in self.ids:
            left, found = set(leaves), []
            for key, inside in self.largest:
                if left.issuperset(inside):
                    found.append((inside[0], key))
                    left -= set(inside)
            self.ids[leaves] = "+".join(key for _, key in sorted(found))
        return self.ids[leaves]

    def titles(self) -> dict[str, tuple[str, bool]]:
        """Return the name of every node and group, and whether a person gave it.

        Names do not depend on the cut, and classes without a common leaf have different ones. Of
        equal names, the one that a person gave last stays, then other given ones, then automatic
        ones of larger classes; the id of the class is appended to the others.
        """
        leaves = dict(zip(self.tree.names(), self.tree.node_leaves, strict=True))
        if not self.names:  # default names are distinct
            keys = {*leaves, *map(self.id, self.groups)}
            return {key: (self._automatic(key), False) for key in keys}
        leaves |= {self.id(group): group for group in sorted(self.groups)}
        for key in self.names:  # of a merge that was split again
            leaves.setdefault(key, self._leaves(key))
        members = {key: frozenset(group) for key, group in leaves.items()}
        wanted = {key: self._derived(key, members) for key in members}
        wanted |= {key: (name, True) for key, name in self.names.items()}
        latest = list(self.names)[::-1]
        others = sorted(
            (key for key in members if key not in self.names),
            key=lambda key: (not wanted[key][1], -len(members[key]), leaves[key]),
        )
        titles: dict[str, tuple[str, bool]] = {}
        holders: dict[str, list[frozenset[int]]] = {}
        for key in [*latest, *others]:
            (name, given), own = wanted[key], members[key]
            while any(map(own.isdisjoint, holders.get(name, ()))):
                name = f"{name} (class {key})"
            holders.setdefault(name, []).append(own)
            titles[key] = name, given
        return titles

    def _leaves(self, key: str) -> tuple[int, ...]:
        nodes = [self.node[part] for part in key.split("+")]
        return tuple(sorted(leaf for node in nodes for leaf in self.tree.node_leaves[node]))

    def _derived(self, key: str, members: dict[str, frozenset[int]]) -> tuple[str, bool]:
        """Return the name of a class that has none, and whether all named classes in it agree."""
        own = members[key]
        within = {one: members[one] for one in self.names if members[one] < own}
        outer = [one for one in within if not any(within[one] < more for more in within.values())]
        if not outer:
            return " + ".join(map(self._automatic, key.split("+"))), False
        found = {min(within[one]): self.names[one] for one in outer}
        left = own.difference(*(within[one] for one in outer))
        for part in key.split("+"):
            above = self._above(part)
            if above and (rest := left.intersection(self._leaves(part))):
                whole = len(rest) == len(self._leaves(part))
                found[min(rest)] = self._automatic(part) if whole else above[0]
        names = list(dict.fromkeys(found[leaf] for leaf in sorted(found)))
        return _joined(names), len(names) == 1

    def _automatic(self, key: str) -> str:
        """Return the name of a node by its place in the class that contains it and has a name."""
        if "+" in key:
            return " + ".join(map(self._automatic, key.split("+")))
        above = self._above(key)
        return ".".join(above) if above else f"class {key}"

    def _above(self, key: str) -> tuple[str, str] | None:
        """Return the name of the class that contains a node, and the place of the node in it.

        Classes in a class of the same name are skipped, which makes the places distinct.
        """
        found: tuple[str, str] | None = None
        above = key
        while "." in above:
            above = above.rpartition(".")[0]
            name = self.names.get(above)
            if name is not None and (found is None or found[0] == name):
                found = name, key.removeprefix(f"{above}.")
            elif name is not None:
                break
        return found

    def color(self, key: str) -> tuple[int, int, int]:
        """Return the given color, or that of a class in it, or of the class that contains it."""
        if key in self.colors:
            return self.colors[key]
        if "+" in key:
            return self.color(key.split("+")[0])
        above, dot, half = key.rpartition(".")
        if dot and half == "1":
            return self.color(above)
        place = self.tree.classes + self.tree.node_leaves[self.node[key]][0] if dot else int(key)
        return tuple(self.palette[place])
