"""Pages: how text from outside is written, and which sections are shown."""

import html

from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

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
