"""A catalogue index on FAISS: build, add, remove, search, verify.

    python -m retrieval.index build  --store=DIR --output=INDEX [--index=auto|FACTORY]
    python -m retrieval.index add    --store=DIR --output=INDEX
    python -m retrieval.index remove --ids=ids.txt --output=INDEX
    python -m retrieval.index search --store=QUERIES --output=INDEX [--category=NAME] [--k=10]
    python -m retrieval.index info | verify --output=INDEX

INDEX/current names a version; INDEX/versions/<n> holds index.faiss, items.parquet and
manifest.json. A version is published by one rename of `current`, so that readers see the old or the
new one, whole; the last three are kept. Removed items stay in the FAISS file and are left out of
every search, which works for all kinds of index; `build` anew to be rid of them.

FAISS trusts the files it reads. Load only indexes that you built: the checksums tell damage and
mix-ups, not malice.
"""

import json
import os
import shutil
import sys
import time

import faiss
import numpy as np

from retrieval import files, store, vectors

KEPT = 3  # versions
BLOCK = 65536  # rows added at a time
EXACT_UP_TO = 50_000  # items that a flat search goes through in a few milliseconds
COLUMNS = ("id", "product", "category")


def flat(catalogue: np.ndarray, similarity: str = "cosine"):
    """Builds an exact FAISS index over catalogue [N, D], searched with `search`."""
    index = make("Flat", catalogue.shape[1], similarity)
    for i in range(0, len(catalogue), BLOCK):
        index.add(prepare(catalogue[i : i + BLOCK], similarity))
    return index


def make(factory, dimensions, similarity):
    metric = faiss.METRIC_L2 if similarity == "euclidean" else faiss.METRIC_INNER_PRODUCT
    try:
        return faiss.index_factory(dimensions, factory, metric)
    except RuntimeError as error:
        raise ValueError(
            f"--index={factory}: FAISS cannot make it for {dimensions} dimensions: "
            f"{str(error).splitlines()[-1]}"
        ) from None


def search(index, queries: np.ndarray, k: int, similarity: str = "cosine", parameters=None):
    """Returns (scores float32 [Q, k], rows int64 [Q, k]), best first.

    Scores are larger the nearer: cosine, dot product or the negative Euclidean distance. Where the
    index finds fewer than k items, the surplus rows are -1 with score -inf. parameters: a
    `faiss.SearchParameters`.
    """
    scores, rows = index.search(prepare(queries, similarity), k, params=parameters)
    if similarity == "euclidean":
        scores = -np.sqrt(np.maximum(scores, 0))
    scores[rows < 0] = -np.inf
    return scores, rows


def prepare(embeddings, similarity):
    """Float32, contiguous, and of unit length where the similarity is cosine."""
    embeddings = np.ascontiguousarray(embeddings, np.float32)
    if similarity == "cosine":
        norms = np.linalg.norm(embeddings.astype(np.float64), axis=1, keepdims=True)
        embeddings = (embeddings / norms).astype(np.float32)
    return embeddings


# ---------------------------------------------------------------------------- choosing and tuning


