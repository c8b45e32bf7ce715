"""Evaluation from Python, in a script or a notebook:

import retrieval

report = retrieval.evaluate(run)                       # a run of `trainer.train`
report = retrieval.evaluate((vectors, labels), (items, item_labels))
print(report.figures.recall[1])
report                                                 # a notebook shows verdict and table
"""

import contextlib
import dataclasses
import html
import os
import tempfile
import webbrowser
from collections.abc import Sequence
from typing import Any

import numpy as np

from retrieval.embeddings.store import Embedded
from retrieval.evaluation import figures, suite
from retrieval.evaluation.figures import Figures
from retrieval.ranking import counting
from retrieval.reports import outputs, page, projector


@dataclasses.dataclass(frozen=True, repr=False)
class Report:
    """The results of an evaluation.

    Attributes:
      results: {title: `figures.Evaluation`}; the first is the model's, the others are baselines.
      path: the HTML report, None if none was written.
    """

    results: dict[str, figures.Evaluation]
    path: str | None

    @property
    def figures(self) -> Figures:
        """The model's figures."""
        return next(iter(self.results.values())).figures

    def rows(self) -> dict[str, dict[str, float]]:
        """{title: {'recall@1': …, 'MAP@R': …}}, the model first."""
        return {
            title: {f"recall@{k}": rate for k, rate in each.figures.recall.items()}
            | {"MAP@R": each.figures.map_at_r}
            for title, each in self.results.items()
        }

    def to_frame(self) -> Any:
        """Returns `rows` as a pandas DataFrame, one row per title; needs pandas."""
        import pandas

        return pandas.DataFrame.from_dict(self.rows(), orient="index")

    def show(self) -> None:
        """Opens the HTML report in a browser.

        Raises:
          ValueError: no report was written.
        """
        if self.path is None:
            raise ValueError("no report was written: evaluate(…, output=FOLDER) writes one")
        webbrowser.open(f"file://{os.path.abspath(self.path)}")

    def __repr__(self) -> str:
        return f"Report(path={self.path and _nearby(self.path)!r})"

    def _repr_html_(self) -> str:
        rows = self.rows()
        names = next(iter(rows.values()))
        head = "".join(f"<th>{name}</th>" for name in ("", *names))
        body = "".join(
            f"<tr><th>{html.escape(title)}</th>"
            + "".join(f"<td>{rate:.3f}</td>" for rate in rates.values())
            + "</tr>"
            for title, rates in rows.items()
        )
        verdict = html.escape(self.figures.verdict.sentence if self.figures.verdict else "")
        where = f"<p>Report: {html.escape(_nearby(self.path))}</p>" if self.path else ""
        return f"<p><b>{verdict}</b></p><table><tr>{head}</tr>{body}</table>{where}"


def _nearby(path):
    """The path relative to the current folder, if below it: the same on any machine."""
    near = os.path.relpath(path)
    return path if near.startswith(os.pardir) else near


def evaluate(
    queries: Any, catalogue: Any = None, *, output: str | os.PathLike | None = None, **options: Any
) -> Report:
    """Evaluates a trained model, or embeddings from any program.

    Args:
      queries: a `trainer.Run`, whose best checkpoint is evaluated on the model's test data; or
        embeddings as `Embedded` or (float [N, D], labels [N]) or (…, ids [N]).
      catalogue: embeddings to search, in the same forms; None: each query is searched among the
        others.
      output: folder for the report and the figures. Default: `analysis` in the run's folder; for
        embeddings, no report is written.
      **options: similarity, ks, top and others, see `retrieval.evaluation.suite.evaluate`.

    Returns:
      The report.

    Raises:
      ValueError: arrays do not fit together, the run has no test data, or an option is unknown.
    """
    if hasattr(queries, "folder") and hasattr(queries, "model"):
        if catalogue is not None:
            raise ValueError("a run is evaluated on its own catalogue: do not give another")
        return _of_run(queries, output, options)
    asking, items = _embedded(queries, "queries"), _embedded(catalogue, "catalogue")
    if items is not None and items.embeddings.shape[1] != asking.embeddings.shape[1]:
        raise ValueError(
            f"queries have {asking.embeddings.shape[1]} dimensions, the catalogue "
            f"{items.embeddings.shape[1]}: embed both with one model"
        )
    given = "embeddings from Python"
    source = figures.Files(
        queries=given, catalogue=given if items is not None else None, made_by=[]
    )
    results = suite.evaluate(asking, items, source=source, **options)
    path = None
    if output is not None:
        prefix = os.path.join(os.fspath(output), "embeddings")
        os.makedirs(output, exist_ok=True)
        outputs.write_stored(
            prefix, next(iter(results.values())), asking, asking if items is None else items
        )
        path = f"{prefix}-report.html"
    return Report(results, path)


def _of_run(run, output, options):
    from trainer import checkpoints, experiment

    best = os.path.join(run.folder, "checkpoint", "best")
    checkpoint = checkpoints.latest(best) or checkpoints.latest(os.path.dirname(best))
    if checkpoint is None:
        raise ValueError(f"{run.folder} contains no checkpoint")
    with _configured(run.model, experiment, run.folder):
        folder = os.path.join(run.folder, "analysis") if output is None else os.fspath(output)
        results, prefix = evaluate_model(run.model, checkpoint, folder, **options)
    return Report(results, f"{prefix}-report.html")


@contextlib.contextmanager
def _configured(model, experiment, folder):
    """Gives a model the configuration of an experiment, and restores the model's at the end."""
    before = dict(model.config._values)
    try:
        experiment.restore_config(model, (), folder)
        yield
    finally:
        model.config._values.clear()
        model.config._values.update(before)


