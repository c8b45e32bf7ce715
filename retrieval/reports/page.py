"""HTML pages that need nothing else: offline, on a phone, in light and dark.

All text from outside (ids, products, categories) goes through `text` or `name`, which escape it.
"""

import base64
import html
import io
import os
import re
import unicodedata

import numpy as np

from retrieval import progress
from retrieval.embeddings import images as image_files
from trainer import files

THUMBNAIL = 128  # pixels
LONGEST = 60  # characters of a name that are shown


def text(value) -> str:
    """Text as HTML: escaped; characters that would not show, or turn others round, made visible."""
    return html.escape("".join(map(_visible, str(value))), quote=True)


def _visible(character):
    if ord(character) < 32:
        return chr(0x2400 + ord(character))
    # Controls, line separators, and marks of direction, which reach beyond the text they are in.
    hidden = unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
    turns = "\u202a" <= character <= "\u202e" or "\u2066" <= character <= "\u2069"
    return "\ufffd" if hidden or turns else character


def name(value) -> str:
    """The name of something as HTML: the middle of a long one is left to the tooltip."""
    value = str(value)
    if len(value) <= LONGEST:
        return text(value)
    shown = f"{value[: LONGEST - 20]}…{value[-19:]}"
    return f'<span title="{text(value)}">{text(shown)}</span>'


def write(path, title, head, sections):
    """Publishes a page. head: HTML. sections: [(title, HTML)]; those without any are left out."""
    sections = [(title, body) for title, body in sections if body]
    places = [re.sub(r"\W+", "-", title.lower()) for title, _ in sections]
    links = "".join(
        f'<a href="#{place}">{text(title)}</a>'
        for place, (title, _) in zip(places, sections, strict=True)
        if len(sections) > 1
    )
    body = "\n".join(
        f"<section id={place}><h2>{text(title)}</h2>{body}</section>"
        for place, (title, body) in zip(places, sections, strict=True)
    )
    with files.published(path, "w") as out:
        out.write(
            f"<!doctype html>\n<html lang=en><meta charset=utf-8>"
            '<meta name=viewport content="width=device-width,initial-scale=1">'
            f"<title>{text(title)}</title>\n<style>{_STYLE}</style>\n"
            f"<header><h1>{text(title)}</h1>{head}</header>\n<nav>{links}</nav>\n{body}\n</html>\n"
        )


def table(header, rows, kind="") -> str:
    """A table that scrolls by itself where it is too wide. header, rows: cells, HTML already; the
    first cell of a row names it."""
    head = "".join(f"<th scope=col>{cell}</th>" for cell in header)
    body = "".join(
        f"<tr><th scope=row>{first}</th>{''.join(f'<td>{cell}</td>' for cell in rest)}</tr>"
        for first, *rest in rows
    )
    return (
        f"<div class=scroll tabindex=0><table{f' class={kind}' if kind else ''}>"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def picture(images, identity, product, kind, note) -> str:
    """One picture with its product and a note, HTML; a question mark where `images` lacks it, and
    no place for a picture where there are none at all.

    kind: 'query', 'right', 'wrong', or 'missed' for what should have been found.
    """
    image = images.get(str(identity))
    shown = "<em>?</em>" if images else ""
    if image is not None:
        shown = f'<img alt="{text(product)}" src="{_data_url(image)}">'
    mark = {"right": "✓ ", "wrong": "✗ "}.get(kind, "")  # for those who do not tell red from green
    return (
        f'<figure class={kind} title="{text(identity)}">{shown}'
        f"<figcaption>{name(product)}<br><small>{mark}{note}</small></figcaption></figure>"
    )


def row(pictures) -> str:
    return f"<div class=row>{''.join(pictures)}</div>"


def _data_url(image):
    from PIL import Image

    image = np.asarray(image)
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    kind = "PNG" if max(picture.size) <= 48 else "JPEG"
    out = io.BytesIO()
    picture.save(out, kind, quality=80)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(out.getvalue()).decode()}"


def pictures_at(paths) -> dict:
    """Pictures {id: uint8 image} of those of {id: path} that are image files."""
    there = {name: path for name, path in paths.items() if os.path.isfile(path)}
    found = {}
    for key, path in progress.track(there.items(), len(there), "reading pictures"):
        try:
            image = image_files.picture(path, "RGB", (2 * THUMBNAIL,) * 2)
            image.thumbnail((THUMBNAIL, THUMBNAIL))
            found[key] = np.asarray(image)
        except Exception:  # PIL raises many kinds on damaged files
            continue
    return found


