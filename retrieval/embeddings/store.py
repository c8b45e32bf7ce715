"""The store: embeddings on disk in shards, with a table of what they are and where they come from.

    DIR/manifest.json           what made them, how many, one entry a shard with its checksums
    DIR/00000.npy               embeddings [n, D], float32 or float16, memory-mapped when read
    DIR/00000.parquet           id, product, category and path of every row

A shard counts once the manifest names it, which is written last: a store whose writer was killed
goes on where its last whole shard ends.
"""

import dataclasses
import os

import numpy as np
import pyarrow

from trainer import files

COLUMNS = ("id", "product", "category", "path")


@dataclasses.dataclass(frozen=True)
class Embedded:
    """Embeddings float32 [N, D] and, row by row, what they are embeddings of.

    Attributes:
      embeddings: float [N, D].
      ids: str [N], unique.
      products: str [N].
      categories: str [N], '' if there is none.
      images: uint8 [N, S, S, C], the images reduced to at most 32 x 32; None if unknown.
      paths: str [N], the real paths of the image files, '' for an image that is not a file; None if
        no image is a file.
      hashes: str [N], SHA-256 of each image's bytes in hexadecimal, '' if unknown; None if all are.
    """

    embeddings: np.ndarray
    ids: np.ndarray
    products: np.ndarray
    categories: np.ndarray
    images: np.ndarray | None = dataclasses.field(default=None, repr=False)
    paths: np.ndarray | None = None
    hashes: np.ndarray | None = None

    def __len__(self):
        return len(self.embeddings)


def begin(folder, source, dtype="float32") -> dict:
    """The manifest to go on with: a new one, or that of an interrupted run from the same source.

    source: what the embeddings depend on (checkpoint and configuration hashes, dataset,
    preprocessing), as JSON values. Raises ValueError where the folder holds other embeddings.
    """
    path = os.path.join(folder, "manifest.json")
    if not os.path.exists(path):
        return {"source": source, "dtype": dtype, "complete": False, "count": 0, "shards": []}
    manifest = _known(folder)
    if manifest["source"] != source or manifest["dtype"] != dtype:
        changed = [k for k in source if manifest["source"].get(k) != source[k]] or ["dtype"]
        what = "other pictures" if changed[0] == "pictures_sha256" else f"another {changed[0]}"
        raise ValueError(f"{folder} holds embeddings of {what}: name another folder, or delete it")
    return manifest


def append(folder, manifest, items: Embedded, batches):
    """Publishes one more shard. batches: how many batches of its dataset it was made of."""
    with np.errstate(over="ignore"):
        values = np.asarray(items.embeddings, manifest["dtype"])
    bad = np.flatnonzero(~np.isfinite(values).all(1))
    if len(bad):
        given = np.isfinite(items.embeddings[bad[0]]).all()
        what = "is too large for float16; take --dtype=float32" if given else "is not finite"
        raise ValueError(f"the embedding of {str(items.ids[bad[0]])!r} {what}")
    if manifest["shards"] and values.shape[1] != manifest["dimensions"]:
        raise ValueError(f"{values.shape[1]} dimensions after {manifest['dimensions']}")
    name = f"{len(manifest['shards']):05d}"
    array, table = (os.path.join(folder, f"{name}.{kind}") for kind in ("npy", "parquet"))
    with files.published(array) as out:
        np.save(out, values)
    paths = np.full(len(items), "") if items.paths is None else items.paths
    columns = zip(COLUMNS, (items.ids, items.products, items.categories, paths), strict=True)
    files.write_table(table, {name: values.tolist() for name, values in columns})
    manifest["dimensions"] = values.shape[1]
    manifest["count"] += len(values)
    manifest["shards"].append(
        {
            "name": name,
            "count": len(values),
            "batches": batches,
            "sha256": {"npy": files.sha256(array), "parquet": files.sha256(table)},
        }
    )
    _publish(folder, manifest)


def finish(folder, manifest):
    manifest["complete"] = True
    _publish(folder, manifest)


def _publish(folder, manifest):
    files.write_json(os.path.join(folder, "manifest.json"), manifest)


def manifest_of(folder) -> dict:
    """The manifest of a complete store; ValueError otherwise."""
    manifest = _known(folder)
    if not manifest["complete"]:
        raise ValueError(f"{folder}: is incomplete; run the retrieval.embed that made it again")
    return manifest


def _known(folder):
    path = os.path.join(folder, "manifest.json")
    if not os.path.exists(path):
        raise ValueError(f"{folder}: holds no store of embeddings; make one with retrieval.embed")
    keys = {"source", "dtype", "complete", "count", "shards"}
    return files.known_keys(path, keys, "a store of embeddings")


def shards(folder, verify=True):
    """Yields (embeddings [n, D], memory-mapped, and pyarrow.Table of COLUMNS) shard by shard.

    verify: compare checksums first. Raises ValueError for a missing, truncated or changed file.
    """
    manifest = manifest_of(folder)
    for shard in manifest["shards"]:
        paths = {kind: os.path.join(folder, f"{shard['name']}.{kind}") for kind in shard["sha256"]}
        for kind, path in paths.items():
            if not os.path.exists(path):
                raise ValueError(f"{path}: is missing from its store")
            if verify and files.sha256(path) != shard["sha256"][kind]:
                raise ValueError(f"{path}: is damaged (checksum differs); embed again")
        table = files.read_table(paths["parquet"], COLUMNS)
        array = np.load(paths["npy"], mmap_mode="r", allow_pickle=False)
        if array.shape[1:] != (manifest["dimensions"],):
            raise ValueError(f"{paths['npy']}: is {list(array.shape)}, not as its manifest says")
        if len(array) != len(table):
            raise ValueError(
                f"{paths['parquet']}: names {len(table)} items for {len(array)} embeddings"
            )
        yield array, table


def read(folder, verify=True) -> Embedded:
    """The whole store; a single shard stays memory-mapped. Ids must be unique."""
    parts = list(shards(folder, verify))
    if not parts:
        raise ValueError(f"{folder}: holds no embeddings")
    arrays, tables = zip(*parts, strict=True)
    embeddings = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    table = pyarrow.concat_tables(tables)
    ids, products, categories, paths = (np.array(table[name].to_pylist(), str) for name in COLUMNS)
    return Embedded(embeddings, ids, products, categories, paths=paths)


def write_table(path, columns):
    """Writes {name: str [N]} as a Parquet table."""
    import pyarrow
    from pyarrow import parquet

    texts = {name: pyarrow.array(v, pyarrow.string()) for name, v in columns.items()}
    table = pyarrow.table(texts)
    with files.published(path) as out:
        parquet.write_table(table, out)


def read_table(path, names):
    """Reads columns of a Parquet file as a pyarrow.Table; ValueError where it is damaged."""
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.read_table(path, columns=list(names)).select(list(names))
    except (OSError, KeyError, pyarrow.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path}: not a table that can be read: {reason}") from None
