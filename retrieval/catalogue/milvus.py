"""A catalogue in Milvus: for more items than fit on one machine's disk.

    --index=milvus:URI[#NAME][@INDEX]

URI is a folder (Milvus Lite, one process at a time), or `http://host:19530` of a server or a
cluster. NAME (default `prototrain`) is an alias. Each export fills a new collection,
NAME_v000003_<hash>, which becomes current when the alias names it. The last three are kept. The
manifest of the index is a row of the collection NAME_about. The model that embeds photos stays in
the exported index; on another machine, give the path of that index as @INDEX. A server's user and
password, `user:password`, are read from MILVUS_TOKEN. See `retrieval.catalogue.milvus_export`.
"""

import contextlib
import dataclasses
import errno
import functools
import json
import logging
import os
import re
from collections.abc import Sequence

import numpy as np
import pyarrow

from retrieval.catalogue import opened, reading
from retrieval.catalogue.opened import Catalogue
from trainer import files

PREFIX = "milvus:"
METRICS = {"cosine": "COSINE", "dot": "IP", "euclidean": "L2"}
FIELDS = ("id", "product", "category", "path")
DEPTH = 16384  # maximum number of results
EF = 512  # candidates for ten results among all items
MOST = 32768  # maximum ef of Milvus
SECONDS = 60  # timeout of a request
BUILDING = 7 * 86400  # timeout of building or loading a graph
KIND = "milvus"  # the kind of folder in the marker file


@dataclasses.dataclass(frozen=True)
class Address:
    """The parts of `milvus:URI#NAME@INDEX`.

    Attributes:
      uri: the URI for pymilvus.
      folder: the folder of Milvus Lite; '' for a server.
      name: the alias.
      index: the folder of the index with the model; '' for the exported index.
    """

    uri: str
    folder: str
    name: str
    index: str

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Parses an address; ValueError for a name that Milvus does not accept."""
        uri, _, rest = text.removeprefix(PREFIX).partition("#")
        name, _, index = rest.partition("@")
        if not rest and "://" not in uri:
            uri, _, index = uri.partition("@")
        name = name or "prototrain"
        if not uri:
            raise ValueError(
                f"{text}: has no place: give milvus:FOLDER or milvus:http://host:19530"
            )
        if not re.fullmatch(r"[A-Za-z_]\w{0,200}", name, re.ASCII):
            raise ValueError(f"{text}: {name!r} is not a name: use letters, digits and underscores")
        folder = "" if "://" in uri else os.path.expanduser(uri)
        if folder:
            uri = folder if folder.endswith(".db") else os.path.join(folder, "milvus.db")
        return cls(uri, folder, name, os.path.expanduser(index))

    def __str__(self) -> str:
        return f"{PREFIX}{self.folder or self.uri}#{self.name}"


@contextlib.contextmanager
def one_line(address):
    """Turns pymilvus's errors into an OSError of one line."""
    import grpc
    import pymilvus

    try:
        yield
    except (pymilvus.exceptions.MilvusException, grpc.RpcError) as error:
        said = error.details() if hasattr(error, "details") else getattr(error, "message", error)
        reason = " ".join(str(said).split())
        raise OSError(errno.EIO, reason[:300] or type(error).__name__, str(address)) from error


@functools.lru_cache(maxsize=8)
def _client(address_uri, folder, token):
    import pymilvus

    return pymilvus.MilvusClient(address_uri, token=token, timeout=10)


def client(address: Address, make: bool = False):
    """The connection to Milvus, one per process and address.

    Args:
      address: address of the server or folder.
      make: create the folder of Milvus Lite.

    Raises:
      ValueError: pymilvus is not installed, or there is no such folder.
      OSError: the server cannot be reached.
    """
    try:
        import pymilvus  # noqa: F401
    except ImportError:
        raise ValueError(f"{address}: pip install 'prototrain[milvus]'") from None
    # They also log the errors that they raise, and features that Milvus Lite lacks.
    for name in ("pymilvus", "milvus_lite", *(["grpc"] if address.folder else [])):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    if address.folder:
        if make and not address.folder.endswith(".db"):
            files.claim(address.folder, KIND)
        elif not make and not os.path.exists(address.uri):
            raise ValueError(f"{address}: there is no such folder; make it with `index export`")
    with one_line(address):
        return _client(address.uri, address.folder, os.environ.get("MILVUS_TOKEN", ""))


def release(address: Address) -> None:
    """Closes connections, and Milvus Lite, so that other processes can open it."""
    _client.cache_clear()
    if address.folder:
        from milvus_lite.server_manager import server_manager_instance

        server_manager_instance.release_server(address.uri)


def current(text: str) -> str:
    """The name of the current collection; it changes with each version.

    Raises:
      ValueError: there is no exported catalogue.
      OSError: the server cannot be reached.
    """
    address = Address.parse(text)
    connection = client(address)
    with one_line(address):
        found = current_collection(connection, address)
    if not found:
        raise ValueError(f"{address}: has no catalogue; make it with `index export --to={text}`")
    return found


def current_collection(connection, address):
    """The collection that the alias names; '' if there is none."""
    import pymilvus

    try:
        return connection.describe_alias(address.name).get("collection_name", "")
    except pymilvus.exceptions.MilvusException as error:
        if "not found" in str(error).lower() or "exist" in str(error).lower():
            return ""
        raise


