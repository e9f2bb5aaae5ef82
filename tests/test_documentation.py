"""Commands, options and Python names in README.md and in the pages of docs/ exist."""

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import primaps
from primaps.cli import app
from primaps.config import Config, InferenceOptions
from primaps.scenes.tiling import TilingOptions

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OPTION_CLASSES = (Config, InferenceOptions, TilingOptions)
KEYWORDS = {one.name for kind in OPTION_CLASSES for one in fields(kind)}


def commands(group: Any, name: str = "") -> Iterator[tuple[str, set[str]]]:
    yield name, {flag for one in group.params for flag in (*one.opts, *one.secondary_opts)}
    for word, one in getattr(group, "commands", {}).items():
        yield from commands(one, f"{name} {word}".strip())


COMMANDS = dict(commands(get_command(app)))
OPTIONS = {"--help"}.union(*COMMANDS.values())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_exist(page):
    text = re.sub(r"```python.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    blocks = "".join(re.findall(r"```.*?```", text, re.DOTALL))
    lines = re.findall(r"(?:^|[$&] )primaps ([^\n]*)", blocks, re.MULTILINE)
    for line in [*lines, *re.findall(r"`primaps ([^`\n]*)`", text)]:
        words = re.sub(r"[\[\]\"]|\s#.*", "", line).split()
        name = max((c for c in COMMANDS if f"{' '.join(words)} ".startswith(f"{c} ")), default="")
        assert name or words[0].startswith("-"), line
        used = {word.partition("=")[0] for word in words if word.startswith("-")}
        assert used <= COMMANDS[name] | {"--help"}, line
    assert set(re.findall(r"`(--[a-z-]+)[^`]*`", text)) <= OPTIONS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_names_and_arguments_exist(page):
    for code in re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("primaps"):
                assert all(hasattr(import_module(str(node.module)), one.name) for one in node.names)
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if re.fullmatch(r"primaps[.\w]+", name):
                known = {*inspect.signature(eval(name, {"primaps": primaps})).parameters, *KEYWORDS}
                assert {one.arg for one in node.keywords if one.arg} <= known, code
