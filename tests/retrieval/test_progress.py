"""Reports of progress on stderr."""

import io

import pytest

from retrieval import progress


class Clock:
    """Each look at it is `step` seconds after the last."""

    def __init__(self, step):
        self.now, self.step = 0.0, step

    def __call__(self):
        self.now += self.step
        return self.now


def track(monkeypatch, step, count, **options):
    error = io.StringIO()
    monkeypatch.setattr("sys.stderr", error)
    monkeypatch.setattr(progress.time, "monotonic", Clock(step))
    assert list(progress.track(range(count), count, "rows", **options)) == list(range(count))
    return error.getvalue().splitlines()


def test_a_quick_pass_is_silent(monkeypatch):
    assert track(monkeypatch, 0.01, 5) == []


def test_a_long_pass_reports_its_rate_and_the_remaining_time(monkeypatch):
    lines = track(monkeypatch, 6.0, 4, size=lambda item: 10)
    assert lines == [
        "rows: 10, 2/s, ETA 18 s",  # soon: it says how long this takes
        "rows: 30, 2/s, ETA 6 s",
        "rows: 40 in 30.0 s",
    ]


def test_an_unknown_length_has_no_remaining_time(monkeypatch):
    error = io.StringIO()
    monkeypatch.setattr("sys.stderr", error)
    monkeypatch.setattr(progress.time, "monotonic", Clock(11.0))
    list(progress.track(iter("ab"), None, "items"))
    assert error.getvalue().splitlines() == ["items: 1, 0/s", "items: 2, 0/s", "items: 2 in 33.0 s"]


def test_a_terminal_gets_a_bar_that_goes_away(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    error = Terminal()
    monkeypatch.setattr("sys.stderr", error)
    monkeypatch.setenv("TERM", "xterm")
    assert list(progress.track(range(3), 3, "tiles")) == [0, 1, 2]
    assert "tiles" in error.getvalue()


def test_an_error_in_the_pass_ends_the_bar():
    def items():
        yield 1
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        list(progress.track(items(), 2, "items"))


def test_a_notebook_gets_one_line_that_is_written_anew(monkeypatch):
    lines = []

    class Line:
        def __init__(self):
            lines.append([])

        def write(self, text):
            lines[-1].append(text)

    monkeypatch.setattr(progress.notebook, "running", lambda: True)
    monkeypatch.setattr(progress.notebook, "Line", Line)
    assert track(monkeypatch, 6.0, 3) == ["rows: 3 in 24.0 s"]
    assert lines == [
        ["rows: 1, 0/s, ETA 12 s", "rows: 2, 0/s, ETA 6 s", "rows: 3, 0/s, ETA 0 s", ""]
    ]
