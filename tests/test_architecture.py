"""The structure of the package: imports run one way, functions are short, names are documented."""

import ast
import importlib.util
import inspect
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import primaps

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def architecture():
    spec = importlib.util.spec_from_file_location("architecture", ROOT / "docs/architecture.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_module_imports_in_a_circle(architecture):
    graph = architecture.imports()
    assert len(graph) > 80
    TopologicalSorter(graph).prepare()  # CycleError names the circle


def test_no_folder_imports_upwards(architecture):
    height = {
        name: (level, place)
        for level, names in enumerate(architecture.LAYERS)
        for place, name in enumerate(names)
    }
    upwards = [
        f"{module} imports {target}"
        for module, targets in architecture.imports().items()
        for target in targets
        if architecture.room(module) != architecture.room(target)
        and height[architecture.room(module)] <= height[architecture.room(target)]
    ]
    assert not upwards


def test_every_folder_has_its_place(architecture):
    placed = [name for names in architecture.LAYERS for name in names]
    assert len(placed) == len(set(placed))
    assert set(placed) == {architecture.room(module) for module in architecture.imports()}


def test_a_circle_and_an_upward_import_would_be_seen(architecture, tmp_path, monkeypatch):
    for name, text in (
        ("utils/a.py", "def f():\n    from primaps.em import b"),
        ("em/b.py", "from primaps.utils.a import f"),
    ):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(architecture, "PACKAGE", tmp_path)
    assert architecture.imports() == {"utils.a": {"em.b"}, "em.b": {"utils.a"}}
    with pytest.raises(ValueError, match="cycle"):
        TopologicalSorter(architecture.imports()).prepare()


def functions(path):
    """Every function of a file, methods and nested ones included."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def body_lines(function):
    """Lines of a function without its signature and docstring."""
    documented = ast.get_docstring(function) is not None
    body = function.body[documented:] or function.body
    return body[-1].end_lineno - body[0].lineno + 1


def test_functions_have_at_most_60_lines(architecture):
    long = [
        f"{name}.{function.name}: {body_lines(function)}"
        for name, path in architecture.modules().items()
        for function in functions(path)
        if body_lines(function) > 60
    ]
    assert not long


def test_a_version_and_the_help_import_nothing_heavy():
    heavy = {"torch", "numpy", "scipy", "numba", "transformers"}
    code = f"import primaps.version, primaps.cli, sys; print(*({heavy} & {{*sys.modules}}))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == ""


@pytest.mark.parametrize("name", primaps.__all__)
def test_public_names_are_documented(name):
    """A sentence first, then every parameter of the call in Args or Attributes."""
    item = getattr(primaps, name)
    text = inspect.getdoc(item) or ""
    assert re.match(r"[A-Z`][^\n]*(\n[^\n]+)*[.:](\n\n|$)", text), text[:80]
    if isinstance(item, type) and issubclass(item, Exception | dict):
        return
    own = vars(item).items() if isinstance(item, type) else ()
    public = [(f"{name}.{k}", v) for k, v in own if k[0] != "_" and inspect.isfunction(v)]
    for label, call in [(name, item), *public]:
        if not callable(call):
            continue
        document = inspect.getdoc(call) or ""
        assert document, label
        parameters = [*inspect.signature(call).parameters]
        listed = set(re.findall(r"\w+", " ".join(re.findall(r"^ +\**([\w, *]+):", document, re.M))))
        if len(parameters) > 3:
            missing = {*parameters} - listed - {"self"}
            assert not missing, f"{label}: {missing} not in Args"


def test_links_between_documents_lead_somewhere():
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    assert len(documents) > 5
    for document in documents:
        for target in re.findall(r"\]\(([^)#\s]+)", document.read_text("utf-8")):
            if "://" not in target and not target.startswith("mailto:"):
                assert (document.parent / target).exists(), f"{document.name}: {target}"


@pytest.mark.slow
def test_the_reference_builds_from_the_docstrings_without_a_warning(tmp_path):
    pytest.importorskip("pdoc")
    command = [sys.executable, "-W", "error::UserWarning", str(ROOT / "docs/reference.py")]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Warn" not in done.stderr, done.stderr[-2000:]
    page = (tmp_path / "primaps" / "proposals" / "principal_masks.html").read_text("utf-8")
    assert "threshold" in page


def test_no_library_has_temporary_files_of_its_own_where_results_are_written(architecture):
    """safetensors' save_file has, and a kill would leave it: bytes go through our atomic path."""
    for path in architecture.modules().values():
        assert "import save_file" not in path.read_text("utf-8"), path
