"""Fills Milvus with the items of an index, so that a kill or a full disk loses and doubles nothing.

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
TEXT = 65535  # bytes that a VARCHAR may have
LINKS, BUILT = 32, 200  # of the graph
POLL = 0.5  # seconds between two looks at what is being built


def export(folder, to: str) -> dict:
    """Fills a collection with an index and makes it the current one.

    Run again after a kill, it adds what is missing. Until the counts are equal, the alias stays.

    Args:
      folder: the index.
      to: the address, `milvus:URI#NAME`.

    Returns:
      {'collection', 'count', 'version', 'added'}.

    Raises:
      ValueError: vectors that the index cannot return, or texts that are too long for Milvus.
      OSError: the server cannot be reached, or its disk is full; the alias stays.
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
            # Before the items: only what has a graph can be asked, after a kill, what it holds.
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
                    f"{address}: holds {count} of {manifest['count']} items: export again; the "
                    "alias is unchanged"
                )
            about = {"manifest": manifest, "index": os.path.abspath(folder)}
            _note(connection, address, name, about | {"categories": catalogue.categories()})
            _publish(connection, address, name)
    return {"collection": name, "count": count, "version": milvus.version_of(name), "added": added}


def _entity(rows, n):
    return {name: rows[name][n] for name in (*FIELDS, "vector")}


def _longest(catalogue):
    """{field: bytes of its longest text}; ValueError for one that Milvus cannot hold."""
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
        if not connection.list_indexes(name):  # the client may have asked twice
            raise


def _settle(connection, name):
    """Waits until the graph of all items is built, and searches use it.

    Until then a server searches new items by an interim index that finds fewer of the nearest.
    """
    (graph,) = connection.list_indexes(name)
    while connection.describe_index(name, graph).get("pending_index_rows", 0):
        time.sleep(POLL)
    connection.release_collection(name, timeout=BUILDING)
    connection.load_collection(name, timeout=BUILDING)


def _there(connection, name, ids):
    """Those of some ids that a collection has."""
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
    """The name of the collection of an index: that of an export that was killed, or a new one."""
    known = _collections(connection, address)
    same = [name for name in known if name.endswith(digest)]
    return (
        same[-1] if same else f"{address.name}_v{max(known.values(), default=0) + 1:06d}_{digest}"
    )


def _note(connection, address, name, about):
    """Keeps what the index was beside its collection."""
    import pymilvus

    notes = f"{address.name}_about"
    if not connection.has_collection(notes):
        schema = pymilvus.MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", pymilvus.DataType.VARCHAR, is_primary=True, max_length=256)
        schema.add_field("about", pymilvus.DataType.VARCHAR, max_length=TEXT)
        schema.add_field("vector", pymilvus.DataType.FLOAT_VECTOR, dim=2)  # each must have one
        connection.create_collection(notes, schema=schema, timeout=SECONDS)
    while len((text := json.dumps(about)).encode()) > TEXT and about["categories"]:
        about["categories"] = about["categories"][: len(about["categories"]) // 2]
    connection.upsert(notes, [{"id": name, "about": text, "vector": [0.0, 1.0]}], timeout=SECONDS)
    connection.flush(notes, timeout=SECONDS)
    _add_index(connection, notes, {"index_type": "FLAT"}, "L2")


def _publish(connection, address, name):
    """Names a collection by the alias, and drops those before the last three."""
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
    """Says what an export did."""
    print(
        f"{Address.parse(to)}: version {about['version']}, {about['count']} items "
        f"({about['added']} added now), in {about['collection']}"
    )
