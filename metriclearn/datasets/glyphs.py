"""Glyphs: a data set without download, from the typefaces that ship with matplotlib.

A character is a product, and each face of the DejaVu, STIX and Computer Modern families gives one
image of it. The images are rendered once, in a few seconds, and kept in one file in the user's
cache folder.

Raw pixels have a recall@1 of about 0.66 on unseen characters; a small network is much better after
a minute of training, which makes this a good first example of metric learning.
"""

import collections
import hashlib
import io
import os
import unicodedata
import warnings

import numpy as np

from metriclearn.datasets import files
from metriclearn.datasets.table import ProductTable, split_by_product

SIZE = 32  # pixels, width and height of an image
EM = 22  # pixels, the size of the drawn face: capitals are about 16 pixels high
BASELINE = 0.72  # fraction of the height, the baseline of the letters
MIN_FACES = 5  # minimum number of typefaces that contain a character
CATALOGUE_FACE = "DejaVuSans"  # every product has this face; in val and test it is the catalogue

# Text faces. matplotlib's mathematical fonts (cmsy10, STIXSizOneSym, ...) keep other glyphs
# under the code points of letters, and the *Display faces draw only a handful of characters.
FULL_FACES = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
)
# Computer Modern in TeX's encoding, which agrees with Unicode only on letters and digits.
TEX_FACES = ("cmr10", "cmb10", "cmss10", "cmti10", "cmtt10")
FACES = FULL_FACES + TEX_FACES

# Letters, numbers, punctuation and symbols. Modifier letters and symbols (Lm, Sk) are small marks
# that look alike by design.
KINDS = {
    "Lu": "letter",
    "Ll": "letter",
    "Lt": "letter",
    "Lo": "letter",
    "Nd": "number",
    "Nl": "number",
    "No": "number",
    "Pc": "punctuation",
    "Pd": "punctuation",
    "Ps": "punctuation",
    "Pe": "punctuation",
    "Pi": "punctuation",
    "Pf": "punctuation",
    "Po": "punctuation",
    "Sm": "mathematical symbol",
    "Sc": "currency symbol",
    "So": "symbol",
}
SCRIPT_SIZE = 10  # minimum characters for a script to be a separate category
# First words of names that are styles of Latin letters, not scripts.
STYLES = ("MATHEMATICAL", "DOUBLE-STRUCK", "SCRIPT", "BLACK-LETTER", "TURNED", "ROMAN")

# Two characters look alike if the squared difference of their images is below this fraction of the
# smaller energy. Within one face the strokes are equal, so the bound may be larger there.
ALIKE_SAME_FACE = 0.04
ALIKE_OTHER_FACE = 0.02

FRACTIONS = (0.65, 0.1, 0.25)  # fractions of the characters for train, val and test
FORMAT = 1  # version of the cache file; raise it if constants or code in this file change


def _font_folder():
    from matplotlib import get_data_path

    return os.path.join(get_data_path(), "fonts", "ttf")


def _characters():
    """Returns {face: its code points}, limited to characters in enough faces."""
    from matplotlib.ft2font import FT2Font

    drawn = {}
    for face in FACES:
        path = os.path.join(_font_folder(), f"{face}.ttf")
        if not os.path.exists(path):  # older versions of matplotlib have no cmti10
            continue
        codes = FT2Font(path).get_charmap()
        if face in TEX_FACES:
            codes = [code for code in codes if code < 128 and chr(code).isalnum()]
        drawn[face] = {code for code in codes if unicodedata.category(chr(code)) in KINDS}
    faces = collections.Counter(code for codes in drawn.values() for code in codes)
    keep = {code for code in drawn[CATALOGUE_FACE] if faces[code] >= MIN_FACES}
    return {face: sorted(codes & keep) for face, codes in drawn.items()}