def evaluate_model(
    model: Any,
    checkpoint: str,
    folder: str,
    *,
    drawn: Sequence[str] = outputs.PLOTS,
    threads: int = 0,
    **options: Any,
) -> tuple[dict[str, figures.Evaluation], str]:
    """Evaluates a configured model on its `retrieval_query` and `retrieval_index`, and reports.

    Args:
      model: a model module with the configuration of its experiment.
      checkpoint: prefix of the checkpoint.
      folder: folder for the report.
      drawn: which of `outputs.PLOTS` to draw.
      threads: 0 for one per core.
      **options: see `suite.evaluate`.

    Returns:
      ({title: `figures.Evaluation`}, the prefix of the files written).
    """
    from retrieval.embeddings import images as embedded_images
    from retrieval.embeddings import passes
    from trainer import checkpoints

    step = checkpoints.step_of(checkpoint)
    os.makedirs(folder, exist_ok=True)
    prefix = os.path.join(folder, f"model-{step}")
    names = {"queries": "retrieval_query", "catalogue": "retrieval_index"}
    found = passes.embed_datasets(model, tuple(names.values()), checkpoint, threads=threads)
    queries, catalogue = (found[name] for name in names.values())

    def images(which, ids):
        items = queries if which == "queries" else catalogue
        known = page.images_at(page.own_files(items, ids))
        missing = [name for name in ids.tolist() if name not in known]
        return known | (embedded_images.wanted_of(model, names[which], missing) if missing else {})

    source = figures.Source(checkpoint=checkpoint, step=step, model=model.__name__)
    options = {"title": "this model", "with_baselines": True, "source": source} | options
    results = suite.evaluate(queries, catalogue, threads=threads or counting.cores(), **options)
    outputs.write(prefix, results, queries, catalogue, images, drawn)
    _write_projector(f"{prefix}-projector", queries, catalogue)
    return results, prefix


def evaluate_texts(
    model: Any,
    checkpoint: str,
    folder: str,
    path: str,
    *,
    drawn: Sequence[str] = outputs.PLOTS,
    threads: int = 0,
    **options: Any,
) -> tuple[dict[str, figures.Evaluation], str]:
    """Evaluates texts against a configured model's `retrieval_index`, and reports.

    Args:
      path: CSV of the columns text and label.
      model, checkpoint, folder, drawn, threads, **options: as for `evaluate_model`.

    Returns:
      As `evaluate_model`.

    Raises:
      ValueError: the model has no text tower, or the file cannot be read.
    """
    from retrieval.embeddings import images as embedded_images
    from retrieval.embeddings import passes, texts
    from trainer import checkpoints

    tower = model.texts() if callable(getattr(model, "texts", None)) else None
    if tower is None:
        raise ValueError(f"--text_queries: {model.__name__} has no text tower as configured")
    texts.read_queries(path)  # fails before the catalogue is embedded
    found = passes.embed_datasets(model, ("retrieval_index",), checkpoint, threads=threads)
    catalogue = found["retrieval_index"]
    with tempfile.TemporaryDirectory() as at:
        tower.save(os.path.join(at, texts.FOLDER))
        with texts.TextEmbedder.load(at, threads) as embedder:
            queries = texts.embed_queries(path, embedder)

    def images(which, ids):
        if which == "queries":
            return {}
        known = page.images_at(page.own_files(catalogue, ids))
        missing = [name for name in ids.tolist() if name not in known]
        wanted = embedded_images.wanted_of
        return known | (wanted(model, "retrieval_index", missing) if missing else {})

    step = checkpoints.step_of(checkpoint)
    os.makedirs(folder, exist_ok=True)
    prefix = os.path.join(folder, f"model-{step}-texts")
    source = figures.Source(checkpoint=checkpoint, step=step, model=model.__name__)
    results = suite.evaluate(
        queries,
        catalogue,
        title="texts",
        source=source,
        threads=threads or counting.cores(),
        **options,
    )
    outputs.write(prefix, results, queries, catalogue, images, drawn)
    return results, prefix


def _write_projector(folder, queries, catalogue):
    """Writes the projector's files and marks the folder as a run, which TensorBoard then finds."""
    import tensorflow as tf

    projector.write(folder, queries, catalogue)
    if not any(name.startswith("events.") for name in os.listdir(folder)):
        v1 = tf.compat.v1
        with tf.Graph().as_default():
            writer = v1.summary.FileWriter(folder)
            writer.add_session_log(v1.SessionLog(status=v1.SessionLog.START), 0)
            writer.close()


def _embedded(given, name):
    """The `Embedded` of a caller's argument; None stays None."""
    if given is None or isinstance(given, Embedded):
        return given
    if not isinstance(given, tuple) or len(given) not in (2, 3):
        raise ValueError(f"{name}: give (embeddings, labels) or (embeddings, labels, ids)")
    vectors, labels, *ids = (np.asarray(part) for part in given)
    if vectors.ndim != 2 or vectors.dtype.kind != "f":
        raise ValueError(f"{name}: embeddings are {vectors.dtype} {list(vectors.shape)}, not float "
                         "[rows, dimensions]")  # fmt: skip
    count = len(vectors)
    labels = labels.reshape(-1) if labels.shape == (count, 1) else labels
    ids = ids[0] if ids else np.array([f"{name}-{n}" for n in range(count)])
    for what, values in (("labels", labels), ("ids", ids)):
        if values.shape != (count,):
            raise ValueError(f"{name}: {what} have shape {list(values.shape)}, not [{count}]")
    return Embedded(vectors, ids.astype(str), labels.astype(str), np.full(count, ""))
