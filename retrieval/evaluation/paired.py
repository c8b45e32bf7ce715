"""Two evaluations of the same queries, compared query by query."""

import contextlib
import dataclasses
import json
import os
import re

import numpy as np

from retrieval.evaluation import intervals, verdict
from retrieval.evaluation.backward import Rates
from retrieval.evaluation.figures import Figures
from retrieval.evaluation.records import Record
from trainer import files, filesets, tables

# Files that belong to the figures in `…-eval.json`.
LISTS = ("queries.csv", "top_retrieved.json")


@dataclasses.dataclass(frozen=True)
class Query:
    """A row of `…-queries.csv`. rank: rank of the first relevant item, 0 if unanswerable."""

    product: str
    relevant: str
    rank: int
    average_precision: float


@dataclasses.dataclass(frozen=True)
class Written:
    """An evaluation in files. path: path of the JSON file. queries: {id: row}."""

    path: str
    figures: Figures
    queries: dict[str, Query]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference(Record):
    """A figure in A and in B, and B - A with its 95% confidence interval."""

    a: float
    b: float
    difference: float
    interval: tuple[float, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison(Record):
    """B compared with A, as stored in compare.json.

    Attributes:
      verdict: one sentence about the first result, with the evaluations' names.
      outcome: B is 'better' or 'worse', or why neither, as in `verdict.Verdict`.
      name_a, name_b: short names, see `names_of`.
      a, b: paths of both evaluations.
      num_queries: queries that both can answer.
      num_products: number of products of these queries.
      only_in_a, only_in_b: queries that only one of them can answer.
      unlike: a sentence about how catalogues or similarities differ; '' if they do not.
      difference: {figure: difference} over the shared queries.
      won, lost: ids of queries whose first result is right only in B, or only in A, ordered by the
        change of rank, largest first.
      backward: {figure: rates}, if backward compatibility was evaluated.
    """

    verdict: str
    outcome: str
    name_a: str
    name_b: str
    a: str
    b: str
    num_queries: int
    num_products: int
    only_in_a: int
    only_in_b: int
    unlike: str
    difference: dict[str, Difference]
    won: list[str]
    lost: list[str]
    backward: dict[str, Rates] = dataclasses.field(default_factory=dict)


def load(path) -> Written:
    """Reads one evaluation.

    Args:
      path: an `…-eval.json`, or the folder of an experiment or of results that contains one (the
        newest step is used).

    Raises:
      ValueError: there is no such file, or files are damaged or do not belong together.
    """
    path = os.fspath(path)
    inside = os.path.join(path, "analysis")
    folder = inside if os.path.isdir(inside) else path if os.path.isdir(path) else ""
    with contextlib.suppress(OSError):  # completes the files of a writer that was killed
        filesets.settle(folder or os.path.dirname(path) or ".")
    if folder:
        found = [name for name in os.listdir(folder) if name.endswith("-eval.json")]
        if not found:
            raise ValueError(f"{path}: holds no …-eval.json; run retrieval.eval first")
        newest = max(found, key=lambda name: int((re.findall(r"\d+", name) or [0])[-1]))
        path = os.path.join(folder, newest)
    prefix = path.removesuffix("-eval.json")
    if not os.path.exists(path):
        raise ValueError(f"{path}: there is no such file or folder; run retrieval.eval first")
    if prefix == path:
        raise ValueError(f"{path}: is not an …-eval.json of retrieval.eval")
    data = files.read_sealed(path, set(), "an evaluation")
    try:
        for name in LISTS:
            if files.sha256(f"{prefix}-{name}") != data["sha256"][name]:
                raise ValueError(f"{prefix}-{name} is not the one that was written with it")
        queries = {row["id"]: _query(row) for row in tables.read_csv(f"{prefix}-queries.csv")}
        if len(queries) == data["num_queries"]:
            return Written(path, Figures.from_json(data), queries)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: cannot be read: {type(error).__name__}: {error}") from None
    raise ValueError(
        f"{prefix}-queries.csv: holds {len(queries)} queries, not those of {path}; run that "
        "retrieval.eval again"
    )


def _query(row):
    rank = int(row["rank"] or 0)
    return Query(row["product"], row["relevant"], rank, float(row["average_precision"] or "nan"))


def lists_of(evaluated: Written, wanted) -> dict[str, dict]:
    """Reads {query id: entry of `…-top_retrieved.json`} for the ids in `wanted`, a set."""
    path = evaluated.path.removesuffix("-eval.json") + "-top_retrieved.json"
    found = {}
    try:
        with open(path, encoding="utf-8") as text:
            for line in text:  # one entry per line; reading all at once could take gigabytes
                if line.strip("[]\n"):
                    entry = json.loads(line.strip("\n,").removeprefix("[").removesuffix("]"))
                    if entry["media"] in wanted:
                        found[entry["media"]] = entry
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from None
    missing = sorted(wanted - found.keys())
    if missing:
        raise ValueError(f"{path}: lacks query {missing[0]!r}; run that retrieval.eval again")
    return found


def compare(a: Written, b: Written, replicates=intervals.REPLICATES, seed=0) -> Comparison:
    """Compares B with A over the queries that both can answer.

    Args:
      a, b: evaluations of the same queries, paired by id.
      replicates, seed: number of samples and seed of the bootstrap over products.

    Raises:
      ValueError: they share no such query, or a query has another product in B.
    """
    answered = [{i for i, query in each.queries.items() if query.rank} for each in (a, b)]
    shared = sorted(answered[0] & answered[1])
    if not shared:
        raise ValueError(f"{a.path} and {b.path} share no query that both can answer")
    rows = [[each.queries[i] for i in shared] for each in (a, b)]
    for i, in_a, in_b in zip(shared, *rows, strict=True):
        if in_a.product != in_b.product:
            raise ValueError(f"query {i!r} has another product in {b.path}: the data differ")
    ks = sorted({1} | (a.figures.recall.keys() & b.figures.recall.keys()))
    names = [*(f"recall@{k}" for k in ks), "map@r", "mrr"]
    ranks = [np.array([query.rank for query in each]) for each in rows]
    values = [
        np.stack(
            [*(rank <= k for k in ks), [query.average_precision for query in each], 1 / rank], 1
        ).astype(float)
        for rank, each in zip(ranks, rows, strict=True)
    ]
    change = values[1] - values[0]
    products = np.array([query.product for query in rows[0]])
    drawn = intervals.percentiles(intervals.bootstrap(change, products, replicates, seed))
    means = ([float(column.mean()) for column in each.T] for each in (*values, change))
    difference = {
        name: Difference(a=in_a, b=in_b, difference=d, interval=interval)
        for name, in_a, in_b, d, interval in zip(names, *means, drawn, strict=True)
    }
    first, called = difference["recall@1"], names_of(a.path, b.path)
    count = len(np.unique(products))
    outcome, sentence = verdict.of_pair(
        called, (first.a, first.b), first.difference, first.interval, len(shared), count
    )
    won = (ranks[0] > 1) & (ranks[1] == 1)
    lost = (ranks[0] == 1) & (ranks[1] > 1)
    order = np.argsort(-np.abs(np.log(ranks[0]) - np.log(ranks[1])), kind="stable")
    ids = np.array(shared)[order]
    return Comparison(
        verdict=sentence,
        outcome=outcome,
        name_a=called[0],
        name_b=called[1],
        a=a.path,
        b=b.path,
        num_queries=len(shared),
        num_products=count,
        only_in_a=len(answered[0] - answered[1]),
        only_in_b=len(answered[1] - answered[0]),
        unlike=_unlike(a, b, called, rows),
        difference=difference,
        won=ids[won[order]].tolist(),
        lost=ids[lost[order]].tolist(),
    )


def names_of(a, b) -> tuple[str, str]:
    """Short names of two evaluations: the parts of their paths that differ, experiment first.

    Args:
      a, b: paths of `…-eval.json` files.
    """
    parts = [_parts(path) for path in (a, b)]
    for level in range(max(map(len, parts))):
        shown = tuple(each[min(level, len(each) - 1)] for each in parts)
        if shown[0] != shown[1]:
            # The experiment is the same: add its name.
            prefix = parts[0][0] if level and parts[0][0] == parts[1][0] else ""
            return tuple(f"{prefix} {name}".strip() for name in shown)
    return "A", "B"


def _parts(path):
    """[experiment or folder, prefix of the file, the folders above] of an evaluation's path."""
    *folders, name = os.path.normpath(os.path.abspath(path)).split(os.sep)
    folders = [each for each in folders if each not in ("", "analysis")]
    return [*folders[-1:], name.removesuffix("-eval.json"), *folders[-2::-1]]


def _unlike(a, b, names, rows):
    searched = [
        f"{each.figures.num_catalogue:,} catalogue items by {each.figures.similarity}"
        for each in (a, b)
    ]
    if searched[0] != searched[1]:
        return (
            f"{names[0]} searched {searched[0]}, {names[1]} {searched[1]}: part of the difference "
            "comes from that."
        )
    if any(in_a.relevant != in_b.relevant for in_a, in_b in zip(*rows, strict=True)):
        return (
            f"{names[0]} and {names[1]} searched different catalogues: part of the difference "
            "comes from that."
        )
    return ""
