"""A complete evaluation in one call: figures, baselines, an index, re-ranking."""

import dataclasses

import faiss

from retrieval.evaluation import baselines, figures, index_loss, inputs, rejection, rerank, verdict


def evaluate(
    queries,
    catalogue=None,
    *,
    source=None,
    title="embeddings",
    with_baselines=False,
    index=None,
    reranking=(),
    threads=None,
    **options,
) -> dict[str, figures.Evaluation]:
    """Evaluates queries against a catalogue, with all requested additions.

    Args:
      queries: `Embedded`.
      catalogue: `Embedded`; None: each query is searched among the others.
      source: the `figures.Source` or `figures.Files` to report.
      title: the name of this evaluation among the results.
      with_baselines: also evaluate the baselines, see `baselines.pairs`.
      index: a FAISS factory, 'auto' or the folder of an index to evaluate too, or None.
      reranking: names from `rerank.METHODS` to evaluate too.
      threads: number of threads; None for all cores.
      **options: see `figures.evaluate`.

    Returns:
      {title: evaluation}, the baselines last. The figures of the first include all others.

    Raises:
      ValueError: the sets do not fit together, or an option does not apply to them.
    """
    unknown = [name for name in reranking if name not in rerank.METHODS]
    if unknown:
        raise ValueError(f"--rerank={unknown[0]}: takes any of {', '.join(rerank.METHODS)}")
    if reranking and options.get("similarity", "cosine") != "cosine":
        raise ValueError("--rerank works with --similarity=cosine only")
    if threads:
        faiss.omp_set_num_threads(threads)  # FAISS takes one thread per core unless told otherwise
    options["threads"] = threads
    result = figures.evaluate(queries, catalogue, **options)
    others = {}
    for name, *pair in baselines.pairs(queries, catalogue) if with_baselines else ():
        others[name] = figures.evaluate(*pair, **options | {"similarity": "cosine"})
    titled = {baselines.TITLES[name]: other for name, other in others.items()}
    items = queries if catalogue is None else catalogue
    answerable = result.ranking.answerable
    first = {name: each.ranking.first[answerable] == 1 for name, each in titled.items()}
    complete = dataclasses.replace(
        result.figures,
        verdict=verdict.of_model(
            result.ranking.first[answerable] == 1,
            queries.products[answerable],
            first,
            untrained=getattr(source, "step", None) == 0,
        ),
        source=source,
        rejection=rejection.of(queries, items, result),
        index=index_loss.losses(queries, items, result, index) if index else None,
        rerank=rerank.compare(queries, items, result, reranking) if reranking else {},
        **{name: other.figures for name, other in others.items()},
    )
    return {title: dataclasses.replace(result, figures=complete)} | titled


def evaluate_files(queries, catalogue, paths, **options) -> figures.Evaluation:
    """Evaluates two sets that were read from files.

    Args:
      queries: `Embedded`.
      catalogue: `Embedded`; None: each query is searched among the others.
      paths: the paths of both, (queries, catalogue or None).
      **options: see `evaluate`.
    """
    made_by = [figures.Source(**made) for made in inputs.made_by(paths)]
    source = figures.Files(queries=paths[0], catalogue=paths[1], made_by=made_by)
    (result,) = evaluate(queries, catalogue, source=source, **options).values()
    return result
