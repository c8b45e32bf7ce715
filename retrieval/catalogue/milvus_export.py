"""Fills Milvus with the items of an index; after a kill or a full disk, no item is lost or doubled.

A collection is filled by upserts under ids, counted, and only then named by the alias that searches
use. Run again after a kill, an export finds its collection by the hash of the index and adds what
is missing.
"""

import hashlib
import json
import os
import re
import time

import numpy as np
import pyarrow

from retrieval.catalogue import exports, milvus, versions
from retrieval.catalogue.milvus import BUILDING, FIELDS, METRICS, SECONDS, Address
from retrieval.catalogue.opened import Catalogue

BLOCK = 1000  # items per request
TEXT = 65535  # maximum bytes of a VARCHAR
LINKS, BUILT = 32, 200  # parameters of the graph
POLL = 0.5  # seconds between checks of a build


def export(folder, to: str) -> dict:
    """Fills a collection with an index and makes it the current one.

    Run again after a kill, it adds the missing items. The alias changes only when the counts are
    equal.

    Args:
      folder: the index.
      to: the address, `milvus:URI#NAME`.

    Returns:
      {'collection', 'count', 'version', 'added'}.

    Raises:
      ValueError: the index cannot return its vectors, or texts are too long for Milvus.
      OSError: the server cannot be reached, or its disk is full; the alias is unchanged.
    """
    address = Address.parse(to)
    with Catalogue.open(folder) as catalogue:
        manifest = catalogue.manifest
        longest = _longest(catalogue)
        digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:12]
        connection = milvus.client(address, make=True)
        with milvus.one_line(address):
            name = _collection(connection, address, digest)
            known = connection.has_collection(name)
            if not known:
                _create(connection, name, manifest, longest)
            # Before the items: after a kill, only a collection with a graph can be queried.
            _add_index(connection, name, _kind(address), METRICS[manifest["similarity"]])
            connection.load_collection(name, timeout=BUILDING)
            added = 0
            for rows in exports.blocks(catalogue, BLOCK):
                there = _there(connection, name, rows["id"]) if known else set()
                new = [n for n, each in enumerate(rows["id"]) if each not in there]
                if new:
                    connection.upsert(name, [_entity(rows, n) for n in new], timeout=SECONDS)
                    added += len(new)
            connection.flush(name, timeout=BUILDING)
            if milvus.current_collection(connection, address) != name:
                _settle(connection, name)
            count = milvus.count_of(connection, name)
            if count != manifest["count"]:
                raise ValueError(
                    f"{address}: has {count} of {manifest['count']} items: export again; the "
                    "alias is unchanged"
                )
            about = {"manifest": manifest, "index": os.path.abspath(folder)}
            _note(connection, address, name, about | {"categories": catalogue.categories()})
            _publish(connection, address, name)
    return {"collection": name, "count": count, "version": milvus.version_of(name), "added": added}


def _entity(rows, n):
    return {name: rows[name][n] for name in (*FIELDS, "vector")}


def _longest(catalogue):
    """{field: bytes of its longest text}; ValueError if a text is too long for Milvus."""
    longest = {}
    for name in FIELDS:
        sizes = pyarrow.compute.binary_length(catalogue.items[name])
        longest[name] = pyarrow.compute.max(sizes).as_py() or 1
        if longest[name] > TEXT:
            raise ValueError(f"{name}s of {longest[name]} bytes: Milvus takes {TEXT} at most")
    return longest


def _create(connection, name, manifest, longest):
    """Makes an empty collection. VARCHARs are as long as the longest text, rounded up."""
    import pymilvus

    schema = pymilvus.MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
    for field in FIELDS:
        length = min(TEXT, max(64, 2 ** int(np.ceil(np.log2(longest[field])))))
        schema.add_field(
            field, pymilvus.DataType.VARCHAR, is_primary=field == "id", max_length=length
        )
    schema.add_field("vector", pymilvus.DataType.FLOAT_VECTOR, dim=manifest["dimensions"])
    connection.create_collection(name, schema=schema, timeout=SECONDS)


