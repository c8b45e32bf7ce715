"""Duplicate audit: finds images that occur twice, and images in several parts of the data.

    python -m metriclearn.datasets.audit DATASET [FOLDER] [--report=audit.html] [--max_bits=6]
    python -m metriclearn.datasets.audit manifest photos/manifest.csv

Training on test images, queries in the catalogue, and images of two products make recall@k
meaningless. Exact duplicates are files with the same bytes. Near duplicates have nearly the same
perceptual hash (signs of 64 low frequencies of the cosine transform relative to their median) and
nearly the same 32 x 32 gray pixels. (The hash of flat images is noise, so the hash alone is not
enough.)
"""

import base64
import collections
import contextlib
import dataclasses
import hashlib
import html
import io
import itertools
import os
import sys
from collections.abc import Callable, Iterator

import numpy as np

from metriclearn.datasets import files, image_files
from metriclearn.datasets.table import ProductTable

HASH_SIDE = 8  # frequencies per side: 64 bits
PIXEL_SIDE = 32
MAX_BITS = 6  # of 64 bits that may differ between near duplicates
MIN_CORRELATION = 0.95  # correlation of their gray pixels
MAX_GROUPS = 200  # groups shown in the report
MAX_IMAGES = 12  # images shown per group
THUMBNAIL = 128  # pixels, longer side
BLOCK = 1 << 24  # pairs of hashes compared at once
PAIRS = 1 << 13  # pairs of images compared at once


@dataclasses.dataclass(frozen=True)
class Group:
    """Images that are duplicates of each other.

    Attributes:
      rows: row numbers of the table, ascending.
      exact: whether all have the same bytes.
      parts: the sorted parts of the data (train, test query, ...) that contain them.
      products: their sorted products.
      findings: the consequences of sharing an image between these parts, sorted; empty if harmless.
    """

    rows: tuple[int, ...]
    exact: bool
    parts: tuple[str, ...]
    products: tuple[str, ...]
    findings: tuple[str, ...] = ()

    @property
    def leaks(self) -> bool:
        """Whether the group joins parts that must not share images."""
        return bool(self.findings)

    @property
    def conflicts(self) -> bool:
        """Whether an image has different products."""
        return len(self.products) > 1


def _split_and_role(split, role):
    """A row's (split, role); an empty value is derived from the other."""
    if split == "catalogue":  # shop images of every split
        return split, "catalogue"
    return split or ("train" if role == "train" else ""), role


def parts_of(table: ProductTable) -> np.ndarray:
    """[N] str: each row's split and, if it adds to that, its role: 'train', 'test query', ..."""

    def name(split, role):
        split, role = _split_and_role(split, role)
        return " ".join(dict.fromkeys(filter(None, (split, role)))) or "no split"

    rows = zip(table.splits.tolist(), table.roles.tolist(), strict=True)
    return np.array([name(*row) for row in rows], np.str_)


def finding(one: tuple[str, str], other: tuple[str, str]) -> str:
    """The consequence of an image in two places, each a (split, role); '' if harmless."""
    (one_split, one_role), (other_split, other_role) = sorted(
        (_split_and_role(*one), _split_and_role(*other)), key=lambda place: place[0] != "train"
    )
    if one_split == "train" and other_split not in ("train", ""):
        if other_role == "catalogue":
            return "catalogue images are trained on"
        return f"{'validation' if other_split == 'val' else other_split} images are trained on"
    if {one_split, other_split} == {"val", "test"}:
        return "test images are validated on"
    # Without roles, all images of an evaluated split search its catalogue.
    searched = "query" in (one_role, other_role) or {one_split, other_split} & {"val", "test"}
    if searched and (one_role == "catalogue") != (other_role == "catalogue"):
        return "queries are in the catalogue"
    return ""


def _gray_pixels(table):
    """uint8 or float32 [N, 32, 32]."""
    import tensorflow as tf

    from metriclearn.datasets import pipeline

    channels = 1 if table.images is None else table.images.shape[3]
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        batches = pipeline.eval_batches(
            table, batch_size=256, image_size=PIXEL_SIDE, channels=channels, method="area"
        )
        image = tf.compat.v1.data.make_one_shot_iterator(batches).get_next()["image"]
        found = []
        with contextlib.suppress(tf.errors.OutOfRangeError):
            while True:
                batch = session.run(image)
                found.append(batch[..., 0] if channels == 1 else batch.mean(3, dtype=np.float32))
    return np.concatenate(found)