def _draw(face, codes):
    """uint8 [len(codes), SIZE, SIZE]: white on black, on a common baseline, centered."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.truetype(
        os.path.join(_font_folder(), f"{face}.ttf"), EM, layout_engine=ImageFont.Layout.BASIC
    )
    images = np.zeros((len(codes), SIZE, SIZE), dtype=np.uint8)
    for image, code in zip(images, codes, strict=True):
        canvas = Image.new("L", (SIZE, SIZE))
        at = (SIZE / 2, SIZE * BASELINE)
        ImageDraw.Draw(canvas).text(at, chr(code), fill=255, font=font, anchor="ms")
        image[:] = np.asarray(canvas)
    return images


def look_alikes(images, codes, faces, same=ALIKE_SAME_FACE, other=ALIKE_OTHER_FACE, block=2048):
    """Pairs of characters that look alike in some images.

    Images are compared at half size (there the result does not depend on one pixel's
    anti-aliasing). a and b look alike if |a - b|^2 <= share * min(|a|^2, |b|^2), with share `same`
    within a face and `other` between faces. Since this implies | |a| - |b| | <= sqrt(share)
    min(|a|, |b|), images sorted by norm need only be compared with the band of norms above their
    own.

    Args:
      images: uint8 [N, H, W], H and W even.
      codes: int [N], the character of each image.
      faces: int [N], its face.

    Returns:
      A set of (smaller code, larger code).
    """
    count, height, width = images.shape
    small = images.reshape(count, height // 2, 2, width // 2, 2).mean((2, 4), dtype=np.float32)
    small = small.reshape(count, -1)
    norm = np.linalg.norm(small, axis=1)
    order = np.argsort(norm, kind="stable")
    small, norm, codes, faces = small[order], norm[order], codes[order], faces[order]
    energy = np.square(norm)
    reach = np.searchsorted(norm, norm * (1 + np.sqrt(max(same, other))), side="right")
    pairs = set()
    for start in range(0, count, block):
        a = slice(start, min(start + block, count))
        b = slice(start, int(reach[a.stop - 1]))
        # |a - b|^2 <= share |a|^2, with |a| <= |b| after the sort, solved for the product a.b: one
        # pass over the block finds the few candidates.
        product = small[a] @ small[b].T
        near = 2 * product >= energy[b] + ((1 - max(same, other)) * energy[a])[:, None]
        i, j = np.nonzero(near)
        distance = energy[a][i] + energy[b][j] - 2 * product[i, j]
        i, j = i + start, j + start
        share = np.where(faces[i] == faces[j], same, other)
        alike = distance <= share * np.minimum(energy[i], energy[j]) + 1e-4
        alike &= codes[i] != codes[j]
        pairs.update(
            zip(
                np.minimum(codes[i], codes[j])[alike].tolist(),
                np.maximum(codes[i], codes[j])[alike].tolist(),
                strict=True,
            )
        )
    return pairs


def render():
    """Draws all images and drops look-alikes; uses no cache.

    Of characters that look alike, the lowest code point is kept (Latin A, not Greek Alpha). Blank
    images and characters with too few images are dropped.

    Returns:
      (images uint8 [N, SIZE, SIZE], codes int32 [N], faces int32 [N] into FACES), by code, face.
    """
    images, codes, faces = [], [], []
    for index, (face, characters) in enumerate(_characters().items()):
        images.append(_draw(face, characters))
        codes += characters
        faces += [index] * len(characters)
    images = np.concatenate(images)
    codes, faces = np.asarray(codes, np.int32), np.asarray(faces, np.int32)
    inked = images.any(axis=(1, 2))
    images, codes, faces = images[inked], codes[inked], faces[inked]

    alike = collections.defaultdict(set)
    for low, high in look_alikes(images, codes, faces):
        alike[high].add(low)
    kept = set()
    for code in np.unique(codes).tolist():
        if not alike[code] & kept:
            kept.add(code)
    values, counts = np.unique(codes, return_counts=True)
    enough = set(values[counts >= MIN_FACES].tolist())
    enough &= set(codes[faces == FACES.index(CATALOGUE_FACE)].tolist())
    rows = np.isin(codes, list(kept & enough))
    images, codes, faces = images[rows], codes[rows], faces[rows]
    order = np.lexsort((faces, codes))
    return images[order], codes[order], faces[order]


def category(code):
    """A letter's script by its Unicode name ('Latin', 'Greek'), otherwise the kind of character."""
    kind = KINDS.get(unicodedata.category(chr(code)), "symbol")
    if kind != "letter":
        return kind
    word = unicodedata.name(chr(code), "OTHER").split()[0]
    return "Mathematical letter" if word in STYLES else word.title()


