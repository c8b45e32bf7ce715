"""Pictures of a folder or a manifest as a dataset, where no model module brings one."""

import csv
import os

import numpy as np

# What makes a picture upright, by the orientation that EXIF tells; 1 is upright.
_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp")


def of_folder(root) -> dict:
    """Columns {id, path, product, category: str [N]} of all pictures below a folder, in order.

    id: the path within the folder. product: the picture's own folder within it, its id where it
    lies at the top. root may be one picture. ValueError where there is none.
    """
    if os.path.isfile(root):
        name = os.path.basename(root)
        return _columns([(name, str(root), name, "")])
    if not os.path.isdir(root):
        raise ValueError(f"--folder={root}: there is no such folder or picture")
    rows = []
    for at, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        within = os.path.relpath(at, root).replace(os.sep, "/")
        for name in sorted(names):
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                inside = name if within == "." else f"{within}/{name}"
                if any("\ud800" <= character <= "\udfff" for character in inside):
                    raise ValueError(f"--folder={root}: {inside!r} is no UTF-8 name; rename it")
                product = inside if within == "." else within
                rows.append((inside, os.path.join(root, inside), product, ""))
    if not rows:
        raise ValueError(f"--folder={root}: holds no pictures ({', '.join(SUFFIXES)})")
    return _columns(rows)


def of_manifest(path, where=()) -> dict:
    """The same of a CSV with columns path and label, and category where there is one.

    Paths are relative to the CSV's folder and are the ids. where: conditions 'column=value' that a
    row must meet, such as role=query. Raises ValueError with the file, and the line or the column.
    """
    conditions = [condition.partition("=")[::2] for condition in where]
    rows, lines = [], {}
    try:
        with open(path, encoding="utf-8-sig", newline="") as text:
            table = csv.DictReader(text)
            header = table.fieldnames or []
            for name in ["path", "label", *(name for name, _ in conditions)]:
                if name not in header:
                    raise ValueError(f"{path}: has no column {name!r}; it has {', '.join(header)}")
            for row in table:
                line, name = table.line_num, row["path"]
                if not name or not row["label"]:
                    raise ValueError(f"{path}, line {line}: a path and a label are needed")
                if not all(row[column] == value for column, value in conditions):
                    continue
                if name in lines:
                    raise ValueError(f"{path}, line {line}: {name!r} stands in line {lines[name]}")
                lines[name] = line
                at = os.path.join(os.path.dirname(path), name)
                rows.append((name, at, row["label"], row.get("category") or ""))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read as CSV: {error}") from None
    if not rows:
        raise ValueError(f"{path}: no row is of {', '.join(where) or 'a picture'}")
    return _columns(rows)


def _columns(rows):
    columns = zip(*rows, strict=True)
    return {
        name: np.array(values, dtype=str)
        for name, values in zip(("id", "path", "product", "category"), columns, strict=True)
    }


def dataset(columns, size, channels, batch_size, on_bad_image="error"):
    """A finite dataset of batches: image uint8 [B, *size, channels] and the columns, string [B].

    Pictures (`picture`) are resized bilinearly. on_bad_image: one that cannot be read is left out
    ('skip'), or is black ('error'), `unreadable`, string [B], telling why. Returns (dataset, list
    that names each picture left out once it is met).
    """
    import tensorflow as tf

    left_out = []

    def decode(path):
        try:
            return _decoded(os.fsdecode(path), size, channels), b""
        except Exception as error:  # PIL raises many kinds on damaged files
            reason = " ".join(str(error).split()) or type(error).__name__
            if on_bad_image == "skip":
                left_out.append((os.fsdecode(path), reason))
            return np.zeros((1, 1, channels), np.uint8), reason.encode()

    def load(row):
        image, reason = tf.numpy_function(decode, [row["path"]], [tf.uint8, tf.string])
        image = tf.ensure_shape(image, [None, None, channels])
        image = tf.cast(tf.cast(tf.image.resize(image, size), tf.float32) + 0.5, tf.uint8)
        return {"image": image, "unreadable": tf.ensure_shape(reason, []), **row}

    rows = tf.data.Dataset.from_tensor_slices(columns)
    pictures = rows.map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    if on_bad_image == "skip":
        pictures = pictures.filter(lambda row: tf.equal(row["unreadable"], ""))
    return pictures.batch(batch_size).prefetch(2), left_out


def _decoded(path, size, channels):
    pixels = np.asarray(picture(path, "RGB" if channels == 3 else "L", size))
    return pixels.reshape(*pixels.shape[:2], channels)


def picture(path, mode, least):
    """The PIL picture of a file, of mode 'RGB' or 'L', as models that train on files see it.

    Transparency is laid over white, of 16 bits the upper 8 count, and a large picture is reduced to
    a half, a quarter or an eighth, not below `least`, (height, width). Unlike in training, where
    boxes are those of the file as stored, the orientation that a camera notes (EXIF) is followed.
    """
    from PIL import ExifTags, Image

    with Image.open(path) as image:
        image.draft(mode, least[::-1])
        # Not ImageOps.exif_transpose: it writes the other notes anew and fails on damaged ones.
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
        image.load()
    if turn:
        image = image.transpose(Image.Transpose[turn])
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    # What the decoder has not reduced already (JPEG), so that resizing skips no pixels.
    room = min(image.height // least[0], image.width // least[1])
    ratio = next(r for r in (8, 4, 2, 1) if r <= max(room, 1))
    return image.convert(mode).reduce(ratio)
