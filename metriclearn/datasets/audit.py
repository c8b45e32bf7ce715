"""Duplicate audit: pictures that occur twice, and what train, query and catalogue share.

    python -m metriclearn.datasets.audit DATASET [FOLDER] [--report=audit.html] [--max_bits=6]
    python -m metriclearn.datasets.audit manifest photos/manifest.csv

A test picture that is also a training picture, a query that is its own catalogue picture, or one
picture under two products each make recall@k mean something else. Exact duplicates are files of the
same bytes; near duplicates have nearly the same perceptual hash (64 low frequencies of the cosine
transform against their median) *and* nearly the same 32 x 32 grey pixels, so that flat pictures,
whose hash is noise, do not all match each other.
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
import tempfile

import numpy as np

from metriclearn.datasets import image_files

HASH_SIDE = 8  # frequencies a side: 64 bits
PIXEL_SIDE = 32
MAX_BITS = 6  # of 64 that near duplicates may differ in
MIN_CORRELATION = 0.95  # of their grey pixels
MAX_GROUPS = 200  # shown in the report
MAX_PICTURES = 12  # shown of one group
THUMBNAIL = 128  # pixels, longer side


@dataclasses.dataclass(frozen=True)
class Group:
    """Pictures that are duplicates of each other.

    Attributes:
      rows: row numbers of the table, ascending.
      exact: whether all have the same bytes.
      parts: the sorted parts (train, val, query, ...) that they are in.
      products: the sorted products that they show.
    """

    rows: tuple
    exact: bool
    parts: tuple
    products: tuple

    @property
    def leaks(self):
        """Whether the group joins different parts of the data."""
        return len(self.parts) > 1

    @property
    def conflicts(self):
        """Whether the same picture is said to show different products."""
        return len(self.products) > 1


def parts_of(table):
    """[N] str: 'query' and 'catalogue' by role, else the split."""
    return np.where(np.isin(table.roles, ("query", "catalogue")), table.roles, table.splits)


def _grey_pixels(table):
    """float32 [N, 32, 32]."""
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
                found.append(session.run(image).astype(np.float32).mean(3))
    return np.concatenate(found)


def perceptual_hash(pixels):
    """Signs of the 64 lowest frequencies about their median (pHash).

    Args:
      pixels: float [N, 32, 32], grey.

    Returns:
      int8 [N, 64] of -1 and 1.
    """
    side = pixels.shape[1]
    k, x = np.arange(HASH_SIDE)[:, None], np.arange(side)[None]
    cosine = np.cos(np.pi * (2 * x + 1) * k / (2 * side))  # DCT-II, its low rows
    low = np.einsum("ux,nxy,vy->nuv", cosine, pixels, cosine, optimize=True)
    low = low.reshape(len(pixels), -1)
    # Without the mean: brightness is no likeness.
    median = np.median(low[:, 1:], axis=1, keepdims=True)
    return np.where(low > median, 1, -1).astype(np.int8)


def near_pairs(pixels, max_bits=MAX_BITS, min_correlation=MIN_CORRELATION, block=4096):
    """int [M, 2] pairs i < j whose hashes and pixels nearly agree.

    The bits in which two hashes of -1 and 1 differ are (64 - their product) / 2: one matrix product
    for each block of rows.
    """
    bits = perceptual_hash(pixels).astype(np.float32)
    flat = pixels.reshape(len(pixels), -1)
    centred = flat - flat.mean(1, keepdims=True)
    norm = np.linalg.norm(centred, axis=1)
    unit = centred / np.maximum(norm, 1e-6)[:, None]
    pairs = [np.zeros((0, 2), np.int64)]
    for start in range(0, len(bits), block):
        agreement = bits[start : start + block] @ bits[start:].T
        i, j = np.nonzero(agreement >= bits.shape[1] - 2 * max_bits)
        i, j = i[i < j] + start, j[i < j] + start
        # Pictures of one grey have no shape to correlate: only the same grey is the same picture.
        blank = (norm[i] < 1) | (norm[j] < 1)
        same = np.einsum("nd,nd->n", unit[i], unit[j]) >= min_correlation
        level = np.abs(flat[i].mean(1) - flat[j].mean(1)) < 1
        same = np.where(blank, (norm[i] < 1) & (norm[j] < 1) & level, same)
        pairs.append(np.stack([i[same], j[same]], 1))
    return np.concatenate(pairs)


def _digests(table):
    """SHA-256 of each picture: of the file's bytes, or of the pixels in memory."""
    for row in range(len(table)):
        if table.images is not None:
            yield hashlib.sha256(table.images[row].tobytes()).digest()
        else:
            with open(table.paths[row], "rb") as file:
                yield hashlib.file_digest(file, "sha256").digest()