def perceptual_hash(pixels: np.ndarray) -> np.ndarray:
    """Signs of the 64 lowest frequencies relative to their median (pHash).

    Args:
      pixels: [N, 32, 32], gray.

    Returns:
      int8 [N, 64] of -1 and 1.
    """
    side = pixels.shape[1]
    k, x = np.arange(HASH_SIDE)[:, None], np.arange(side)[None]
    cosine = np.cos(np.pi * (2 * x + 1) * k / (2 * side))  # DCT-II, its low rows
    low = np.einsum("ux,nxy,vy->nuv", cosine, pixels, cosine, optimize=True)
    low = low.reshape(len(pixels), -1)
    # The median excludes the mean, which is only the brightness.
    median = np.median(low[:, 1:], axis=1, keepdims=True)
    return np.where(low > median, 1, -1).astype(np.int8)


def near_pairs(
    pixels: np.ndarray,
    max_bits: int = MAX_BITS,
    min_correlation: float = MIN_CORRELATION,
    *,
    block: int | None = None,
    known: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
) -> Iterator[np.ndarray]:
    """Yields the pairs i < j whose hashes and pixels nearly agree, int [m, 2] at a time.

    Two hashes of -1 and 1 differ in (64 - their product) / 2 bits: one matrix product per block of
    rows. Memory does not depend on the number of pairs.

    Args:
      pixels: [N, 32, 32], gray, 0 to 255.
      max_bits: hash bits, of 64, that may differ within a pair.
      min_correlation: minimum correlation of a pair's pixels.
      block: rows of hashes compared at once; default: automatic.
      known: function (i [m], j [m]) -> bool [m]: pairs to skip, whose images are known to be
        duplicates.
    """
    bits = [perceptual_hash(pixels[start : start + 4096]) for start in range(0, len(pixels), 4096)]
    bits = np.concatenate(bits).astype(np.float32)
    block = block or max(1, BLOCK // len(bits))
    for start in range(0, len(bits), block):
        agreement = bits[start : start + block] @ bits[start:].T
        i, j = np.nonzero(agreement >= bits.shape[1] - 2 * max_bits)
        i, j = i[i < j] + start, j[i < j] + start
        for at in range(0, len(i), PAIRS):
            pair = np.stack([i[at : at + PAIRS], j[at : at + PAIRS]], 1)
            if known is not None:
                pair = pair[~known(*pair.T)]
            if len(pair):
                yield pair[_alike(pixels[pair[:, 0]], pixels[pair[:, 1]], min_correlation)]


def _alike(a, b, min_correlation):
    """bool [M]: which images of [M, 32, 32] nearly equal those of another [M, 32, 32]."""
    a, b = (pixels.reshape(len(pixels), -1).astype(np.float32) for pixels in (a, b))
    mean_a, mean_b = a.mean(1), b.mean(1)
    a, b = a - mean_a[:, None], b - mean_b[:, None]
    norm_a, norm_b = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    product = np.einsum("nd,nd->n", a, b)
    same = product >= min_correlation * np.maximum(norm_a, 1e-6) * np.maximum(norm_b, 1e-6)
    # Images of one gray level have no correlation: they are equal if the levels are equal.
    flat = (norm_a < 1) | (norm_b < 1)
    level = np.abs(mean_a - mean_b) < 1
    return np.where(flat, (norm_a < 1) & (norm_b < 1) & level, same)


def _digests(table):
    """SHA-256 of each image: of the file's bytes, or of the pixels in memory."""
    for row in range(len(table)):
        if table.images is not None:
            yield hashlib.sha256(table.images[row].tobytes()).digest()
        else:
            with open(table.paths[row], "rb") as file:
                yield hashlib.file_digest(file, "sha256").digest()


def find_duplicates(
    table: ProductTable, max_bits: int = MAX_BITS, min_correlation: float = MIN_CORRELATION
) -> list[Group]:
    """Groups of duplicates, those that leak or conflict first, then the larger ones.

    Args:
      table: a ProductTable whose images can all be read (`pipeline.usable_images`).
      max_bits: hash bits, of 64, that may differ; -1: exact duplicates only.
      min_correlation: minimum correlation of their gray pixels.
    """
    # Exact duplicates first: only one of each is compared with the others.
    copies = collections.defaultdict(list)
    for row, digest in enumerate(_digests(table)):
        copies[digest].append(row)
    copies = list(copies.values())
    root = np.arange(len(copies))  # one per distinct image: the first of its group

    def known(i, j):
        return root[i] == root[j]

    if max_bits >= 0:
        pixels = _gray_pixels(table.select([rows[0] for rows in copies]))
        for pairs in near_pairs(pixels, max_bits, min_correlation, known=known):
            for i, j in pairs.tolist():
                if root[i] != root[j]:
                    low, high = sorted((root[i], root[j]))
                    root[root == high] = low
    members = collections.defaultdict(list)
    for first, rows in zip(root.tolist(), copies, strict=True):
        members[first].append(rows)
    groups = [_group(table, found) for found in members.values() if sum(map(len, found)) > 1]
    return sorted(groups, key=lambda g: (not g.leaks, not g.conflicts, -len(g.rows), g.rows))


def copies_of(table: ProductTable) -> np.ndarray:
    """int64 [N]: for each row, the first row with the same or nearly the same image; often itself.

    Raises:
      ValueError: an image cannot be read.
    """
    import tensorflow as tf

    from metriclearn.datasets import pipeline

    first = np.arange(len(table))
    try:
        for group in find_duplicates(table):
            first[list(group.rows)] = group.rows[0]
    except (tf.errors.OpError, OSError) as error:
        bad = pipeline.unreadable_images(table)
        if not bad.size:
            raise ValueError(f"cannot compare the images: {error}") from None
        raise ValueError(pipeline.complaint(table.paths[bad[0]]) + pipeline.REMEDY) from None
    return first


def _group(table, copies):
    """The Group of lists of rows, each of exact copies."""
    rows = sorted(itertools.chain(*copies))
    picked = table.select(rows)
    places = set(zip(picked.splits.tolist(), picked.roles.tolist(), strict=True))
    return Group(
        rows=tuple(rows),
        exact=len(copies) == 1,
        parts=tuple(sorted(set(parts_of(picked).tolist()))),
        products=tuple(sorted(set(picked.products.tolist()))),
        findings=tuple(
            sorted({finding(*pair) for pair in itertools.combinations(places, 2)} - {""})
        ),
    )


def shared_products(table: ProductTable) -> dict[tuple[str, str], int]:
    """{(part, part): number of products in both}, for every two parts of the data."""
    products = collections.defaultdict(set)
    for part, product in zip(parts_of(table).tolist(), table.products.tolist(), strict=True):
        products[part].add(product)
    return {
        (a, b): len(products[a] & products[b])
        for a, b in itertools.combinations(sorted(products), 2)
    }


def shared_files(table: ProductTable) -> list[list[int]]:
    """Lists of rows that are the same file, by links or by different spellings of its path."""
    rows = collections.defaultdict(list)
    for row, path in enumerate(table.paths.tolist()):
        if path:
            rows[os.path.realpath(path)].append(row)
    return [found for found in rows.values() if len(found) > 1]


def summary(table: ProductTable, groups: list[Group]) -> list[str]:
    """The findings as lines of text."""
    extra = sum(len(group.rows) - 1 for group in groups)
    exact = sum(group.exact for group in groups)
    leaks = collections.Counter((group.findings, group.parts) for group in groups if group.leaks)
    lines = [
        f"{len(table):,} images of {len(set(table.products.tolist())):,} products",
        f"{len(groups):,} groups of duplicates ({exact:,} exact), {extra:,} superfluous images",
        f"{sum(leaks.values()):,} groups are in parts that must not share images",
    ]
    lines += [
        f"  {' + '.join(parts)}: {count:,} ({'; '.join(findings)})"
        for (findings, parts), count in sorted(leaks.items())
    ]
    conflicts = sum(group.conflicts for group in groups)
    lines.append(f"{conflicts:,} groups have the same image with different products")
    lines.append(f"{len(shared_files(table)):,} files are in the table with several ids")
    for (a, b), count in shared_products(table).items():
        lines.append(f"{count:,} products are in both {a} and {b}")
    return lines


def _thumbnail(table, row):
    """A JPEG of the image as a data URI."""
    from PIL import Image

    if table.images is not None:
        image = Image.fromarray(table.images[row].squeeze())
    else:
        image = Image.fromarray(image_files.read(table.paths[row], least=(THUMBNAIL,) * 2)[0])
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")


STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1100px; padding: 0 1rem;
       color: #1d2329; background: #fff }
h1 { font-size: 1.5rem } h2 { font-size: 1.05rem; margin: 1.6rem 0 .4rem }
ul { padding-left: 1.2rem } .row { display: flex; flex-wrap: wrap; gap: .8rem }
figure { margin: 0; width: 150px } img { max-width: 128px; border: 1px solid #ccd3da }
figcaption { font-size: .75rem; overflow-wrap: anywhere } .bad { color: #a3241f }
@media (prefers-color-scheme: dark) { body { color: #e4e8ec; background: #16191d }
  img { border-color: #3c444d } .bad { color: #ff8f88 } }
"""


def report(table: ProductTable, groups: list[Group], title: str = "Duplicate audit") -> str:
    """One self-contained HTML page; every text from the data is escaped."""
    say = html.escape
    out = [
        '<!doctype html><html lang="en"><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{say(title)}</title><style>{STYLE}</style><h1>{say(title)}</h1><ul>",
        *(f"<li>{say(line)}" for line in summary(table, groups)),
        "</ul>",
    ]
    parts = parts_of(table)
    for number, group in enumerate(groups[:MAX_GROUPS], 1):
        marks = ["exact" if group.exact else "near"]
        if group.leaks:
            joined = f"in {' + '.join(group.parts)}: {'; '.join(group.findings)}"
            marks.append(f'<span class="bad">{say(joined)}</span>')
        if group.conflicts:
            marks.append(f'<span class="bad">{len(group.products)} products</span>')
        out.append(f"<h2>{number}. {len(group.rows)} images, {', '.join(marks)}</h2>")
        out.append('<div class="row">')
        for row in group.rows[:MAX_IMAGES]:
            name = say(table.ids[row])
            out.append(
                f'<figure><img src="{_thumbnail(table, row)}" alt="{name}" loading="lazy">'
                f"<figcaption>{say(str(parts[row]))} · {say(table.products[row])}<br>{name}"
                "</figcaption></figure>"
            )
        out.append("</div>")
        if len(group.rows) > MAX_IMAGES:
            out.append(f"<p>and {len(group.rows) - MAX_IMAGES} more")
    if len(groups) > MAX_GROUPS:
        out.append(f"<p>{len(groups) - MAX_GROUPS:,} further groups are not shown.")
    return "\n".join(out) + "</html>\n"


def main(arguments=None):
    """The command line; returns the exit status.

    Args:
      arguments: without the program's name; default: those of `sys.argv`.
    """
    from absl import flags

    options = flags.FlagValues()
    flags.DEFINE_string("report", "audit.html", "HTML file to write.", flag_values=options)
    bits = "Bits of the 64-bit hash that may differ between near duplicates; -1: exact ones only."
    flags.DEFINE_integer("max_bits", MAX_BITS, bits, lower_bound=-1, flag_values=options)
    for name in ("help", "helpfull"):
        flags.DEFINE_bool(name, False, "Show this help.", flag_values=options)
    try:
        given = options(["audit", *(sys.argv[1:] if arguments is None else arguments)])[1:]
        if options.help or options.helpfull:
            from metriclearn import datasets

            print(f"{__doc__}\nDATASET is one of {', '.join(datasets.READERS)}.\n")
            shown = [options[name] for name in ("report", "max_bits")]
            print(*(f"  --{f.name}: {f.help} (default: {f.default})" for f in shown), sep="\n")
        elif 1 <= len(given) <= 2:
            _audit(*given, report_to=options.report, max_bits=options.max_bits)
        else:
            raise ValueError("give a dataset and its folder, or manifest and a CSV: see --help")
        sys.stdout.flush()
    except BrokenPipeError:  # the reader closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError, flags.Error) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted; no report was written.", file=sys.stderr)
        return 130
    return 0


def _audit(dataset, root=None, *, report_to, max_bits):
    from metriclearn import datasets
    from metriclearn.datasets import pipeline

    table = datasets.load(dataset, root and os.path.expanduser(root))
    usable = pipeline.usable_images(table, "skip")
    groups = find_duplicates(usable, max_bits)
    path = os.path.expanduser(report_to)
    page = report(usable, groups, f"Duplicate audit of {dataset}")
    files.write(path, page.encode(errors="replace"))
    print("\n".join(summary(usable, groups)))
    print(f"report: {path}")


if __name__ == "__main__":
    sys.exit(main())
