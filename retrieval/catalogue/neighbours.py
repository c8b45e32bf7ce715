"""Search with FAISS: exact neighbors in bounded memory; choosing and tuning an index."""

import time

import faiss
import numpy as np

from retrieval import progress

BLOCK = 65536  # rows per FAISS call
EXACT_UP_TO = 50_000  # items that a flat search scans in a few milliseconds
NORMS = 4096  # rows whose lengths are computed at a time
REFINED = 8  # candidates that are ranked again, per requested result


def make(factory, dimensions, similarity):
    """Returns an empty FAISS index; ValueError if FAISS does not know the factory."""
    metric = faiss.METRIC_L2 if similarity == "euclidean" else faiss.METRIC_INNER_PRODUCT
    try:
        return faiss.index_factory(dimensions, factory, metric)
    except RuntimeError as error:
        raise ValueError(
            f"--factory={factory}: FAISS cannot make it for {dimensions} dimensions: "
            f"{str(error).splitlines()[-1]}"
        ) from None


def train(index, rows, factory, similarity):
    """Trains an index of that factory on rows [n, D]; ValueError if FAISS cannot."""
    rows, kind = prepare(rows, similarity), faiss.downcast_index(index)
    inverted = isinstance(kind, faiss.IndexIVF)
    try:
        if inverted and isinstance(faiss.downcast_index(kind.quantizer), faiss.IndexFlat):
            # The iterations of index.train one by one, to report progress: they can take minutes.
            lists = faiss.Clustering(kind.d, kind.nlist, kind.cp)
            rounds, lists.niter = lists.niter, 1
            for _ in progress.track(range(rounds), rounds, f"training {factory}, rounds"):
                lists.train(rows, kind.quantizer)
                lists.min_points_per_centroid = 1  # it has warned about too few items
        index.train(rows)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1]
        raise ValueError(
            f"--factory={factory}: cannot be trained on {len(rows)} items: {reason}"
        ) from None


def moved(rows, similarity, random):
    """Catalogue rows [n, D] plus 10% noise, used as queries."""
    rows = prepare(rows, similarity)
    step = 0.1 * np.linalg.norm(rows, axis=1, keepdims=True) / np.sqrt(rows.shape[1])
    return rows + (step * random.normal(size=rows.shape)).astype(np.float32)


def prepare(embeddings, similarity):
    """Returns embeddings for FAISS: float32, contiguous, of unit length for cosine."""
    embeddings = np.ascontiguousarray(embeddings, np.float32)
    if similarity != "cosine":
        return embeddings
    prepared = np.empty_like(embeddings)
    for start in range(0, len(embeddings), NORMS):  # in float64, a few rows at a time
        rows = embeddings[start : start + NORMS].astype(np.float64)
        prepared[start : start + NORMS] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return prepared


def search(index, queries: np.ndarray, k: int, similarity: str = "cosine", parameters=None):
    """Searches a FAISS index.

    Args:
      index: the FAISS index.
      queries: float [Q, D].
      k: number of results.
      similarity: 'cosine', 'dot' or 'euclidean'.
      parameters: a `faiss.SearchParameters`.

    Returns:
      (scores float32 [Q, k], rows int64 [Q, k]), best first. Larger scores are nearer: cosine, dot
      product or the negative Euclidean distance. Beyond the last item found, rows are -1 and scores
      -inf.
    """
    scores, rows = index.search(prepare(queries, similarity), k, params=parameters)
    return _as_similarity(scores, rows, similarity)


def nearest(queries: np.ndarray, parts, k: int, similarity: str = "cosine"):
    """Finds exact neighbors.

    Args:
      queries: float [Q, D].
      parts: arrays [n, D] of the catalogue, such as memory-mapped shards; only one block is in
        memory at a time.
      k: number of results.
      similarity: 'cosine', 'dot' or 'euclidean'.

    Returns:
      As `search`.
    """
    metric = faiss.METRIC_L2 if similarity == "euclidean" else faiss.METRIC_INNER_PRODUCT
    queries = prepare(queries, similarity)
    scores = np.empty((len(queries), 0), np.float32)
    rows = np.empty((len(queries), 0), np.int64)
    start = 0
    for part in parts:
        for i in range(0, len(part), BLOCK):
            block = prepare(part[i : i + BLOCK], similarity)
            s, r = faiss.knn(queries, block, min(k, len(block)), metric)
            s, r = _as_similarity(s, r, similarity)
            scores, rows = best(np.hstack([scores, s]), np.hstack([rows, r + start]), k)
            start += len(block)
    return scores, rows