def _recipe():
    """Everything that determines the pixels, as text; each value has its cache file."""
    import matplotlib
    import PIL
    from PIL import features

    return (
        f"format {FORMAT}, matplotlib {matplotlib.__version__}, pillow {PIL.__version__}, "
        f"freetype {features.version('freetype2')}, unicode {unicodedata.unidata_version}"
    )


def cache_folder():
    """The user's cache folder for this project: $XDG_CACHE_HOME/prototrain, ~/.cache otherwise."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification says to ignore a relative path.
    if not os.path.isabs(base):
        base = os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, "prototrain")


def _read_cache(path):
    """The arrays of a cache file, or None if it is missing or damaged."""
    try:
        with open(path, "rb") as file:
            checksum, payload = file.read(32), file.read()
    except OSError:
        return None
    if hashlib.sha256(payload).digest() != checksum:
        return None
    with np.load(io.BytesIO(payload), allow_pickle=False) as arrays:
        return arrays["images"], arrays["codes"], arrays["faces"]


def _write_cache(path, arrays):
    images, codes, faces = arrays
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=images, codes=codes, faces=faces)
    payload = buffer.getvalue()
    os.makedirs(os.path.dirname(path), exist_ok=True)
    files.write(path, hashlib.sha256(payload).digest() + payload)


def load(cache=None):
    """The glyphs as a ProductTable with the pixels in memory.

    Products are 'U+0041', ids 'glyphs/U+0041/DejaVuSans', categories a script or kind of symbol
    (scripts with few characters are 'Other letter'). Characters, not images, are split into
    train, val and test. In val and test the DejaVu Sans image is the catalogue and the other
    faces are the queries. The extra columns are `face` and `character`.

    Args:
      cache: folder of the cache file; None: `cache_folder()`. If it cannot be written, a warning is
        printed and the images are rendered each time.

    Returns:
      A ProductTable with images uint8 [N, 32, 32, 1].
    """
    name = f"glyphs-{hashlib.sha256(_recipe().encode()).hexdigest()[:16]}.npz"
    path = os.path.join(cache or cache_folder(), name)
    arrays = _read_cache(path)
    if arrays is None:
        arrays = render()
        try:
            _write_cache(path, arrays)
        except OSError as error:
            warnings.warn(
                f"the glyphs cannot be cached in {path} ({error.strerror}) and are rendered again "
                "each time; set XDG_CACHE_HOME to a writable folder",
                stacklevel=2,
            )
    images, codes, faces = arrays
    products = np.asarray([f"U+{code:04X}" for code in codes.tolist()])
    face_names = np.asarray(FACES)[faces]
    named = {code: category(code) for code in np.unique(codes).tolist()}
    sizes = collections.Counter(named.values())
    kinds = set(KINDS.values())
    categories = [
        named[code] if named[code] in kinds or sizes[named[code]] >= SCRIPT_SIZE else "Other letter"
        for code in codes.tolist()
    ]
    splits = split_by_product(products, FRACTIONS, salt="glyphs")
    shown = face_names == CATALOGUE_FACE
    roles = np.where(splits == "train", "train", np.where(shown, "catalogue", "query"))
    return ProductTable(
        products=products,
        ids=[
            f"glyphs/{p}/{f}" for p, f in zip(products.tolist(), face_names.tolist(), strict=True)
        ],
        categories=categories,
        splits=splits,
        roles=roles,
        images=images[..., None],
        extra={"face": face_names, "character": [chr(code) for code in codes.tolist()]},
    )
