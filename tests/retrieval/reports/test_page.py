"""Pages: how text from outside is written, and which sections are shown."""

import base64
import html
import io
import re

import jinja2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup
from PIL import Image

from retrieval.embeddings import store
from retrieval.reports import page


def text(value):
    return page.ENVIRONMENT.from_string("{{ value }}").render(value=value)


def name(value):
    return page.ENVIRONMENT.get_template("macros.html").module.name(value).strip()


def test_text_cannot_leave_its_place():
    assert text("<b>&\"'") == "&lt;b&gt;&amp;&#34;&#39;"
    assert text("a\nb\tc\x7f\x85") == "a␊b␉c\ufffd\ufffd"
    # Marks that would turn the text behind them round, and separators that end a line.
    assert text("a\u202eb\u2066c\u2028d") == "a\ufffdb\ufffdc\ufffdd"
    assert text("Äpfel 日本 🍎 \u05d0") == "Äpfel 日本 🍎 \u05d0"


@given(st.text())
def test_any_text_comes_back_in_its_length(value):
    written = text(value)
    assert not set(written) & set("<>\"'") and len(html.unescape(written)) == len(value)
    assert html.unescape(written).isprintable() or not value.isprintable()
    written.encode()  # not even half a surrogate pair is left


def test_long_names_keep_both_ends():
    long = "shop/" + "x" * 300 + "/<7>.jpg"
    shown = name(long)
    assert shown.startswith(f'<span title="{text(long)}">shop/xxx')
    assert shown.endswith("x/&lt;7&gt;.jpg</span>") and len(shown) < len(text(long)) + 120
    assert name("short<") == "short&lt;"


def test_sections_without_a_body_are_left_out(tmp_path):
    sections = [("One", "1"), ("Two", " \n"), ("Six", "6")]
    page.write(
        tmp_path / "p.html",
        "page.html",
        title="A & B",
        head=Markup("<p>head</p>"),
        sections=sections,
    )
    written = (tmp_path / "p.html").read_text()
    assert '<a href="#one">One</a><a href="#six">Six</a></nav>' in written and "Two" not in written
    assert "<title>A &amp; B</title>" in written


def test_an_image_may_be_missing():
    figure = page.ENVIRONMENT.get_template("macros.html").module.figure
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    shown = figure(page.Cell({"<1>": image}, "<1>", "a&b", "right", "<n>"))
    assert "<span class=id>&lt;1&gt;</span>" in shown  # as text, not only as a tooltip
    assert "data-image=3" in figure(page.Cell({"<1>": 3}, "<1>", "a", "right", "n"))
    found = re.search(r'alt="a&amp;b" src="data:image/png;base64,([^"]*)"', shown)
    decoded = Image.open(io.BytesIO(base64.b64decode(found[1])))
    np.testing.assert_array_equal(np.asarray(decoded), image)
    assert 'title="&lt;1&gt;"' in shown and "<small>✓ &lt;n&gt;</small>" in shown
    missing = figure(page.Cell({"2": image}, "1", "p", "wrong", "n"))
    assert "<em>?</em>" in missing and "<small>✗ n</small>" in missing
    assert "<em>" not in figure(page.Cell({}, "1", "p", "query", "n"))


def test_large_images_become_thumbnails():
    shown = page.ENVIRONMENT.filters["data_url"](np.full((600, 300, 1), 9, np.uint8))
    kind, data = re.fullmatch(r"data:image/(\w+);base64,(.*)", shown).groups()
    assert kind == "jpeg" and Image.open(io.BytesIO(base64.b64decode(data))).size == (80, 160)


def test_a_variable_that_is_missing_is_an_error(tmp_path):
    with pytest.raises(jinja2.UndefinedError, match="'head' is undefined"):
        page.write(tmp_path / "p.html", "page.html", title="t", sections=[])
    assert not list(tmp_path.iterdir())


def test_images_are_read_by_path_or_id(tmp_path):
    Image.new("RGB", (9, 5), "red").save(tmp_path / "a.png")
    Image.new("RGB", (900, 500), "red").save(tmp_path / "b.png")
    (tmp_path / "c.png").write_text("damaged")
    ids = np.array(["1", str(tmp_path / "b.png"), "3", "4"])
    paths = np.array([str(tmp_path / "a.png"), "", str(tmp_path / "c.png"), "gone.png"])
    items = store.Embedded(np.ones((4, 2)), ids, ids, ids, paths=paths)
    found = page.images_at(page.paths_of(items))
    assert {name: image.shape for name, image in found.items()} == {
        "1": (5, 9, 3), ids[1]: (89, 160, 3),
    }  # fmt: skip
    assert page.paths_of(store.Embedded(np.ones((4, 2)), ids, ids, ids))["4"] == "4"
    # Two items of one file are crops of it, which only the data set knows.
    twice = store.Embedded(np.ones((3, 2)), ids[:3], ids[:3], ids[:3], paths=paths[[0, 0, 2]])
    assert page.own_files(twice, ids) == {"3": paths[2]}
    assert page.own_files(twice, ["1"]) == {}
