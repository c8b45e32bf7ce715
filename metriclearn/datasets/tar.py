"""Tar shards in WebDataset's layout, read as a manifest: `tar:shop-{000000..000015}.tar`.

Network disks are fast for a few large files and slow for millions of small files. A sample consists
of files with the same name up to the first dot: an image (`0001.jpg`) and its label, `0001.cls`
(text) or `0001.json` ({"label": …} and optionally category, split, role and domain). The images of
a shard are unpacked once into the cache folder, on the disk of this machine.
"""

import glob
import hashlib
import json
import os
import re
import shutil
import tarfile
import tempfile

from metriclearn.datasets.glyphs import cache_folder
from metriclearn.datasets.image_files import SUFFIXES
from metriclearn.datasets.table import ProductTable, split_by_product

PREFIX = "tar:"
COLUMNS = ("label", "category", "split", "role", "domain")
NOTE = "samples.json"  # written last: the contents of a shard
LARGEST = 1 << 20  # maximum bytes of a label


def load(pattern, fractions=(0.7, 0.1, 0.2), cache=None):
    """Reads tar shards.

    Args:
      pattern: `tar:` and paths separated by commas; `{000..015}` is a range of numbers, `*` any
        text.
      fractions: fractions of the products, as in `manifest.load`, if no sample has a split.
      cache: folder to unpack into; None: `cache_folder()/tars`.

    Returns:
      A ProductTable. Ids are the names of shard and file, such as shop-000000.tar/0001.jpg.

    Raises:
      ValueError: a shard is missing or damaged, or a sample has no label.
    """
    cache = cache or os.path.join(cache_folder(), "tars")
    samples, ids, paths = [], [], []
    for shard in _shards(pattern.removeprefix(PREFIX)):
        folder, found = _unpacked(shard, cache)
        for number, sample in enumerate(found):
            samples.append(sample)
            ids.append(f"{os.path.basename(shard)}/{sample['name']}")
            paths.append(os.path.join(folder, _file(number, sample["name"])))
    if not samples:
        raise ValueError(f"{pattern}: the shards contain no image")
    values = {name: [sample.get(name, "") for sample in samples] for name in COLUMNS}
    splits = values["split"] if any(values["split"]) else None
    if splits is None and fractions is not None:
        splits = split_by_product(values["label"], fractions)
    return ProductTable(
        products=values["label"], paths=paths, ids=ids, categories=values["category"],
        splits=splits, roles=values["role"], domains=values["domain"],
    )  # fmt: skip


def _shards(patterns):
    """The paths of the shards, in order."""
    found = []
    for pattern in re.split(r",(?![^{]*\})", patterns):
        for path in _counted(os.path.expanduser(pattern)):
            matching = sorted(glob.glob(path)) if glob.has_magic(path) else [path]
            missing = [name for name in matching or [path] if not os.path.isfile(name)]
            if missing:
                raise ValueError(f"{PREFIX}{missing[0]}: there is no such file")
            found += matching
    return found


def _counted(pattern):
    """Expands `{000..015}` in a path."""
    counts = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if not counts:
        return [pattern]
    first, last = counts.groups()
    texts = [f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)]
    rests = _counted(pattern[counts.end() :])
    return [pattern[: counts.start()] + text + rest for text in texts for rest in rests]


def _file(number, name):
    """The name of an unpacked image; names in a shard are untrusted and not used as paths."""
    return f"{number:06d}{os.path.splitext(name)[1].lower()}"


def _unpacked(shard, cache):
    """(folder with the images of a shard, their samples); unpacks the shard if needed."""
    about = os.stat(shard)
    key = f"{os.path.realpath(shard)}\0{about.st_size}\0{about.st_mtime_ns}"
    folder = os.path.join(cache, hashlib.sha256(key.encode()).hexdigest()[:16])
    if not os.path.exists(os.path.join(folder, NOTE)):
        os.makedirs(cache, exist_ok=True)
        new = tempfile.mkdtemp(".tmp", ".shard-", cache)
        try:
            samples = _unpack(shard, new)
            with open(os.path.join(new, NOTE), "w", encoding="utf-8") as out:
                json.dump(samples, out)
            if not os.path.exists(os.path.join(folder, NOTE)):
                os.rename(new, folder)
        except (tarfile.TarError, EOFError) as error:
            raise ValueError(f"{PREFIX}{shard}: is not a complete tar file: {error}") from None
        except OSError:
            if not os.path.exists(os.path.join(folder, NOTE)):  # unless another process has done it
                raise
        finally:
            shutil.rmtree(new, ignore_errors=True)
    with open(os.path.join(folder, NOTE), encoding="utf-8") as text:
        return folder, json.load(text)


def _unpack(shard, folder):
    """Writes the images of a shard into a folder and returns its samples, in its order."""
    images, labels = [], {}
    with tarfile.open(shard) as tar:
        for member in tar:
            if not member.isfile():
                continue
            key, _, end = os.path.basename(member.name).partition(".")
            key = os.path.join(os.path.dirname(member.name), key)
            if f".{end}".lower().endswith(SUFFIXES):
                target = os.path.join(folder, _file(len(images), member.name))
                with open(target, "wb") as out:
                    shutil.copyfileobj(tar.extractfile(member), out)
                os.utime(target, (member.mtime, member.mtime))  # the same on all machines
                images.append((key, member.name))
            elif end in ("cls", "json") and member.size <= LARGEST:
                content = tar.extractfile(member).read()
                labels.setdefault(key, {}).update(_label(shard, member.name, end, content))
    for key, name in images:
        if not labels.get(key, {}).get("label"):
            raise ValueError(
                f"{PREFIX}{shard}: {name} has no label: give {key}.cls, or label in {key}.json"
            )
    return [{"name": name, **labels[key]} for key, name in images]


def _label(shard, name, end, content):
    """{column: text} in a label file."""
    try:
        if end == "cls":
            return {"label": content.decode().strip()}
        value = json.loads(content)
        known = {c: value[c] for c in COLUMNS if value.get(c) not in (None, "")}
        if not all(isinstance(v, str | int) for v in known.values()):
            raise ValueError("texts or whole numbers are expected")
        return {column: str(v) for column, v in known.items()}
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{PREFIX}{shard}: {name} cannot be read: {error}") from None
