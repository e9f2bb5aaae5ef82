"""docs/equations.md: every function that it names exists and names its equation."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROWS = re.findall(
    r"^\| (\d+) \| .+ \| `(primaps[\w.]+)` \|$",
    (ROOT / "docs/equations.md").read_text("utf-8"),
    flags=re.MULTILINE,
)


def source_of(name: str) -> str:
    """The text of a function, from the file, since compiled functions have none."""
    module, _, function = name.rpartition(".")
    path = ROOT / "src" / Path(*module.split(".")).with_suffix(".py")
    text = path.read_text("utf-8")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and node.name == function:
            return ast.get_source_segment(text, node) or ""
    raise AssertionError(f"{name} does not exist")


def test_every_function_names_its_equation():
    for equation, name in ROWS:
        # "Eq. 2 and 3", "Eq. 2-8" and "Eq. 6" are all in use.
        named = re.findall(r"Eq\. (\d+)(?:(?: and |, )(\d+)|-(\d+))?", source_of(name))
        numbers = set()
        for first, second, last in named:
            numbers |= {*range(int(first), int(last or first) + 1), int(second or first)}
        assert int(equation) in numbers, f"{name} does not name Eq. {equation}"


def test_every_equation_of_the_method_has_a_function():
    assert {int(equation) for equation, _ in ROWS} == set(range(2, 12))