def find_duplicates(table, max_bits=MAX_BITS, min_correlation=MIN_CORRELATION):
    """Groups of duplicates, those that leak or conflict first, then the larger ones.

    Args:
      table: a ProductTable whose pictures can all be read (`pipeline.usable_images`).
      max_bits: hash bits, of 64, that near duplicates may differ in; -1: exact duplicates only.
      min_correlation: of their grey pixels.

    Returns:
      A list of Group.
    """
    digests = list(_digests(table))
    first, parent = {}, list(range(len(table)))

    def root(row):
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    for row, digest in enumerate(digests):
        parent[row] = first.setdefault(digest, row)
    if max_bits >= 0:
        for i, j in near_pairs(_grey_pixels(table), max_bits, min_correlation).tolist():
            low, high = sorted((root(i), root(j)))
            parent[high] = low
    members = collections.defaultdict(list)
    for row in range(len(table)):
        members[root(row)].append(row)
    parts = parts_of(table)
    groups = [
        Group(
            rows=tuple(rows),
            exact=len({digests[row] for row in rows}) == 1,
            parts=tuple(sorted(set(parts[rows].tolist()))),
            products=tuple(sorted(set(table.products[rows].tolist()))),
        )
        for rows in members.values()
        if len(rows) > 1
    ]
    return sorted(groups, key=lambda g: (not g.leaks, not g.conflicts, -len(g.rows), g.rows))


def shared_products(table):
    """{(part, part): number of products in both}, for every two parts of the data."""
    parts = parts_of(table)
    products = {part: set(table.products[parts == part].tolist()) for part in np.unique(parts)}
    return {
        (str(a), str(b)): len(products[a] & products[b])
        for a, b in itertools.combinations(sorted(products), 2)
    }


def shared_files(table):
    """Lists of rows that are one and the same file, by links or different spellings of its path."""
    rows = collections.defaultdict(list)
    for row, path in enumerate(table.paths.tolist()):
        if path:
            rows[os.path.realpath(path)].append(row)
    return [found for found in rows.values() if len(found) > 1]


def summary(table, groups):
    """Lines that tell what was found."""
    extra = sum(len(group.rows) - 1 for group in groups)
    exact = sum(group.exact for group in groups)
    leaks = collections.Counter(group.parts for group in groups if group.leaks)
    lines = [
        f"{len(table):,} pictures of {len(np.unique(table.products)):,} products",
        f"{len(groups):,} groups of duplicates ({exact:,} exact), {extra:,} pictures too many",
        f"{sum(leaks.values()):,} groups join parts that must not share pictures",
    ]
    lines += [f"  {' + '.join(parts)}: {count:,}" for parts, count in sorted(leaks.items())]
    conflicts = sum(group.conflicts for group in groups)
    lines.append(f"{conflicts:,} groups show one picture under different products")
    lines.append(f"{len(shared_files(table)):,} files are in the table under several ids")
    for (a, b), count in shared_products(table).items():
        lines.append(f"{count:,} products are both in {a} and in {b}")
    return lines


def _thumbnail(table, row):
    """A JPEG of the picture as a data URI."""
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


def report(table, groups, title="Duplicate audit"):
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
            marks.append('<span class="bad">joins ' + say(" + ".join(group.parts)) + "</span>")
        if group.conflicts:
            marks.append(f'<span class="bad">{len(group.products)} products</span>')
        out.append(f"<h2>{number}. {len(group.rows)} pictures, {', '.join(marks)}</h2>")
        out.append('<div class="row">')
        for row in group.rows[:MAX_PICTURES]:
            name = say(str(table.ids[row]))
            out.append(
                f'<figure><img src="{_thumbnail(table, row)}" alt="{name}" loading="lazy">'
                f"<figcaption>{say(str(parts[row]))} · {say(str(table.products[row]))}<br>{name}"
                "</figcaption></figure>"
            )
        out.append("</div>")
        if len(group.rows) > MAX_PICTURES:
            out.append(f"<p>and {len(group.rows) - MAX_PICTURES} more")
    if len(groups) > MAX_GROUPS:
        out.append(f"<p>{len(groups) - MAX_GROUPS:,} further groups are not shown.")
    return "\n".join(out) + "</html>\n"


def _write(path, text):
    folder = os.path.dirname(os.path.abspath(path))
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=".audit-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def main(arguments=None):
    """The command line; returns the exit status.

    Args:
      arguments: without the program's name; those of `sys.argv` by default.
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
    except BrokenPipeError:  # the reader has seen enough
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
    _write(path, report(usable, groups, f"Duplicate audit of {dataset}"))
    print("\n".join(summary(usable, groups)))
    print(f"report: {path}")


if __name__ == "__main__":
    sys.exit(main())
