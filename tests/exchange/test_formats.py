"""The table of formats, and what reads it."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from primaps.cli import app
from primaps.exchange.formats import EXPORT_FORMATS, FORMATS, IMPORT_FORMATS, format_table
from primaps.studio.export import describe_formats

DOCS = Path(__file__).parents[2] / "docs" / "exchange.md"


@pytest.mark.parametrize("name", FORMATS)
def test_writers_and_readers_exist(name):
    assert callable(FORMATS[name].write)
    assert callable(FORMATS[name].read) or name not in IMPORT_FORMATS


def test_the_documentation_has_the_table():
    assert format_table() in DOCS.read_text("utf-8")


@pytest.mark.parametrize(("command", "names"), [("export", EXPORT_FORMATS),
                                                ("import", IMPORT_FORMATS)])  # fmt: skip
def test_the_help_lists_the_formats(command, names):
    text = CliRunner().invoke(app, [command, "--help"], terminal_width=2000).output
    assert ", ".join(names) in " ".join(text.replace("│", " ").split())


def test_the_studio_lists_the_formats():
    assert [one["name"] for one in describe_formats()] == list(EXPORT_FORMATS)
    assert all(one["title"] and one["description"] for one in describe_formats())


def test_the_table_imports_no_reader():
    code = "import primaps.exchange.formats, sys; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