def _kind(address):
    """A graph for a server; Milvus Lite, which is for small catalogues, compares all vectors."""
    if address.folder:
        return {"index_type": "FLAT"}
    return {"index_type": "HNSW", "params": {"M": LINKS, "efConstruction": BUILT}}


def _add_index(connection, name, kind, metric):
    """Gives a collection its index, unless it has one."""
    import pymilvus

    if connection.list_indexes(name):
        return
    wanted = connection.prepare_index_params()
    wanted.add_index("vector", metric_type=metric, **kind)
    try:
        connection.create_index(name, wanted, timeout=BUILDING)
    except pymilvus.exceptions.MilvusException:
        if not connection.list_indexes(name):  # the client may have sent the request twice
            raise


def _settle(connection, name):
    """Waits until the graph of all items is built, and searches use it.

    Until then, a server searches new items by an interim index with lower recall.
    """
    (graph,) = connection.list_indexes(name)
    while connection.describe_index(name, graph).get("pending_index_rows", 0):
        time.sleep(POLL)
    connection.release_collection(name, timeout=BUILDING)
    connection.load_collection(name, timeout=BUILDING)


def _there(connection, name, ids):
    """Returns which of some ids a collection contains."""
    named = json.dumps(ids, ensure_ascii=False)
    found = connection.query(
        name, filter=f"id in {named}", output_fields=["id"], consistency_level="Strong",
        timeout=SECONDS,
    )  # fmt: skip
    return {each["id"] for each in found}


def _collections(connection, address):
    """{collection of this alias: its version}, oldest first."""
    pattern = rf"{re.escape(address.name)}_v\d{{6,}}_[0-9a-f]{{12}}"
    names = [n for n in connection.list_collections() if re.fullmatch(pattern, n)]
    return {name: milvus.version_of(name) for name in sorted(names, key=milvus.version_of)}


def _collection(connection, address, digest):
    """The name of the collection for an index: that of a killed export, or a new one."""
    known = _collections(connection, address)
    same = [name for name in known if name.endswith(digest)]
    return (
        same[-1] if same else f"{address.name}_v{max(known.values(), default=0) + 1:06d}_{digest}"
    )


def _note(connection, address, name, about):
    """Stores the manifest of the index beside its collection."""
    import pymilvus

    notes = f"{address.name}_about"
    if not connection.has_collection(notes):
        schema = pymilvus.MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", pymilvus.DataType.VARCHAR, is_primary=True, max_length=256)
        schema.add_field("about", pymilvus.DataType.VARCHAR, max_length=TEXT)
        schema.add_field("vector", pymilvus.DataType.FLOAT_VECTOR, dim=2)  # required
        connection.create_collection(notes, schema=schema, timeout=SECONDS)
    while len((text := json.dumps(about)).encode()) > TEXT and about["categories"]:
        about["categories"] = about["categories"][: len(about["categories"]) // 2]
    connection.upsert(notes, [{"id": name, "about": text, "vector": [0.0, 1.0]}], timeout=SECONDS)
    connection.flush(notes, timeout=SECONDS)
    _add_index(connection, notes, {"index_type": "FLAT"}, "L2")


def _publish(connection, address, name):
    """Switches the alias to a collection, and drops all but the last three."""
    before = milvus.current_collection(connection, address)
    if before:
        connection.alter_alias(name, address.name, timeout=SECONDS)
    else:
        connection.create_alias(name, address.name, timeout=SECONDS)
    known = [each for each in _collections(connection, address) if each != name]
    for old in known[: max(0, len(known) + 1 - versions.KEPT)]:
        connection.drop_collection(old, timeout=SECONDS)
        connection.delete(f"{address.name}_about", ids=[old], timeout=SECONDS)


def print_exported(to, about) -> None:
    """Describes the result of an export."""
    print(
        f"{Address.parse(to)}: version {about['version']}, {about['count']} items "
        f"({about['added']} added now), in {about['collection']}"
    )
