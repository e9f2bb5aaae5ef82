"""Every option of every command with invalid values."""

import re

import pytest
import typer
from typer.testing import CliRunner

from primaps.cli import app

runner = CliRunner()
NUMBERS = ("nan", "inf", "", "1e400", "9" * 30, "[red]7[/red]")
MAY_BE_NEGATIVE = {"seed", "point"}
MAY_BE_ZERO = {
    "seed", "threshold", "views", "init_epochs", "min_steps", "min_init_steps", "momentum",
    "ignore_index", "min_agreement", "budget", "port", "tile_overlap",
    "min_area", "neck", "point",
}  # fmt: skip
UNBOUNDED = {"max_images", "budget", "scale", "mpp", "tile_overlap", "point"}
"""Options without a maximum."""
TEXTS = ("", "[/x]", "a\x1b[31mb")


def walk(command, words=()):
    """Yield every command with its name."""
    if hasattr(command, "commands"):
        for name, below in command.commands.items():
            yield from walk(below, (*words, name))
    else:
        yield words, command


COMMANDS = {" ".join(words): command for words, command in walk(typer.main.get_command(app))}


def spelled(option):
    return max(option.opts, key=len)


def is_number(option):
    described = getattr(option, "type_descriptor", None)  # of typer that has a click of its own
    kind = str(described.annotation if described else option.type.name).lower()
    return option.param_type_name == "option" and ("int" in kind or "float" in kind)


def given(option, value):
    if option.nargs == 1:
        return [f"{spelled(option)}={value}"]
    return [spelled(option), *[value] * option.nargs]


def required(command, tmp_path, but):
    """Return values for required parameters; no path in them exists."""
    words = []
    for parameter in command.params:
        if not parameter.required or parameter is but:
            continue
        value = "2" if is_number(parameter) else str(tmp_path / "nothing")
        if parameter.name == "classes":
            value = "3"
        words += given(parameter, value) if parameter.param_type_name == "option" else [value]
    return words


def call(name, command, tmp_path, option, value):
    """Return the output on one line, after checks that apply to every error."""
    words = [*name.split(), *required(command, tmp_path, option), *given(option, value)]
    done = runner.invoke(app, words)
    text = " ".join(done.output.replace("│", " ").split())
    assert done.exit_code in (1, 2), (words, text)
    assert isinstance(done.exception, SystemExit), words
    assert "Traceback" not in text
    assert "unexpected" not in text, text
    assert "\x1b[31m" not in done.output
    if done.exit_code == 1:  # a sentence of ours; what typer says has a frame
        assert done.output.count("error: ") == 1, text
    assert not list(tmp_path.iterdir())
    return text


def test_numeric_options_are_found():
    numbers = [o for c in COMMANDS.values() for o in c.params if is_number(o)]
    assert len(numbers) > 40
    assert {"fit", "data check", "projection convert", "reproduce"} <= COMMANDS.keys()


@pytest.mark.parametrize("name", COMMANDS)
def test_invalid_numbers_are_refused_with_the_flag(name, tmp_path):
    command = COMMANDS[name]
    options = [option for option in command.params if is_number(option)]
    if name == "fit":
        options += [option for option in command.params if option.name == "views"]
    for option in options:
        values = [v for v in NUMBERS if option.name not in UNBOUNDED or "999" not in v]
        values += [] if option.name in MAY_BE_NEGATIVE else ["-1", "-14"]
        values += [] if option.name in MAY_BE_ZERO else ["0"]
        values += ["14000000"] if option.name in ("size", "ignore_index", "views") else []
        for value in values:
            text = call(name, command, tmp_path, option, value)
            assert spelled(option) in text, (value, text)


@pytest.mark.parametrize("name", COMMANDS)
def test_invalid_text_is_refused_in_one_sentence(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = COMMANDS[name]
    for option in command.params:
        flag = getattr(option, "is_flag", False)
        if option.param_type_name != "option" or flag or is_number(option):
            continue
        if option.name in ("out", "store", "names", "tensorboard", "help"):
            continue  # any text will do
        for value in TEXTS:
            call(name, command, tmp_path, option, value)


def test_invalid_choices_are_refused_with_the_valid_ones(tmp_path):
    for name, option, value in (
        ("evaluate", "--matching", "magic"),
        ("project", "--precision", "int4"),
        ("project", "--method", "magic"),
        ("project", "--preset", "magic"),
        ("fit", "--recipe", "magic"),
        ("fit", "--loss-size", "huge"),
        ("fit", "--method", "magic"),
    ):
        command = COMMANDS[name]
        given = next(parameter for parameter in command.params if option in parameter.opts)
        text = call(name, command, tmp_path, given, value)
        assert re.search(rf"'{value}'(; it)? (is not|must be) (one of )?'?\w+", text), (name, text)


@pytest.mark.parametrize("command", ["fit x --classes 3 --out y --recipe paper", "reproduce all"])
def test_views_accepts_an_integer(command):
    done = runner.invoke(app, [*command.split(), "--views", "2"])
    assert "--views" not in done.output  # the missing input is the error, not the number
