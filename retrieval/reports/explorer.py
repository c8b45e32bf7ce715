"""The data of the report's script: queries with their results, and their points on the map."""

import dataclasses

import numpy as np

from retrieval.reports import page, selection
from retrieval.reports.charts import HEIGHT, WIDTH
from trainer import quiet

COLORS = 6  # categories with a separate color on the map
FITTED = 4000  # rows from which the map's axes are computed
FEWEST = 30  # minimum number of points for UMAP
MARGIN = 14


@dataclasses.dataclass(frozen=True)
class Map:
    """The embedding in two dimensions, in units of a chart's view box.

    Attributes:
      method: description of the method.
      keys: meaning of each color; further colors are gray.
      points: [(x, y, color, 'q' for a query or 'i' for an item, its place in the data)].
    """

    method: str
    keys: list[str]
    points: list[tuple]
    width: int = WIDTH
    height: int = int(1.4 * HEIGHT)


def data_of(queries, catalogue, result, chosen, query_images, item_images) -> dict:
    """The listed queries and their items, as the script in `templates/script.js` reads them.

    Args:
      queries, catalogue: `Embedded`.
      result: their `figures.Evaluation`.
      chosen: a `selection.Chosen`.
      query_images, item_images: {id: place of its image}.

    Returns:
      {'items': [[id, product, category, image or -1]],
       'queries': [[id, product, category, image, rank of the relevant item or 0,
                    [[item, score, whether relevant]], [item, score] of the answer or 0]],
       'query_rows', 'item_rows': rows of the sets}.
    """
    # Distances are stored as negative scores, so that larger is nearer.
    sign = -1 if result.figures.similarity == "euclidean" else 1
    found = {q: result.rows[q, : selection.SHOWN].tolist() for q in chosen.listed}
    item_rows = {row for each in found.values() for row in each if row >= 0}
    item_rows |= {chosen.answers[q][0] for q in chosen.listed if q in chosen.answers}
    item_rows = sorted(item_rows)
    place = {row: n for n, row in enumerate(item_rows)}

    def facts(items, row, images):
        texts = items.ids[row], items.products[row], items.categories[row]
        return [*map(page.visible, texts), images.get(str(items.ids[row]), -1)]

    asked = []
    for q, rows in found.items():
        right = catalogue.products[rows] == queries.products[q]
        scores = (sign * result.scores[q, : len(rows)]).tolist()
        results = [
            [place[row], float(f"{score:.5g}"), int(ok)]
            for row, score, ok in zip(rows, scores, right, strict=True)
            if row >= 0
        ]
        answer = chosen.answers.get(q, 0)
        if answer:
            answer = [place[answer[0]], float(f"{answer[1]:.5g}")]
        rank = int(result.ranking.first[q])
        asked.append([*facts(queries, q, query_images), rank, results, answer])
    return {
        "items": [facts(catalogue, row, item_images) for row in item_rows],
        "queries": asked,
        "query_rows": list(found),
        "item_rows": item_rows,
    }


def map_of(queries, catalogue, data, similarity, seed=0) -> Map | None:
    """Draws the listed queries and items in two dimensions; None for fewer than three points.

    Args:
      queries, catalogue: `Embedded`.
      data: the result of `data_of`.
      similarity: 'cosine', 'dot' or 'euclidean'.
      seed: seed for choosing the rows for the axes, and for UMAP.
    """
    rows = [queries.embeddings[data["query_rows"]], catalogue.embeddings[data["item_rows"]]]
    shown = _directions(np.concatenate(rows), similarity)
    if len(shown) < 3:
        return None
    random = np.random.default_rng(seed)
    some = [
        each.embeddings[np.sort(random.permutation(len(each))[: FITTED // 2])]
        for each in (queries, catalogue)
    ]
    places, method = _in_plane(shown, _directions(np.concatenate(some), similarity), seed)
    low, span = places.min(0), np.maximum(np.ptp(places, axis=0), 1e-9)
    size = np.array([WIDTH, int(1.4 * HEIGHT)]) - 2 * MARGIN
    places = MARGIN + (places - low) / span * size
    names = [each[2] for each in (*data["queries"], *data["items"])]
    keys, count = np.unique([name for name in names if name], return_counts=True)
    keys = keys[np.argsort(-count, kind="stable")].tolist()
    if len(keys) > 1:
        keys = keys[:COLORS]
        colors = [keys.index(name) if name in keys else COLORS for name in names]
    else:
        keys = ["query, first result relevant", "query, first result not relevant"]
        colors = [0 if each[4] == 1 else 1 for each in data["queries"]]
        colors += [COLORS] * len(data["items"])
    kinds = [("q", n) for n in range(len(data["queries"]))]
    kinds += [("i", n) for n in range(len(data["items"]))]
    points = [
        (round(float(x), 1), round(float(y), 1), color, kind, n)
        for (x, y), color, (kind, n) in zip(places, colors, kinds, strict=True)
    ]
    return Map(method, keys, points)


def _directions(vectors, similarity):
    """The vectors that the similarity compares: normalized for cosine."""
    vectors = np.asarray(vectors, np.float64)
    if similarity != "cosine":
        return vectors
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)


def _in_plane(shown, fitted, seed):
    """(positions [N, 2] of the rows of `shown`, description of the method)."""
    try:
        with quiet.filtered_stderr():  # it imports TensorFlow if installed
            import umap
    except ImportError:
        umap = None
    if umap and len(shown) >= FEWEST:
        places = umap.UMAP(random_state=seed, n_jobs=1).fit_transform(shown)
        return places, "UMAP: near points are similar"
    center = fitted.mean(0)
    _, lengths, axes = np.linalg.svd(fitted - center, full_matrices=False)
    total = float((lengths**2).sum()) or 1.0
    places = (shown - center) @ axes[:2].T
    if places.shape[1] < 2:
        places = np.pad(places, ((0, 0), (0, 2 - places.shape[1])))
    share = 100 * float((lengths[:2] ** 2).sum()) / total
    return places, f"PCA: these two dimensions hold {share:.0f}% of the variance"
