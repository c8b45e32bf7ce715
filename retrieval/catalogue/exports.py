"""An index as files that other programs read: Parquet, NumPy, Lance."""

import os
import shutil
import tempfile
from collections.abc import Iterator

import numpy as np
import pyarrow

from retrieval import progress
from retrieval.catalogue import opened, reading
from retrieval.catalogue.opened import Catalogue
from trainer import files

BLOCK = 8192  # items at a time
KIND = "export"  # the kind of folder in the marker file


def blocks(catalogue: Catalogue, size: int) -> Iterator[dict]:
    """Yields the items of an index except removed ones, {'id', …: list, 'vector': float32 [n, D]}.

    Raises:
      ValueError: this kind of index cannot return its vectors.
    """
    index, items, count = catalogue.index, catalogue.items, len(catalogue.items)
    starts = range(0, count, size)
    for start in progress.track(starts, len(starts), "items, in blocks"):
        part = items.slice(start, size)
        vectors = np.empty((len(part), catalogue.manifest["dimensions"]), np.float32)
        reading.reconstruct(index, catalogue.manifest["factory"], start, vectors)
        alive = part["alive"].to_numpy()
        texts = {name: part[name].filter(part["alive"]).to_pylist() for name in opened.NAMED}
        yield texts | {"vector": vectors[alive]}


def export(folder, kind: str, output: str) -> int:
    """Writes the items of an index and their decoded vectors.

    Args:
      folder: the index.
      kind: 'parquet', one file of id, product, category, path and vector; 'npy', a folder of
        embeddings.npy and ids.txt, products.txt and categories.txt, as `retrieval.eval` takes them;
        or 'lance', a Lance data set of the same columns as Parquet.
      output: the file or folder to write.

    Returns:
      The number of items.

    Raises:
      ValueError: the index cannot return its vectors, or the folder contains something else.
      OSError: the disk is full; an earlier export is unchanged.
    """
    with Catalogue.open(folder) as catalogue:
        schema = pyarrow.schema(
            [
                *((name, pyarrow.string()) for name in opened.NAMED),
                ("vector", pyarrow.list_(pyarrow.float32(), catalogue.manifest["dimensions"])),
            ]
        )
        batches = (_batch(rows, schema) for rows in blocks(catalogue, BLOCK))
        WRITERS[kind](output, schema, batches, catalogue.manifest)
        return catalogue.manifest["count"]


def _batch(rows, schema):
    vectors = pyarrow.array(np.ascontiguousarray(rows["vector"]).ravel())
    columns = [pyarrow.array(rows[name], pyarrow.string()) for name in opened.NAMED]
    columns.append(pyarrow.FixedSizeListArray.from_arrays(vectors, rows["vector"].shape[1]))
    return pyarrow.record_batch(columns, schema=schema)


def _parquet(output, schema, batches, _):
    from pyarrow import parquet

    with files.published(output) as out, parquet.ParquetWriter(out, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def _npy(output, schema, batches, manifest):
    files.claim(output, KIND)
    shape = (manifest["count"], manifest["dimensions"])
    texts = {"id": "ids", "product": "products", "category": "categories"}
    with files.published(os.path.join(output, "embeddings.npy")) as out:
        lines = {name: [] for name in texts}
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(out, header)
        for batch in batches:
            out.write(np.asarray(batch["vector"].flatten(), "<f4").tobytes())
            for name, found in lines.items():
                found += batch[name].to_pylist()
    for name, found in lines.items():
        if any("\n" in text or "\r" in text for text in found):
            raise ValueError(f"--to=npy: {name}s hold line ends, which text files cannot: parquet")
        files.write_text(
            os.path.join(output, f"{texts[name]}.txt"), "".join(f"{text}\n" for text in found)
        )


def _lance(output, schema, batches, _):
    os.environ.setdefault("LANCE_LOG", "error")  # suppresses a warning about intended behavior
    try:
        import lance
    except ImportError:
        raise ValueError("--to=lance: pip install 'prototrain[lance]'") from None
    target = os.path.join(output, "items.lance")
    files.claim(output, KIND)
    files.remove(output, KIND, r"\.items-\w+\.tmp/.*|\.items-\w+\.tmp")
    new = tempfile.mkdtemp(".tmp", ".items-", output)
    try:
        lance.write_dataset(
            pyarrow.RecordBatchReader.from_batches(schema, batches), new, mode="overwrite"
        )
        if os.path.isdir(target):
            files.exchange(new, target)
        else:
            os.rename(new, target)
    finally:
        shutil.rmtree(new, ignore_errors=True)


WRITERS = {"parquet": _parquet, "npy": _npy, "lance": _lance}
