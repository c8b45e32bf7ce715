"""Self-contained HTML pages: they work offline, on phones, in light and dark mode.

The templates in `templates/` contain all HTML and CSS. Text from the data (ids, products,
categories) needs no special treatment in them: every expression is escaped, and invisible
characters are made visible.
"""

import base64
import io
import math
import os
import re
import unicodedata
from typing import NamedTuple

import jinja2
import numpy as np
from markupsafe import Markup

from retrieval import progress
from trainer import files

THUMBNAIL = 160  # pixels
LONGEST = 60  # characters shown of a name
END = 26  # characters shown of an id, from its end: the file name


class Cell(NamedTuple):
    """One image with its product and a note below it.

    Attributes:
      images: {id: uint8 [H, W, C]} of the known images; or, for a page whose images are all in one
        list, {id: index in `Images.urls`}.
      identity: id of this image.
      product: its product.
      kind: 'query', 'found', 'right', 'wrong', or 'missed' for an item that should have been found.
      note: text below the product.
    """

    images: dict
    identity: str
    product: str
    kind: str
    note: str


class Images:
    """The images of a page, each stored once even if it is shown several times.

    Attributes:
      urls: data URLs of the images.
    """

    def __init__(self):
        self.urls: list[str] = []

    def add(self, images) -> dict:
        """Adds {id: uint8 [H, W, C]}; returns {id: index in `urls`}."""
        first = len(self.urls)
        self.urls += [str(_data_url(image)) for image in images.values()]
        return dict(zip(images, range(first, len(self.urls)), strict=True))


def write(path, template, **context):
    """Renders a template of this package and replaces the file `path` atomically.

    Args:
      path: the file.
      template: name of the template, such as 'page.html'.
      **context: its variables.
    """
    files.write_text(path, ENVIRONMENT.get_template(template).render(context))


def visible(value) -> str:
    """Text with control characters, and marks that affect the text behind them, made visible."""
    return "".join(map(_visible, str(value)))


def _visible(character):
    if ord(character) < 32:
        return chr(0x2400 + ord(character))
    # Controls, line separators, and direction marks, which affect the text that follows.
    hidden = unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
    turns = "\u202a" <= character <= "\u202e" or "\u2066" <= character <= "\u2069"
    return "\ufffd" if hidden or turns else character


def _shortened(value):
    value = str(value)
    return value if len(value) <= LONGEST else f"{value[: LONGEST - 20]}…{value[-19:]}"


def _data_url(image):
    from PIL import Image

    image = np.asarray(image)
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    kind = "PNG" if max(picture.size) <= 48 else "JPEG"
    out = io.BytesIO()
    picture.save(out, kind, quality=75)
    # Base64 needs no escaping; checking each character would take seconds.
    return Markup(f"data:image/{kind.lower()};base64,{base64.b64encode(out.getvalue()).decode()}")


ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader("retrieval.reports"),
    autoescape=True,
    finalize=lambda value: value if hasattr(value, "__html__") else visible(value),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
ENVIRONMENT.tests["finite"] = math.isfinite
ENVIRONMENT.filters |= {
    "anchor": lambda heading: re.sub(r"\W+", "-", heading.lower()),
    "data_url": _data_url,
    "fmt": format,
    "end": lambda value: value if len(value) <= END else f"…{value[-END:]}",
    "nonempty": lambda sections: [each for each in sections if each[1].strip()],
    "shortened": _shortened,
}


def paths_of(items) -> dict:
    """{id: path of the image file} of an `Embedded`; the id if the path is unknown."""
    paths = (
        items.ids if items.paths is None else np.where(items.paths == "", items.ids, items.paths)
    )
    return dict(zip(items.ids.tolist(), paths.tolist(), strict=True))


def own_files(items, ids) -> dict:
    """{id: path} for the `ids` whose image file is of no other item of an `Embedded`.

    If several items share a file, they are crops, which only the model's data set can read.
    """
    if items.paths is None:
        return {}
    names, count = np.unique(items.paths, return_counts=True)
    alone = set(names[count == 1].tolist()) - {""}
    wanted = set(map(str, ids))
    rows = zip(items.ids.tolist(), items.paths.tolist(), strict=True)
    return {name: path for name, path in rows if name in wanted and path in alone}


def images_at(paths) -> dict:
    """Reads images.

    Args:
      paths: {id: path}.

    Returns:
      {id: uint8 [H, W, 3]}, at most `THUMBNAIL` pixels wide and high, for paths that are image
      files.
    """
    there = {name: path for name, path in paths.items() if os.path.isfile(path)}
    if not there:
        return {}
    found = {}
    for key, path in progress.track(there.items(), len(there), "reading images"):
        image = image_at(path)
        if image is not None:
            found[key] = image
    return found


def image_at(path):
    """Reads an image as in `images_at`; None if the file is damaged or not an image."""
    from PIL import Image

    from metriclearn.datasets import image_files

    try:
        pixels = image_files.read(path, least=(2 * THUMBNAIL,) * 2)[0]
    except (OSError, ValueError):
        return None
    image = Image.fromarray(pixels)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return np.asarray(image)