def count_of(connection, name, where=""):
    found = connection.query(
        name, filter=where, output_fields=["count(*)"], consistency_level="Strong", timeout=SECONDS
    )
    return found[0]["count(*)"]


def version_of(name):
    return int(re.search(r"_v(\d+)_[0-9a-f]+$", name)[1])


def open_catalogue(text: str) -> "MilvusCatalogue":
    """Opens the current version of a catalogue in Milvus; see `Catalogue.open`."""
    address = Address.parse(text)
    name = current(text)
    connection = client(address)
    with one_line(address):
        connection.load_collection(name, timeout=BUILDING)
        notes = f"{address.name}_about"
        connection.load_collection(notes, timeout=SECONDS)
        found = connection.query(
            notes, filter=f"id == {json.dumps(name)}", output_fields=["about"], timeout=SECONDS,
            consistency_level="Strong",
        )  # fmt: skip
    if not found:
        raise ValueError(f"{address}: {name} was not made by `index export`")
    return MilvusCatalogue(connection, address, name, json.loads(found[0]["about"]))


class MilvusCatalogue(Catalogue):
    """A catalogue whose items and graph are in Milvus; searched like any other `Catalogue`.

    It has no table of all items: `Found.rows` are rows of `Found.items`.
    """

    def __init__(self, connection, address, name, about):
        """Internal; use `Catalogue.open`."""
        manifest, folder = about["manifest"], address.index or about["index"]
        # The model, if it still exists: that of the index version with the same weights.
        try:
            version, there = reading.current(folder)
        except ValueError:
            version, there = os.path.join(folder, "versions", "none"), None
        same = there and there["weights"] == manifest["weights"]
        manifest |= {key: there[key] if same else {} for key in ("sha256", "bytes")}
        manifest |= {"removed": 0, "version": version_of(name)}
        super().__init__(None, None, manifest, version)
        self._connection, self._address, self._name = connection, address, name
        self._categories, self._counts = about["categories"], {}

    def _selection(self, category):
        """(filter, fraction of the items that pass it)."""
        if category is None:
            return "", 1.0
        where = f"category == {json.dumps(category, ensure_ascii=False)}"
        if category not in self._counts:
            with one_line(self._address):
                self._counts[category] = count_of(self._connection, self._name, where)
        if not self._counts[category]:
            raise ValueError(opened.no_category(category, self.categories()))
        return where, self._counts[category] / self.manifest["count"]

    def _nearest(self, queries, depth, selection):
        """(scores, rows, items) of the nearest items, see `Catalogue._nearest`."""
        where, share = selection
        depth = min(depth, DEPTH)
        similarity = self.manifest["similarity"]
        ef = min(MOST, max(depth, int(np.ceil(EF * max(1, depth / 10) / share))))
        how = {"metric_type": METRICS[similarity], "params": {"ef": ef}}
        scores = np.full((len(queries), depth), -np.inf, np.float32)
        rows = np.full((len(queries), depth), -1, np.int64)
        known: dict[str, int] = {}
        columns: dict[str, list] = {name: [] for name in FIELDS}
        # Milvus refuses answers of more than a few MiB.
        size = max(1, min(100, 20_000 // depth))
        for start in range(0, len(queries), size):
            block = np.ascontiguousarray(queries[start : start + size], np.float32)
            with one_line(self._address):
                found = self._connection.search(
                    self._name, list(block), limit=depth, search_params=how, filter=where,
                    output_fields=list(FIELDS), timeout=SECONDS,
                )  # fmt: skip
            for n, hits in enumerate(found, start):
                for place, hit in enumerate(hits):
                    entity = hit["entity"]
                    if entity["id"] not in known:
                        known[entity["id"]] = len(known)
                        for name, column in columns.items():
                            column.append(entity[name])
                    scores[n, place], rows[n, place] = hit["distance"], known[entity["id"]]
        if similarity == "euclidean":
            scores = np.where(rows < 0, -np.inf, -np.sqrt(np.maximum(scores, 0)))
        return scores, rows, pyarrow.table(columns)

    def find_like(self, ids: Sequence[str], k=10, category=None, *, threshold=None,
                  by_product=False):  # fmt: skip
        """As `Catalogue.find_like`."""
        queries = np.array(
            [self._entity_of(name, ["vector"])["vector"] for name in ids], np.float32
        )
        return self._find(queries, list(ids), k, category, threshold, by_product)

    def _own(self, ids, items):
        at = {name: row for row, name in enumerate(items["id"].to_pylist())}
        return np.array([[at.get(name, -1)] for name in ids])

    def _entity_of(self, name, fields):
        found = self._get(name, fields)
        if found is None:
            raise ValueError(f"no item of the index has the id {str(name)!r}.")
        return found

    def _get(self, name, fields):
        with one_line(self._address):
            found = self._connection.query(
                self._name, filter=f"id == {json.dumps(name, ensure_ascii=False)}",
                output_fields=fields, timeout=SECONDS,
            )  # fmt: skip
        return found[0] if found else None

    def item(self, name):
        """As `Catalogue.item`."""
        found = self._get(name, list(FIELDS))
        return found and {field: found[field] for field in FIELDS}

    def categories(self):
        """Like `Catalogue.categories`; only the first if there are very many."""
        return list(self._categories)

    def close(self):
        """Does nothing: the connection stays for the next version."""