def best(scores, rows, k):
    """The k best of scores [Q, n] and rows [Q, n], in order; of equal scores, the first."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)


def _as_similarity(scores, rows, similarity):
    if similarity == "euclidean":
        scores = -np.sqrt(np.maximum(scores, 0))
    scores[rows < 0] = -np.inf
    return scores, rows


def choose(count, dimensions, memory, recall=0.95, disk=None):
    """Chooses the most exact kind of index that fits into memory.

    Bytes per vector: 4 D uncompressed, 4 D + 272 in a graph of 32 links, and in inverted lists
    D + 8 at eight bits per dimension, D / 2 + 28 at four (RaBitQ) or D / 2 + 8 (PQ), D / 8 + 16 at
    one bit (RaBitQ). On clustered vectors the compressed kinds reach recall@10 of about .98, .87,
    .83 and .42 at best (benchmarks/ann.py), so the last three are used only for lower requests.
    Otherwise eight-bit lists are written to disk, where the system caches the parts in use.

    Args:
      count: number of items.
      dimensions: D.
      memory: bytes that the index may take.
      recall: fraction of the nearest items that a search must find.
      disk: free bytes on disk; None if the lists cannot be on disk.

    Returns:
      (FAISS factory, whether its lists are on disk, why).

    Raises:
      ValueError: neither memory nor disk is large enough.
    """
    # np: skips the training of polysemous codes, which takes minutes and has no benefit here.
    lists = lists_for(count)
    eight, half = f"IVF{lists},SQ8", max(1, dimensions // 2)
    kinds = [
        ("Flat", 4 * dimensions, count <= EXACT_UP_TO or recall >= 1, "exact"),
        ("HNSW32", 4 * dimensions + 272, count <= 5_000_000, "fastest at high recall"),
        (eight, dimensions + 8, True, "a quarter of the memory at a small loss"),
        (f"IVF{lists},RaBitQ4", half + 28, recall <= 0.87, "four bits per dimension"),
        (
            f"IVF{lists},PQ{half}np",
            half + 8,
            recall <= 0.83,
            "four bits per dimension, in codes of two",
        ),
        (f"IVF{lists},RaBitQ", dimensions // 8 + 16, recall <= 0.42, "one bit per dimension"),
    ]
    for factory, size, fits, why in kinds:
        if fits and size * count <= memory:
            share = size * count / 2**30
            return factory, False, f"{count} items x {size} bytes = {share:.2f} GiB: {why}"
    size, held = dimensions + 8, 4 * dimensions * lists
    if disk is not None and 2 * size * count <= disk and 4 * held <= memory:
        why = "inverted lists on disk, since no kind with this recall fits into memory"
        return eight, True, f"{count} items x {size} bytes = {size * count / 2**30:.2f} GiB: {why}"
    need = size * count / 2**30
    raise ValueError(
        f"{count} items of {dimensions} dimensions need at least {need:.1f} GiB of memory, or "
        f"{2 * need:.1f} GiB of disk during the build: give more memory or disk, request a lower "
        "recall (--recall), or choose a factory (--factory=OPQ16,IVF65536,PQ16)"
    )


def lists_for(count):
    """The number of inverted lists for a number of items."""
    return int(2 ** np.clip(np.round(np.log2(4 * np.sqrt(max(count, 1)))), 4, 17))


def free_memory():
    """Available memory in bytes, including reclaimable cache."""
    import psutil

    return psutil.virtual_memory().available


def rows_within(memory, dimensions):
    """Rows that can be processed at a time if this process may take at most `memory` bytes.

    Memory already in use, such as names of items, is subtracted. There are up to three copies of
    the vectors, and their codes. Zero or less if nothing is left.
    """
    import psutil

    held = psutil.Process().memory_info()
    held = held.rss - getattr(held, "shared", 0)  # without mapped files, which the system can drop
    return int((memory - held) // (16 * dimensions))


def _kind(index):
    """The index as its FAISS class; of several parts, the first."""
    return faiss.downcast_index(getattr(index, "parts", [index])[0])


def core(index):
    """Returns the index that searches, inside an index that transforms vectors or re-ranks."""
    kind = _kind(index)
    if isinstance(kind, faiss.IndexPreTransform):
        return core(kind.index)
    return core(kind.base_index) if isinstance(kind, faiss.IndexRefine) else kind


def effort(index, value, selector=None):
    """Returns search parameters.

    Args:
      index: the FAISS index.
      value: the effort: nprobe of inverted lists, efSearch of a graph.
      selector: a `faiss.IDSelector` of the rows to consider, None for all.
    """
    kind = _kind(index)
    if isinstance(kind, faiss.IndexPreTransform):
        return effort(kind.index, value, selector)
    if isinstance(kind, faiss.IndexRefine):
        inner = effort(kind.base_index, value, selector) or faiss.SearchParameters()
        return faiss.IndexRefineSearchParameters(k_factor=REFINED, base_index_params=inner)
    if isinstance(kind, faiss.IndexIVF):
        return faiss.SearchParametersIVF(nprobe=int(value), sel=selector)
    if isinstance(kind, faiss.IndexHNSW):
        return faiss.SearchParametersHNSW(efSearch=int(value), sel=selector)
    return selector and faiss.SearchParameters(sel=selector)


def served(index, tuned, k, share=1.0, selector=None):
    """Search parameters for k results.

    Args:
      index: a FAISS index.
      tuned: the result of `tune`, and its `k`.
      k: number of results; the effort grows with it, since further results are farther away.
      share: fraction of the items that the selector includes.
      selector: a `faiss.IDSelector` of the items to consider, None for all.
    """
    value = tuned["effort"]
    if value is not None:
        value = min(np.ceil(value * max(1, k / tuned["k"]) / share), most(index))
    return effort(index, value, selector)


def most(index):
    """Returns the largest useful effort."""
    kind = core(index)
    return kind.nlist if isinstance(kind, faiss.IndexIVF) else max(16, index.ntotal)


def check(index, row, factory):
    """Raises ValueError if FAISS cannot add an item [1, D] to an index, or skip one in a search."""
    bits = np.ones(1, np.uint8)
    selector = faiss.IDSelectorBitmap(1, faiss.swig_ptr(bits))
    try:
        trial = faiss.clone_index(index)
        trial.add(row)
        trial.search(row, 1, params=effort(trial, 1, selector))
    except RuntimeError as error:
        raise ValueError(
            f"--factory={factory}: FAISS cannot add to this kind, or skip items in a search, which "
            f"removal and categories need: {str(error).splitlines()[-1]}"
        ) from None


def pair_scores(queries, items, at, similarity):
    """Exact similarity float32 [Q, k] of queries [Q, D] and items[at], at [Q, k]."""
    queries = prepare(queries, similarity)
    if similarity == "euclidean":
        return -np.linalg.norm(queries[:, None] - items[at], axis=2)
    return np.einsum("qd,qkd->qk", queries, items[at])


def as_near(scores, last):
    """Which scores [Q, k] reach those of the k-th nearest items [Q, 1].

    In float32, the scores of equal items are rounded differently in different matrix products.
    """
    return scores >= last - 1e-5 * np.abs(last) - 1e-30


def tune(index, queries, truth, exact, recall, similarity, k):
    """Finds the least effort that reaches a recall of the k nearest items with 95% confidence.

    An item counts as found if its score is at least that of the k-th nearest, so that copies of an
    item are interchangeable.

    Args:
      index: a FAISS index.
      queries: float32 [Q, D] for tuning.
      truth: float32 [Q, k], scores of the k nearest items.
      exact: returns the exact scores [Q, k] of rows int64 [Q, k] that a search found.
      recall: the requested recall.
      similarity: 'cosine', 'dot' or 'euclidean'.
      k: number of neighbors.

    Returns:
      {'effort', 'recall', 'interval95', 'ms_per_query'}; effort is None if the kind has no
      such parameter. The recall is that of the effort found; it is lower than requested if no
      effort reaches that.
    """
    top, kind = most(index), core(index)

    def measure(value):
        start = time.perf_counter()
        rows = search(index, queries, k, similarity, effort(index, value))[1]
        seconds = time.perf_counter() - start
        hits = as_near(exact(rows), truth[:, -1:]).mean(1)
        margin = 1.96 * hits.std() / np.sqrt(len(hits))
        mean = float(hits.mean())
        interval = [float(max(0, mean - margin)), float(min(1, mean + margin))]
        found = {"effort": value, "recall": mean, "interval95": interval}
        return found | {"ms_per_query": 1e3 * seconds / len(rows)}

    def reached(found):
        return found["interval95"][0]

    if not isinstance(kind, faiss.IndexIVF | faiss.IndexHNSW):
        return measure(None)
    # A graph keeps at least as many candidates as results, independent of efSearch.
    least = high = min(k, top) if isinstance(kind, faiss.IndexHNSW) else 1
    while reached(found := measure(high)) < recall and high < top:
        high = min(2 * high, top)
    # If even the largest effort is not enough, take the least with nearly its recall: the last
    # hundredth of a flat curve costs as much as the rest.
    recall = min(recall, reached(found) - 0.01 * (reached(found) < recall))
    low = least - 1 if high == top else max(least - 1, high // 2)
    while high - low > max(1, low // 8):
        middle = (low + high) // 2
        tried = measure(middle)
        if reached(tried) >= recall:
            high, found = middle, tried
        else:
            low = middle
    return found
