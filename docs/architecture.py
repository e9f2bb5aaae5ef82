"""The structure of the package, from its own imports: ``python docs/architecture.py`` draws it.

Folders and modules lie in layers; imports run to lower layers only, and never in a circle.
``tests/test_architecture.py`` holds the package to what is written here.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "src" / "primaps"
PICTURE = Path(__file__).parent / "images" / "architecture.png"
LAYERS = (
    ("version", "utils", "results"),
    ("config", "crf", "geometry"),
    ("data", "proposals", "backbones"),
    ("features",),
    ("em",),
    ("projections", "classes"),
    ("teach",),
    ("persistence", "exchange", "inference", "model"),
    ("evaluation",),
    ("pictures",),
    ("scenes", "measure", "batch", "engines", "planning", "fitting", "demo"),
    ("reproduction", "studio"),
    ("cli",),
)
"""From the lowest layer up. Within a layer, a name may import the names before it."""
WORDS = {
    "utils": "files, errors, processes",
    "results": "output folders, locks",
    "version": "a constant",
    "demo": "six images",
    "config": "every option",
    "crf": "the dense CRF",
    "data": "images and labels",
    "proposals": "section 3.1: masks",
    "backbones": "images to features",
    "features": "computed once, cached",
    "em": "section 3.2: prototypes",
    "projections": "STEGO, HP, yours",
    "classes": "tree, edits, stability",
    "teach": "annotations, learner",
    "exchange": "formats of other tools",
    "geometry": "regions, polygons",
    "model": "fit, predict, save, load",
    "persistence": "files of a model",
    "evaluation": "scores by labels",
    "pictures": "overlays, charts",
    "inference": "images to label maps",
    "batch": "propose, predict",
    "measure": "areas, objects",
    "engines": "Ray, datasets, Spark",
    "planning": "time, memory, disk space",
    "fitting": "images to a model folder",
    "scenes": "images of any size",
    "reproduction": "the paper's tables",
    "studio": "server and page",
    "cli": "the command line",
}
ENTRANCES = ("__init__", "__main__")
"""Modules that only hand on: the public names, and ``python -m primaps``."""


def modules() -> dict[str, Path]:
    """Every module by its dotted name below the package."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        found[name] = path
    return found


def imports() -> dict[str, set[str]]:
    """Return the modules of the package that each module imports, also inside functions."""
    known = modules()
    graph: dict[str, set[str]] = {}
    for name, path in known.items():
        if name in ENTRANCES:
            continue
        targets = set()
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "primaps":
                module = (node.module or "").removeprefix("primaps").removeprefix(".")
                for alias in node.names:
                    below = f"{module}.{alias.name}".removeprefix(".")
                    targets.add(below if below in known else module)
            elif isinstance(node, ast.Import):
                targets |= {a.name.removeprefix("primaps.") for a in node.names
                            if a.name.startswith("primaps")}  # fmt: skip
        graph[name] = targets - {name}
    return graph


def room(module: str) -> str:
    """Return the folder of a module, or the module itself if it is at the top level."""
    return module.partition(".")[0]


def rooms() -> dict[str, set[str]]:
    """Return the folders that each folder imports."""
    graph = defaultdict(set)
    for module, targets in imports().items():
        graph[room(module)] |= {room(target) for target in targets} - {room(module)}
    return dict(graph)


def direct(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """Return the imports that are not implied by a chain of other imports."""

    def below(name: str) -> set[str]:
        return graph.get(name, set()).union(*map(below, graph.get(name, set())))

    return {
        name: targets - set().union(*(below(target) for target in targets))
        for name, targets in graph.items()
    }


def draw(path: Path = PICTURE) -> None:
    """Draw the layers with every import between them."""
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyBboxPatch

    ink, paper, line, accent = "#1d2733", "#ffffff", "#9fb0c3", "#2b6cb0"
    middle = 13.5 * max(map(len, LAYERS))
    figure = Figure(figsize=(13, 10.5), facecolor=paper)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, 2 * middle)
    axes.set_ylim(-4, 126)
    axes.axis("off")
    places: dict[str, tuple[float, float]] = {}
    width, height, step, gap = 22.0, 6.0, 10.2, 26.5
    for level, names in enumerate(LAYERS):
        y = 3 + level * step
        for number, name in enumerate(names):
            places[name] = (middle + (number - (len(names) - 1) / 2) * gap, y)
    science = {"proposals", "em", "crf", "projections", "evaluation"}
    for name, targets in direct(rooms()).items():
        for target in targets:
            (x0, y0), (x1, y1) = places[name], places[target]
            far = y0 - y1 > 1.5 * step
            bend = 0.32 * (far if x0 + x1 <= 2 * middle else -far)
            start, end = (x0, y0 - height / 2), (x1, y1 + height / 2)
            if y0 == y1:  # side by side
                side = width / 2 if x1 < x0 else -width / 2
                start, end = (x0 - side, y0), (x1 + side, y1)
            arrow = {"arrowstyle": "-|>", "color": line, "lw": 1.2}
            arrow["connectionstyle"] = f"arc3,rad={bend}"
            axes.annotate("", end, start, zorder=1, arrowprops=arrow)
    for name, (x, y) in places.items():
        box = FancyBboxPatch(
            (x - width / 2, y - height / 2), width, height,
            boxstyle="round,pad=0,rounding_size=1.2",
            facecolor="#e8f0fa" if name in science else "#f5f6f8",
            edgecolor=accent if name in science else "#c3ccd6", lw=1.2, zorder=2,
        )  # fmt: skip
        axes.add_patch(box)
        folder = (PACKAGE / name).is_dir()
        title = f"{name}/" if folder else f"{name}.py"
        words = WORDS.get(name, "")
        shift = 1.1 if words else 0
        axes.text(x, y + shift, title, ha="center", va="center", color=ink, size=11.5,
                  weight="bold", zorder=3)  # fmt: skip
        axes.text(x, y - 1.5, words, ha="center", va="center", color="#51606f", size=8, zorder=3)
    axes.text(3, 122.2, "primaps: imports run downwards", color=ink, size=14, weight="bold")
    axes.text(3, 119.6, "arrows: imports, except those implied by others; blue: methods, scores",
              color="#51606f", size=9)  # fmt: skip
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    draw()
    print(PICTURE)
