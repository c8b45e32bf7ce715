"""Lines in a notebook; ../test_notebooks.py runs real ones."""

from trainer import notebook


def test_a_test_is_no_notebook():
    assert not notebook.running()


def test_a_line_is_replaced(monkeypatch):
    shown = []

    class Handle:
        def update(self, data, raw):
            assert raw
            shown.append(data["text/plain"])

    monkeypatch.setattr("IPython.display.display", lambda *_, **__: Handle())
    line = notebook.Line()
    line.write("half")
    line.write("all")
    assert shown == ["half", "all"]


def test_a_bar_is_of_one_width():
    bars = [notebook.bar(share, 4) for share in (-1, 0, 0.5, 1, 2)]
    assert bars == ["░░░░", "░░░░", "██░░", "████", "████"]
