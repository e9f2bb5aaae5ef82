"""Every file that is read, changed in every way: read, or refused in one sentence, in bounds."""

import resource
import time
import warnings

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from primaps.utils.errors import InputError
from tests import fuzz
from tests.fuzz import Change, Target
from tests.fuzz_targets import NAMES, target

numbers = st.integers(0, (1 << 16) - 1)
changes = st.builds(Change, numbers, numbers, st.floats(0, 1, exclude_max=True), numbers)
SLOW = {"backbone": 8, "checkpoints": 16, "model": 25, "weights": 25}


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", NAMES)
def test_changed_files_are_read_or_refused(name, tmp_path):
    made = target(name, tmp_path)

    @settings(
        max_examples=SLOW.get(name, 40), derandomize=True, deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(change=changes)
    def check(change):
        fuzz.run(made, change)

    check()


def breaks(read, name="a.txt"):
    return Target({name: b"content"}, read)


def crashes(folder):
    return {}["key"]


def hangs(folder):
    time.sleep(5)


def spins(folder):
    while True:
        pass


class LinesError(InputError):
    def __str__(self):
        return "two\nlines"


def says_too_much(folder):
    raise LinesError


def writes(folder):
    (folder / "a.txt").write_text("other")


def removes(folder):
    (folder / "a.txt").unlink()


def warns(folder):
    warnings.warn("as libraries do", RuntimeWarning, stacklevel=1)


def hoards(folder):
    """More than the process ever had: only a new peak is seen."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    return b"x" * (peak + (200 << 20))


@pytest.mark.parametrize(
    ("read", "words"),
    [
        (crashes, "KeyError"),
        (hangs, "longer than 0.2 s"),
        (spins, "longer than 0.2 s"),
        (says_too_much, "an error of 2 lines"),
        (writes, "files were changed"),
        (removes, "files were changed"),
        (warns, "a warning is shown"),
        (hoards, " MB"),
    ],
)
def test_what_breaks_a_rule_is_found(read, words, monkeypatch):
    monkeypatch.setattr(fuzz, "SECONDS", 0.2 if read in (hangs, spins) else 60)
    monkeypatch.setattr(fuzz, "MEGABYTES", 100 if read is hoards else 10_000)
    with pytest.raises(AssertionError, match=words):
        fuzz.run(breaks(read), Change(0, 1, 0.5, 7))


def test_a_find_is_kept_and_ends_the_run(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("tests.fuzz_targets.target", lambda name, folder: breaks(crashes))
    arguments = ["--seconds", "5", "--only", "audit", "--keep", str(tmp_path / "kept")]
    assert fuzz.main(arguments) == 1
    assert "KeyError" in (tmp_path / "kept" / "found.txt").read_text()
    monkeypatch.setattr("tests.fuzz_targets.target", lambda name, folder: breaks(lambda _: None))
    assert fuzz.main(["--seconds", "0.2", *arguments[2:]]) == 0
    assert "nothing found" in capsys.readouterr().out
