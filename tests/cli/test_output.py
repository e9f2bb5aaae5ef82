"""Output of the commands: closed pipes, full disks, control characters in names."""

import io
import json
import os
import resource
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from primaps.cli import console as words
from primaps.cli.app import interrupt_again, is_interruption
from tests.cli.test_cli import call
from tests.conftest import painted

PRINTING = [["--version"], ["--help"], ["fit", "--help"], ["reproduce", "table2", "--plan"]]


def primaps(arguments, **options):
    command = [sys.executable, "-m", "primaps", *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")  # noqa: PTH110
def test_a_full_standard_output_is_one_sentence():
    with open("/dev/full", "w") as full:  # noqa: PTH123
        runs = [primaps(arguments, stdout=full) for arguments in PRINTING]
        for run in runs:
            said = run.communicate()[1]
            assert run.returncode == 1, said
            assert said == "error: standard output: No space left on device\n"


def test_a_closed_pipe_is_not_reported():
    reading, writing = os.pipe()
    os.close(reading)
    runs = [primaps(arguments, stdout=writing) for arguments in PRINTING]
    for run in runs:
        said = run.communicate()[1]
        assert run.returncode == 1
        assert said == ""
    os.close(writing)


TEXT = st.text(st.characters(codec="utf-8"), max_size=30) | st.sampled_from(
    [
        "[/x]",
        "[red]a",
        "\\[a",
        "[link=http://a]b",
        "a\x1b]0;title\x07",
        "\x9b31m",
        "\r\n\t",
        "\u202e",
    ]
)


@settings(max_examples=60, deadline=None)
@given(TEXT)
def test_messages_and_cells_escape_control_characters(text):
    assume(all(map(cell_len, words.visible(text))))  # marks on nothing are not drawn by rich
    file = io.StringIO()
    console = Console(file=file, width=400, force_terminal=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(words, "err", console)
        words.note(text)
        words.warn(text)
    table = Table("")
    table.add_row(words.cell(text))
    console.print(table)
    shown = words.visible(text)
    assert file.getvalue().count(shown.strip()) >= 3
    assert all(c.isprintable() or c == "\n" for c in file.getvalue())
    assert words.visible(shown) == shown


def test_errors_are_one_line():
    assert "\n" not in words.sentence(RuntimeError("a\nb"))
    assert words.sentence(OSError(28, "No space left on device", "a.png")).startswith("a.png: ")
    assert "not enough memory" in words.sentence(MemoryError())


def test_ctrl_c_in_compiled_code_is_recognized():
    """CPython raises SystemError if a compiled function returns while Ctrl-C is pending."""
    error = SystemError("<function> returned a result with an exception set")
    error.__cause__ = KeyboardInterrupt()
    assert is_interruption(error)
    assert not is_interruption(SystemError("another"))


class Destroyed:
    def __init__(self, error):
        self.error = error

    def __del__(self):
        raise self.error


@pytest.mark.slow
def test_ctrl_c_in_a_destructor_is_repeated(monkeypatch, capsys):
    monkeypatch.setattr(sys, "unraisablehook", interrupt_again)
    Destroyed(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        time.sleep(10)
    Destroyed(ValueError("another"))
    assert "ValueError: another" in capsys.readouterr().err


@pytest.fixture
def images(tmp_path):
    (tmp_path / "images").mkdir()
    for seed in range(12):
        painted(seed, 320, 320)[0].save(tmp_path / "images" / f"{seed:02}.png")
    return tmp_path / "images"


@pytest.mark.slow
def test_ctrl_c_prints_one_sentence_and_exits_with_130(images, vit, tmp_path):
    out = tmp_path / "out"
    run = primaps(["propose", images, "--out", out, "--backbone", vit, "--size", "320"])
    while not (out / "primaps.json").is_file():  # the work begins
        assert run.poll() is None, run.communicate()
        time.sleep(0.01)
    run.send_signal(signal.SIGINT)
    said = run.communicate()[1]
    assert run.returncode == 130, said
    assert said.splitlines()[-1] == "stopped; the same command continues from here"
    assert "Traceback" not in said
    assert not list(out.glob(".writing-*"))


def test_a_full_disk_is_reported_with_the_file(images, vit, tmp_path):
    def small_files():  # as a full disk, a limit on the size of files stops writing half-way
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))

    run = primaps(["propose", images, "--out", tmp_path / "out", "--backbone", vit, "--size", "64"],
                  preexec_fn=small_files)  # fmt: skip
    said = run.communicate()[1]
    assert run.returncode == 1
    assert said.splitlines()[-1] == f"error: {tmp_path}/out/00.overlay.jpg: File too large"
    assert not list((tmp_path / "out").glob(".writing-*"))


@pytest.fixture
def fitted(vit, painted_folder, tmp_path):
    quick = ["--size", 64, "--min-init-steps", 20]
    done = call("fit", painted_folder / "images", "--classes", 3, "--out", tmp_path / "model",
                "--backbone", vit, *quick, "--cache", tmp_path / "store")  # fmt: skip
    assert done.exit_code == 0, done.output
    return tmp_path / "model"


def test_class_names_are_escaped_everywhere(fitted, painted_folder, tmp_path):
    strange = "[red]$x_{$ <b>&\x1b[31m"
    assert call("classes", fitted, "rename", 0, strange[:-5]).exit_code == 0
    shown = call("classes", fitted).output
    assert "[red]$x" in shown
    assert "\x1b[31m" not in shown
    labels, images = painted_folder / "labels", painted_folder / "images"
    names = {"classes": [strange, "a$b", "[/c]"], "ignore_index": 255}
    (labels / "classes.json").write_text(json.dumps(names))
    scores, pictures, page = (tmp_path / name for name in ("a.json", "pictures", "report.html"))
    evaluate = ["evaluate", fitted, images, "--labels", labels, "--no-crf"]
    evaluate += ["--matching", "hungarian"]
    report = ["report", fitted, images, "--out", tmp_path, "--no-crf", "--max-images", 2]
    for _ in range(2):  # ours are replaced
        done = call(*evaluate, "--pictures", pictures, "--json", scores)
        assert done.exit_code == 0, done.output
        assert call(*report).exit_code == 0
    assert "[/c]" in done.output
    assert "\x1b[31m" not in done.output
    assert len(list(pictures.iterdir())) == 3
    assert "<b>&" not in page.read_text()
    foreign = {
        page: report,
        scores: [*evaluate, "--json", scores],
        pictures / "iou.png": [*evaluate, "--pictures", pictures],
    }
    for path, command in foreign.items():
        path.write_bytes(b"mine: primaps wrote nothing of this")
        done = call(*command)
        assert done.exit_code == 1
        assert f"{path} was not written by primaps" in done.output.replace("\n", "")
        assert path.read_bytes() == b"mine: primaps wrote nothing of this"


def test_a_tilde_is_the_home_folder(fitted, painted_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    done = call("predict", fitted, painted_folder / "images", "--out", "~/maps", "--no-crf")
    assert done.exit_code == 0, done.output
    assert len(list((tmp_path / "home" / "maps").glob("*.png"))) == 8
    assert not (tmp_path / "~").exists()
    done = call("predict", fitted, painted_folder / "images", "--out", "~nobody-of-this-name/x")
    assert "no user has this name" in done.output.replace("\n", " ")


def test_a_complete_cache_is_only_read(fitted, vit, painted_folder, tmp_path, monkeypatch):
    from primaps.features.feature_cache import ArrayCache
    from primaps.utils import files

    def refused(*_, **__):
        raise PermissionError(13, "Permission denied", "the store")

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*")}
    monkeypatch.setattr(ArrayCache, "writing", refused)
    real = files.tempfile.mkstemp

    def outside(dir=None, **options):
        assert tmp_path / "store" not in (dir, *dir.parents), dir
        return real(dir=dir, **options)

    monkeypatch.setattr(files.tempfile, "mkstemp", outside)
    quick = ["--size", 64, "--min-init-steps", 20]
    done = call("fit", painted_folder / "images", "--classes", 3, "--out", tmp_path / "again",
                "--backbone", vit, *quick, "--cache", tmp_path / "store")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*")} == before
    one, other = (tmp_path / name / "model.safetensors" for name in ("model", "again"))
    assert one.read_bytes() == other.read_bytes()


def test_a_second_fit_keeps_names_and_edits(fitted, vit, painted_folder):
    assert call("classes", fitted, "rename", 0, "sky").exit_code == 0
    before = {path.name: path.read_bytes() for path in fitted.iterdir() if path.is_file()}
    again = ["fit", painted_folder / "images", "--classes", 4, "--out", fitted, "--seed", 5,
             "--backbone", vit, "--size", 64, "--min-init-steps", 9]  # fmt: skip
    done = call(*again)
    assert done.exit_code == 1
    text = " ".join(done.output.split())
    assert "has a model with edits.json, which another fit would replace" in text
    assert {path.name: path.read_bytes() for path in fitted.iterdir() if path.is_file()} == before
    done = call(*again, "--replace")
    assert done.exit_code == 0, done.output
    kept = fitted.with_name(fitted.name + ".bak-1")
    assert {path.name: path.read_bytes() for path in kept.iterdir() if path.is_file()} == before
    assert not (fitted / "edits.json").exists()
    assert json.loads((fitted / "config.json").read_text())["config"]["classes"] == 4
    assert call("classes", fitted, "rename", 1, "road").exit_code == 0
    assert call(*again, "--replace").exit_code == 0
    assert fitted.with_name(fitted.name + ".bak-2").is_dir()


@pytest.mark.skipif(sys.platform == "win32", reason="a shell closes the streams")
def test_closed_standard_streams_have_the_right_status(tmp_path):
    """Closed messages are dropped; a closed result is an error, as a full disk is."""
    for redirection, arguments, status, said in (
        ("2>&-", "--version", 0, ""),
        ("2>/dev/full", "--version", 0, ""),
        ("<&-", "--version", 0, ""),
        (">&-", "--version", 1, "error: standard output: Bad file descriptor\n"),
        ("<&- >&- 2>&-", "--version", 1, ""),
        (">&-", "predict absent a.png --out b", 1, "error: absent is not a model"),
        ("2>&-", "predict absent a.png --out b", 1, ""),
    ):
        command = f"{sys.executable} -m primaps {arguments} {redirection}"
        run = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=tmp_path)
        assert run.returncode == status, redirection
        assert run.stderr.startswith(said)
        assert "Traceback" not in run.stderr
    assert not list(tmp_path.iterdir())


def test_messages_without_a_reader_do_not_stop_the_work(painted_folder, tmp_path):
    """The reader of standard error is gone when the first message comes."""
    reading, writing = os.pipe()
    os.close(reading)
    code = (
        "import sys; from primaps.cli import app, console, run; app.info.cls.list_commands = list; "
        "app.command('work')(lambda: [console.note('said') for _ in range(9)] and None); "
        f"sys.argv[1:] = ['work']; status = run(); open({str(tmp_path / 'done')!r}, 'w'); "
        "sys.exit(status)"
    )
    run = subprocess.run([sys.executable, "-c", code], stderr=writing, check=False)
    os.close(writing)
    assert run.returncode == 0
    assert (tmp_path / "done").exists()


def test_numba_without_compilation_is_refused():
    code = "import primaps.utils.compiled"
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    expected = (
        "NUMBA_DISABLE_JIT is set, but primaps needs the functions that numba compiles; unset it"
    )
    assert run.stderr.splitlines()[-1] == f"primaps.utils.errors.InputError: {expected}"
