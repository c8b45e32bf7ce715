"""Judgments of users: a JSONL file with one judged result per line, and recall computed from it.

A line holds `query` (an item's id, or the hash of a photo), `id` and `product` of the result, its
`rank` and `score`, whether it is `good`, and the `model`, `catalogue`, `version` and `time`.
"""

import json
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from retrieval.evaluation import intervals

FIELDS = {"query": str, "id": str, "good": bool, "rank": int}


def append(path: str | os.PathLike, judgment: Mapping[str, Any] | None = None) -> None:
    """Appends a line to a file atomically: several processes may append to one file.

    Args:
      path: the file; created if it does not exist.
      judgment: a JSON object; None: only check that the file can be written.
    """
    line = json.dumps({"time": round(time.time(), 3), **judgment}) + "\n" if judgment else ""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def read(path: str | os.PathLike) -> list[dict]:
    """Returns the judgments in a file, the last one per result.

    Raises:
      ValueError: a line is not a judgment; the error names it.
    """
    found: dict[tuple, dict] = {}
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                one = json.loads(line)
                if not _is_judgment(one):
                    raise ValueError
            except (ValueError, RecursionError):
                raise ValueError(
                    f"{path}, line {number}: is not a judgment as `prototrain serve --feedback` "
                    "writes it"
                ) from None
            found[one.get("model"), one.get("catalogue"), one["query"], one["id"]] = one
    if not found:
        raise ValueError(f"{path}: holds no judgments")
    return list(found.values())


def _is_judgment(one):
    return (
        isinstance(one, dict)
        and all(type(one.get(name)) is kind for name, kind in FIELDS.items())
        and all(type(one.get(name)) in (str, type(None)) for name in ("model", "catalogue"))
        and one["rank"] >= 1
    )


def figures(judgments: Sequence[Mapping], ks: Sequence[int]) -> list[dict]:
    """Recall by judgments, for each model.

    A query counts as found at k if any result up to rank k was judged good, and as not found if its
    results were only judged bad. Queries without a judgment are not in the file. Users judge only
    some results, so this does not estimate the recall of all queries.

    Args:
      judgments: the result of `read`.
      ks: cut-offs.

    Returns:
      [{'model', 'judgments', 'good', 'queries', 'recall@k', 'interval95'}]; interval95 is a dict of
      the 95% intervals by a bootstrap over queries.
    """
    models: dict[str | None, list] = {}
    for one in judgments:
        models.setdefault(one.get("model"), []).append(one)
    found = []
    for model, some in models.items():
        best: dict[tuple, float] = {}
        for one in some:
            query = one.get("catalogue"), one["query"]
            rank = one["rank"] if one["good"] else np.inf
            best[query] = min(best.get(query, np.inf), rank)
        first = np.array(list(best.values()))
        columns = np.stack([first <= k for k in ks], 1).astype(float)
        drawn = intervals.bootstrap(columns, np.arange(len(first)))
        names = [f"recall@{k}" for k in ks]
        found.append(
            {
                "model": model,
                "judgments": len(some),
                "good": sum(one["good"] for one in some),
                "queries": len(first),
                **dict(zip(names, columns.mean(0).tolist(), strict=True)),
                "interval95": dict(zip(names, intervals.percentiles(drawn), strict=True)),
            }
        )
    return found