def choose(count, dimensions, memory, recall=0.95):
    """(FAISS factory, why) for a catalogue: the most exact kind that fits the memory, in bytes.

    Sizes a vector: 4 D as they are, 4 D + 272 in a graph of 32 links, D + 8 in eight-bit inverted
    lists, D / 2 + 8 product-quantised with half a byte a dimension.
    """
    lists = int(2 ** np.clip(np.round(np.log2(4 * np.sqrt(max(count, 1)))), 4, 17))
    half = max(1, dimensions // 2)
    kinds = [
        ("Flat", 4 * dimensions, count <= EXACT_UP_TO or recall >= 1, "exact"),
        ("HNSW32", 4 * dimensions + 272, count <= 5_000_000, "the quickest at high recall"),
        (f"IVF{lists},SQ8", dimensions + 8, True, "a quarter of the memory at little loss"),
        (f"IVF{lists},PQ{half}", half + 8, recall < 1, "an eighth of the memory"),
    ]
    for factory, size, fits, why in kinds:
        if fits and size * count <= memory:
            share = size * count / 2**30
            return factory, f"{count} items x {size} bytes = {share:.2f} GiB: {why}"
    need = kinds[-1][1] * count / 2**30
    raise ValueError(
        f"{count} items of {dimensions} dimensions need at least {need:.1f} GiB; give more memory "
        "(--memory), fewer dimensions, or a factory of your own (--index=OPQ16,IVF65536,PQ16)"
    )


def effort(index, value):
    """Search parameters of a given effort: nprobe of inverted lists, efSearch of a graph."""
    kind = faiss.downcast_index(index)
    if isinstance(kind, faiss.IndexIVF):
        return faiss.SearchParametersIVF(nprobe=int(value))
    if isinstance(kind, faiss.IndexHNSW):
        return faiss.SearchParametersHNSW(efSearch=int(value))
    return None


def _most(index):
    kind = faiss.downcast_index(index)
    return kind.nlist if isinstance(kind, faiss.IndexIVF) else max(16, index.ntotal)


def tune(index, queries, truth, recall, similarity, k):
    """The least effort at which the k true neighbours [Q, k] are found at the asked rate.

    Returns {'effort', 'recall', 'ms_per_query'}; effort None where the kind has none. The recall
    is that of the effort found, which may be below the one asked for if no effort reaches it.
    """
    most = _most(index)

    def measure(value):
        start = time.perf_counter()
        rows = search(index, queries, k, similarity, effort(index, value))[1]
        seconds = time.perf_counter() - start
        hit = np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(rows, truth, strict=True)])
        return {"effort": value, "recall": float(hit), "ms_per_query": 1e3 * seconds / len(rows)}

    if effort(index, 1) is None:
        return measure(None)
    high = 1
    while (found := measure(high))["recall"] < recall and high < most:
        high = min(2 * high, most)
    # Where even the most effort falls short, the least that comes near its recall will do.
    recall = min(recall, found["recall"] - 0.005 * (found["recall"] < recall))
    low = 0 if high == most else high // 2
    while high - low > max(1, low // 8):
        middle = (low + high) // 2
        tried = measure(middle)
        if tried["recall"] >= recall:
            high, found = middle, tried
        else:
            low = middle
    return found


# ---------------------------------------------------------------------------- versions on disk


def build(source, folder, factory="auto", *, similarity="cosine", memory=None, recall=0.95, k=10,
          seed=0):  # fmt: skip
    """Builds an index from a store, in blocks; its manifest. Earlier versions are kept."""
    origin = store.manifest_of(source)
    dimensions, count = origin["dimensions"], origin["count"]
    why = "asked for"
    if factory == "auto":
        factory, why = choose(count, dimensions, memory or free_memory() // 2, recall)
    with files.only_writer(folder):
        random = np.random.default_rng(seed)
        index = make(factory, dimensions, similarity)
        parts = list(store.shards(source))
        _check_rows(parts, similarity)
        starts = np.cumsum([0, *(len(part) for part in parts)])
        if not index.is_trained:
            wanted = min(count, 64 * getattr(faiss.downcast_index(index), "nlist", 1024) + 4096)
            index.train(prepare(_gather(parts, starts, _sample(random, count, wanted)), similarity))
        for part in parts:
            for i in range(0, len(part), BLOCK):
                index.add(prepare(part.embeddings[i : i + BLOCK], similarity))
        # Held-out queries: items of the catalogue, moved a little so that they are none of them.
        queries = prepare(_gather(parts, starts, _sample(random, count, 500)), similarity)
        step = 0.1 * np.linalg.norm(queries, axis=1, keepdims=True) / np.sqrt(dimensions)
        queries = queries + (step * random.normal(size=queries.shape)).astype(np.float32)
        near = min(k, count)
        truth = _nearest(parts, starts, queries, near, similarity)
        tuned = tune(index, queries, truth, recall, similarity, near)
        items = {
            name: np.concatenate([getattr(part, column) for part in parts])
            for name, column in zip(COLUMNS, ("ids", "products", "categories"), strict=True)
        }
        _check_unique(items["id"])
        items["alive"] = np.ones(count, bool)
        manifest = {
            "factory": factory,
            "why": why,
            "similarity": similarity,
            "dimensions": dimensions,
            "weights": origin["source"].get("checkpoint_sha256"),
            "tuned": {**tuned, "asked": recall, "k": near},
        }
        return _publish(folder, index, items, manifest)


def _check_rows(parts, similarity):
    for part in parts:
        vectors.Vectors(part.embeddings, similarity, f"the store, around {str(part.ids[0])!r}")


def _check_unique(ids):
    names, count = np.unique(ids, return_counts=True)
    if len(names) < len(ids):
        raise ValueError(f"id {str(names[count > 1][0])!r} occurs twice in the store")


def _sample(random, count, wanted):
    return np.sort(random.choice(count, min(count, wanted), replace=False))


def _gather(parts, starts, rows):
    """Embeddings of rows (ascending) of the whole store."""
    found = []
    for part, start, end in zip(parts, starts, starts[1:], strict=False):
        inside = rows[(rows >= start) & (rows < end)] - start
        found.append(np.asarray(part.embeddings[inside], np.float32))
    return np.concatenate(found)


def _nearest(parts, starts, queries, k, similarity):
    """Exact neighbours [Q, k], block by block."""
    scores = np.full((len(queries), 0), 0, np.float32)
    rows = np.zeros((len(queries), 0), np.int64)
    for part, start in zip(parts, starts, strict=False):
        for i in range(0, len(part), BLOCK):
            block = flat(part.embeddings[i : i + BLOCK], similarity)
            s, r = search(block, queries, min(k, block.ntotal), similarity)
            scores, rows = np.hstack([scores, s]), np.hstack([rows, r + start + i])
            best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
            scores, rows = (np.take_along_axis(a, best, 1) for a in (scores, rows))
    return rows


def add(source, folder):
    """Adds the items of a store; an item whose id is there already is replaced."""
    origin = store.manifest_of(source)
    with files.only_writer(folder):
        index, items, manifest = load(folder)
        check_weights(manifest, origin, source)
        for part in store.shards(source):
            _check_rows([part], manifest["similarity"])
            _check_unique(part.ids)
            items["alive"] &= ~np.isin(items["id"], part.ids)
            index.add(prepare(part.embeddings, manifest["similarity"]))
            new = {"id": part.ids, "product": part.products, "category": part.categories}
            new["alive"] = np.ones(len(part), bool)
            items = {name: np.concatenate([items[name], new[name]]) for name in items}
        return _publish(folder, index, items, manifest)


def remove(ids, folder):
    """Removes items by id; ValueError, with nothing changed, where one is not there."""
    with files.only_writer(folder):
        index, items, manifest = load(folder)
        there = items["id"][items["alive"]]
        missing = [name for name in ids if name not in set(there.tolist())]
        if missing:
            raise ValueError(f"id {missing[0]!r} is not in {folder} ({len(missing)} such ids)")
        items["alive"] &= ~np.isin(items["id"], ids)
        return _publish(folder, index, items, manifest)


def find(loaded, queries, k=10, category=None):
    """Searches a loaded index: (scores [Q, k], rows [Q, k] of its items; -1 beyond the last).

    loaded: as `load` returns it. category: consider only its items.
    """
    index, items, manifest = loaded
    queries = np.asarray(queries)
    if queries.ndim != 2 or queries.shape[1] != manifest["dimensions"]:
        raise ValueError(
            f"queries are {list(queries.shape)}; the index takes [rows, {manifest['dimensions']}]"
        )
    vectors.Vectors(queries, manifest["similarity"], "queries")
    wanted = items["alive"].copy()
    if category is not None:
        wanted &= items["category"] == category
        if not wanted.any():
            raise ValueError(f"no item of the index is of category {category!r}")
    value = manifest["tuned"]["effort"]
    if value is not None:
        # More results, or results of which some are filtered out, lie farther away.
        share = wanted.mean() if wanted.any() else 1
        more = max(1, k / manifest["tuned"]["k"]) / share
        value = min(np.ceil(value * more), _most(index))
    parameters = effort(index, value) or faiss.SearchParameters()
    if not wanted.all():
        # FAISS keeps no reference to the selector.
        bits = np.packbits(wanted, bitorder="little")
        selector = faiss.IDSelectorBitmap(len(wanted), faiss.swig_ptr(bits))
        parameters.sel = selector
    return search(index, queries, k, manifest["similarity"], parameters)


def check_weights(manifest, origin, source):
    """Refuses embeddings of other weights than the index's."""
    weights = origin["source"].get("checkpoint_sha256")
    if manifest["weights"] != weights:
        raise ValueError(
            f"{source} was embedded with other weights than the index: embed it with "
            f"the checkpoint of {str(manifest['weights'])[:12]}, or build the index anew"
        )


def load(folder, verify=True):
    """(FAISS index, items {column: [N]}, manifest) of the current version.

    Raises ValueError for a folder without an index, and for damaged or foreign files.
    """
    version = _current(folder)
    manifest = files.read_json(os.path.join(version, "manifest.json"))
    for name, checksum in manifest["sha256"].items():
        path = os.path.join(version, name)
        if not os.path.exists(path):
            raise ValueError(f"{path}: is missing from its index")
        if verify and files.sha256(path) != checksum:
            raise ValueError(
                f"{path}: is damaged (checksum differs); write an older version's number, of "
                f"{', '.join(sorted(os.listdir(os.path.dirname(version))))}, to {folder}/current"
            )
    items = files.read_table(os.path.join(version, "items.parquet"), (*COLUMNS, "alive"))
    index = faiss.read_index(os.path.join(version, "index.faiss"))
    if index.d != manifest["dimensions"] or index.ntotal != len(items["id"]):
        raise ValueError(f"{version}: index and items do not belong together")
    return index, items, manifest


def _current(folder):
    try:
        with open(os.path.join(folder, "current"), encoding="utf-8") as text:
            name = text.read().strip()
    except OSError:
        raise ValueError(f"{folder}: holds no index; make one with retrieval.index build") from None
    version = os.path.join(folder, "versions", os.path.basename(name))
    if not name.isdigit() or not os.path.isdir(version):
        raise ValueError(f"{folder}/current: names no version of this index: {name[:40]!r}")
    return version


def _publish(folder, index, items, manifest):
    """Writes the next version and makes it the current one; the old one stays on any error."""
    versions = os.path.join(folder, "versions")
    os.makedirs(versions, exist_ok=True)
    known = sorted(int(name) for name in os.listdir(versions) if name.isdigit())
    name = f"{(known[-1] if known else 0) + 1:06d}"
    path = os.path.join(versions, name)
    os.makedirs(path)
    try:
        data, table = os.path.join(path, "index.faiss"), os.path.join(path, "items.parquet")
        try:
            faiss.write_index(index, data)
        except RuntimeError as error:
            raise OSError(f"{data}: cannot be written: {str(error).splitlines()[-1]}") from None
        files.write_table(table, {column: values.tolist() for column, values in items.items()})
        manifest = manifest | {
            "version": int(name),
            "count": int(items["alive"].sum()),
            "removed": int((~items["alive"]).sum()),
            "bytes_per_vector": os.path.getsize(data) / max(1, index.ntotal),
            "sha256": {os.path.basename(p): files.sha256(p) for p in (data, table)},
        }
        files.write_json(os.path.join(path, "manifest.json"), manifest)
        with files.published(os.path.join(folder, "current"), "w") as out:
            out.write(name + "\n")
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise
    for old in known[: max(0, len(known) + 1 - KEPT)]:
        shutil.rmtree(os.path.join(versions, f"{old:06d}"), ignore_errors=True)
    return manifest


def free_memory():
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


# ---------------------------------------------------------------------------- command line


def main(action, options):
    if action == "build":
        memory = options.memory * 2**30 if options.memory else None
        manifest = build(
            options.store, options.output, options.index, similarity=options.similarity,
            memory=memory, recall=options.recall,
        )  # fmt: skip
        print(f"{manifest['factory']}: {manifest['why']}")
    elif action == "add":
        manifest = add(options.store, options.output)
    elif action == "remove":
        with open(options.ids, encoding="utf-8") as text:
            manifest = remove(text.read().splitlines(), options.output)
    elif action == "search":
        _search(options)
        return
    else:
        manifest = load(options.output, verify=action == "verify")[2]
        if action == "info":
            print(json.dumps(manifest, indent=1))
            return
    tuned = manifest["tuned"]
    print(
        f"{options.output}: version {manifest['version']}, {manifest['count']} items, "
        f"{manifest['removed']} removed, {manifest['bytes_per_vector']:.0f} bytes a vector, "
        f"recall@{tuned['k']} {tuned['recall']:.3f} at {tuned['ms_per_query']:.2f} ms a query"
    )
    if tuned["recall"] < tuned["asked"]:
        print(f"warning: the recall asked for, {tuned['asked']}, was not reached", file=sys.stderr)


def _search(options):
    loaded = load(options.output)
    check_weights(loaded[2], store.manifest_of(options.store), options.store)
    queries = store.read(options.store)
    scores, rows = find(loaded, queries.embeddings, options.k, options.category)
    items = loaded[1]
    for q, name in enumerate(queries.ids):
        found = [
            {"id": str(items["id"][r]), "product": str(items["product"][r]), "score": float(s)}
            for s, r in zip(scores[q], rows[q], strict=True)
            if r >= 0
        ]
        print(json.dumps({"query": str(name), "results": found}, ensure_ascii=False))


def run(argv=None):
    import argparse

    parser = argparse.ArgumentParser(
        prog="retrieval.index", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    actions = ("build", "add", "remove", "search", "info", "verify")
    parser.add_argument("action", choices=actions)
    parser.add_argument("--output", required=True, help="folder of the index")
    parser.add_argument("--store", help="store of embeddings, as retrieval.embed writes it")
    parser.add_argument("--ids", help="file of ids to remove, one a line")
    parser.add_argument("--index", default="auto", help="FAISS factory, or auto")
    parser.add_argument("--similarity", default="cosine", choices=vectors.SIMILARITIES)
    parser.add_argument("--memory", type=float, help="GiB the index may take (half of the free)")
    parser.add_argument("--recall", type=float, default=0.95, help="of the 10 true neighbours")
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--category", help="search its items only")
    options = parser.parse_args(argv)
    needed = {"remove": "ids"}.get(options.action, "store")
    if options.action not in ("info", "verify") and not getattr(options, needed):
        parser.error(f"{options.action} needs --{needed}")
    try:
        main(options.action, options)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    run()
