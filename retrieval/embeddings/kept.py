"""Embeddings of an evaluation, kept in the cache folder for the next evaluation of the checkpoint.

Each folder of checkpoints has one file, so that the cache does not grow with the steps evaluated.
"""

import dataclasses
import hashlib
import json
import os
import sys

import numpy as np

from metriclearn.datasets.glyphs import cache_folder
from retrieval.embeddings.embedder import fingerprint
from retrieval.embeddings.store import Embedded
from trainer import files
from trainer.config import optional

FORMAT = "1"
FIELDS = [field.name for field in dataclasses.fields(Embedded)]


class Kept:
    """The file of some datasets' embeddings by the checkpoints of one folder.

    Attributes:
      path: the file.

    Args:
      model: a model module, configured.
      names: which of its datasets.
      checkpoint: prefix of the checkpoint.
      rows: the ProductTable of the whole data set.
    """

    def __init__(self, model, names, checkpoint, rows):
        self._names = names
        place = [os.path.realpath(os.path.dirname(checkpoint)), *names]
        folder = os.path.join(cache_folder(), "evaluated")
        self.path = os.path.join(folder, f"{_sha256(*place)[:16]}.npz")
        config = model.config.to_json()
        self._key = _sha256(
            *(FORMAT, fingerprint(checkpoint), config, _code(model), listing(rows), _parts(rows)),
            *(_sources(model), *names, "fields", *FIELDS),
        )

    def read(self):
        """Returns {name: Embedded}; None if there are none for this key."""
        try:
            with np.load(self.path, allow_pickle=False) as held:
                if str(held["key"]) != self._key:
                    return None
                found = {}
                for name in self._names:
                    values = {f: held[at] for f in FIELDS if (at := f"{name}/{f}") in held.files}
                    found[name] = Embedded(**values)
                return found
        except Exception:  # missing or damaged: zipfile and NumPy raise many kinds
            return None

    def write(self, found):
        """Replaces the file; prints a warning if that fails."""
        arrays = {
            f"{name}/{field}": value
            for name, items in found.items()
            for field in FIELDS
            if (value := getattr(items, field)) is not None
        }
        with optional("a copy of the embeddings for the next evaluation"):
            os.makedirs(os.path.dirname(self.path), exist_ok=True)
            with files.published(self.path) as out:
                np.savez(out, key=np.array(self._key), **arrays)


def _sha256(*texts):
    return hashlib.sha256("\0".join(texts).encode(errors="surrogatepass")).hexdigest()


def _code(model):
    """Hash of the modules that may define the datasets and the network."""
    packages = {model.__name__.split(".")[0], "metriclearn"}
    paths = {
        getattr(module, "__file__", None)
        for name, module in sys.modules.copy().items()
        if name.split(".")[0] in packages
    }
    return _sha256(*(files.sha256(p) for p in sorted(filter(None, paths)) if os.path.isfile(p)))


def _sources(model):
    """The model's description of other files it reads, such as those of its backbone."""
    sources = getattr(model, "sources", None)
    return json.dumps(sources()) if callable(sources) else ""


def _parts(rows):
    """Hash of the columns that decide queries and catalogue, and of pixels in memory."""
    columns = (rows.splits, rows.roles, rows.domains, *rows.extra.values())
    digest = hashlib.sha256(_sha256(*map("\0".join, columns)).encode())
    if rows.images is not None:
        digest.update(np.ascontiguousarray(rows.images))
    return digest.hexdigest()


def listing(rows, boxes=True):
    """Hash of a table's contents: ids, files with sizes and times, products, boxes."""
    stamps = map(_stamp, rows.paths.tolist())
    columns = (rows.ids, rows.paths, rows.products, rows.categories)
    rows_of = zip(*(column.tolist() for column in columns), stamps, strict=True)
    lines = "\n".join("\t".join(row) for row in rows_of)
    digest = hashlib.sha256(lines.encode())
    if boxes and rows.boxes is not None:
        digest.update(rows.boxes.tobytes())
    return digest.hexdigest()


def _stamp(path):
    """Size and time of a file, to detect changes; '' if there is no file."""
    try:
        about = os.stat(path)
    except OSError:
        return ""
    return f"{about.st_size} {about.st_mtime_ns}"