_STYLE = """
:root{color-scheme:light dark;--bg:#fbfbfa;--fg:#22272b;--dim:#5d6770;--line:#d9dee2;--card:#fff;
--right:#23784a;--wrong:#c0392b;--a:#2563a8;--b:#a2740a;--c:#7d8893}
@media(prefers-color-scheme:dark){:root{--bg:#15181b;--fg:#e3e7ea;--dim:#a0abb4;--line:#363e45;
--card:#1e2327;--right:#4cc38a;--wrong:#ef6a5b;--a:#6cb0f5;--b:#e3b341;--c:#8b97a2}}
*{box-sizing:border-box}
body{background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,sans-serif;margin:0 auto;
padding:1rem;max-width:62rem}
h1{margin:.2em 0 0}h2{margin:0 0 .6rem;font-size:1.2rem}
.sub,.dim,small{color:var(--dim)}.sub{overflow-wrap:anywhere;margin:.3em 0 .8em}
p{margin:.4em 0 .8em;max-width:46rem}a{color:var(--a)}
nav{display:flex;flex-wrap:wrap;gap:.2rem 1rem;padding-bottom:1rem;font-size:.9rem}
section{border-top:1px solid var(--line);padding:1.1rem 0}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(8rem,1fr));gap:.6rem;
margin-bottom:1rem}
.card{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:.5rem .8rem;
display:flex;flex-direction:column}
.big{font-size:1.6rem;line-height:1.3;font-variant-numeric:tabular-nums}
.scroll{overflow-x:auto;margin-bottom:.8rem;background:
linear-gradient(90deg,var(--bg) 50%,transparent) 0 0/2.4rem 100%,
linear-gradient(270deg,var(--bg) 50%,transparent) 100% 0/2.4rem 100%,
linear-gradient(90deg,var(--c),transparent) 0 0/.4rem 100%,
linear-gradient(270deg,var(--c),transparent) 100% 0/.4rem 100%;
background-repeat:no-repeat;background-attachment:local,local,scroll,scroll}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.2rem .9rem .2rem 0;text-align:left;vertical-align:top}
thead th{vertical-align:bottom}td{white-space:nowrap}
tbody tr{border-top:1px solid var(--line)}
tbody th,.names td:nth-child(2){font-weight:normal;white-space:normal;overflow-wrap:anywhere;
min-width:7rem;max-width:22rem}
.bar{position:relative;background:var(--line);height:.6rem;min-width:7rem;border-radius:3px;
margin-bottom:.2rem}
.bar i{display:block;height:100%;background:var(--a);border-radius:3px}
.bar b{position:absolute;top:30%;height:40%;background:var(--fg)}
.bars td:nth-child(3){width:55%}
.matrix th[scope=col]{vertical-align:bottom;text-align:center;font-weight:normal;padding:.2rem}
.matrix th span.up{writing-mode:vertical-rl;max-height:11rem;overflow-wrap:anywhere}
.matrix td{padding:0}.matrix i{display:block;font-style:normal;text-align:center;min-width:2.6rem;
min-height:1.9rem;padding:.2rem;background:color-mix(in srgb,var(--a) calc(var(--share)*.45),
transparent)}
.matrix tbody tr{border:0}
svg{display:block;width:100%;height:auto;max-width:46rem}svg text{fill:var(--dim);font-size:12px}
.grid{stroke:var(--line)}polyline{fill:none;stroke-width:2}.whisker{stroke:var(--a);opacity:.7}
.c0{stroke:var(--a)}.c1{stroke:var(--b)}.c2{stroke:var(--c);stroke-dasharray:6 3}
.key{display:inline-block;margin-right:1rem}
.key i{display:inline-block;width:.8em;height:.8em;margin-right:.3em}
.k0{background:var(--a)}.k1{background:var(--b)}.k2{background:var(--c)}
.h0{fill:var(--c);opacity:.75}.h1{fill:var(--a);opacity:.65}
.row{display:grid;grid-template-columns:repeat(7,minmax(0,1fr));gap:.5rem;padding-bottom:.9rem}
figure{margin:0;border:3px solid var(--line);border-radius:6px;padding:2px;background:var(--card);
overflow:hidden;break-inside:avoid}
figure img,figure em{display:block;width:100%;aspect-ratio:1;object-fit:contain;background:#fff}
figure em{color:#767676;font-size:2rem;display:grid;place-items:center}
figure.query{border-color:var(--dim)}figure.right{border-color:var(--right)}
figure.wrong{border-color:var(--wrong)}figure.missed{border:3px dashed var(--right)}
figcaption{font-size:.8rem;line-height:1.3;overflow-wrap:anywhere;padding:.15rem}
figcaption small{font-size:.75rem}
details{max-width:46rem}dt{font-weight:bold}dd{margin:0 0 .4rem}summary{cursor:pointer}
@media(max-width:40rem){.row{grid-template-columns:repeat(4,minmax(0,1fr));gap:.3rem}
.cards{grid-template-columns:repeat(3,1fr);gap:.4rem}.card{padding:.4rem .5rem}
.big{font-size:1.3rem}th,td{padding-right:.6rem}tbody th,.names td:nth-child(2){min-width:7.2rem}
.bar{min-width:4rem}svg text{font-size:20px}figcaption{font-size:.72rem}}
"""
