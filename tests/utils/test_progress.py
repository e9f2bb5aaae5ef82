import io

from rich.console import Console

from primaps.utils.progress import ProgressDisplay


def lines(total: int, unit: int) -> list[str]:
    stream = io.StringIO()
    with ProgressDisplay(Console(file=stream, width=80)) as progress:
        for done in [*range(unit, total, unit), total]:
            progress("features", done, total, {"loss": 0.5})
    return stream.getvalue().splitlines()


def test_a_log_has_at_most_ten_lines_per_stage():
    assert len(lines(total=1000, unit=1)) == 10
    assert 9 <= len(lines(total=367, unit=8)) <= 10
    assert lines(total=3, unit=2)[-1] == "features 3/3, loss 0.5"


def test_the_remaining_time_is_shown_until_the_end():
    first, last = lines(total=2, unit=1)
    assert first == "features 1/2, 0 s left, loss 0.5"
    assert "left" not in last


def test_a_terminal_shows_a_bar():
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=80)
    with ProgressDisplay(console) as progress:
        progress("features", 1, 2, {})
        progress("EM", 1, 1, {"loss": 0.25})
    assert "features" in stream.getvalue()
    assert "loss 0.25" in stream.getvalue()
