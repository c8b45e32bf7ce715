"""The work of `retrieval.embed`: in one process, in shards, and on a Ray cluster.

On Ray, actors keep the model loaded and embed shards until all are committed. Ray only starts and
restarts processes. Shards, commits and resuming are implemented in `retrieval.embeddings.parts`, so
any other scheduler can complete a store that Ray began.
"""

import json
import os
import pathlib
import sys
import types

from retrieval.embeddings import images, parts, passes, source
from trainer import commandline, engines

ROOT = str(pathlib.Path(__file__).parents[2])
SHARDS = 4  # per worker, so that workers finish at about the same time
RESTARTS = 3  # restarts of an actor whose process or machine was lost


class Work:
    """The images and the model, in a session, that the flags of `retrieval.embed` name.

    A context manager that closes the session.

    Attributes:
      rows: the ProductTable to embed; None for a dataset of the model.
    """

    def __init__(self, options, model, checkpoint):
        self._options, self._model = options, model
        self.rows, spec = table(options, model), None
        if self.rows is None and checkpoint:
            spec = images.spec_of(model, [options.dataset])
        self._embedder = source.opened(options, model, checkpoint, spec)

    def whole(self) -> dict:
        """Embeds all images in this process; returns the manifest of the store."""
        if self.rows is None:
            return passes.embed_to_store(*self._of_dataset(), **self._how())
        return passes.embed_table(*self._of_table(), **self._how())

    def shard(self, shard, of) -> int:
        """Embeds a shard; returns the number of embeddings committed."""
        if self.rows is None:
            return passes.embed_dataset_shard(*self._of_dataset(), shard, of, **self._how())
        return passes.embed_shard(*self._of_table(), shard, of, **self._how())

    def _of_dataset(self):
        return self._model, self._options.dataset, self._options.output, self._embedder

    def _of_table(self):
        return self.rows, self._options.output, self._embedder

    def _how(self):
        names = ["dtype", "shard_rows"]
        names += ["on_bad_image", "batch_size"] if self.rows is not None else []
        return {name: getattr(self._options, name) for name in names}

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._embedder.close()


def embed(options: dict, model, checkpoint: str | None, workers: int) -> None:
    """Embeds on Ray and waits; `parts.finish` completes the store.

    Args:
      options: {flag: value} of `retrieval.embed`.
      model: the configured model module; None with a SavedModel.
      checkpoint: prefix that all machines can read; None with a SavedModel.
      workers: number of actors.

    Raises:
      ValueError: Ray is not installed, or a shard cannot be embedded.
    """
    try:
        import ray
    except ImportError:
        raise ValueError("--engine=ray: pip install 'prototrain[distributed]'") from None

    of = parts.planned(options["output"])
    if not of:
        rows = table(types.SimpleNamespace(**options), model)
        if rows is None:
            batches, _ = images.extent(model, options["dataset"])
        else:
            batches = -(-len(rows) // options["batch_size"])
        of = max(1, min(batches, SHARDS * workers))
    configured = model and (model.__name__, model.config.to_json())
    path = os.pathsep.join([ROOT, os.getcwd(), os.environ.get("PYTHONPATH", "")])
    # Ray sets OMP_NUM_THREADS and, since it imports Keras first, TF_USE_LEGACY_KERAS.
    environment = {"PYTHONPATH": path.rstrip(os.pathsep), "TF_USE_LEGACY_KERAS": ""}
    begun = engines.connect_ray(log_to_driver=False)
    try:
        from ray.util import ActorPool

        actor = ray.remote(num_cpus=1, max_restarts=RESTARTS, max_task_retries=RESTARTS)(Worker)
        actor = actor.options(runtime_env={"env_vars": environment})
        arguments = (options, configured, checkpoint, of, os.getcwd())
        pool = ActorPool([actor.remote(*arguments) for _ in range(min(workers, of))])
        results = pool.map_unordered(lambda worker, shard: worker.fill.remote(shard), range(of))
        for done, (shard, count) in enumerate(results, 1):
            print(f"shard {shard}/{of}: {count} embeddings ({done} done)", file=sys.stderr)
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None)
        reason = cause if isinstance(cause, ValueError | OSError) else _last_line(error)
        raise ValueError(f"--engine=ray: {reason}") from error
    finally:
        if begun:
            ray.shutdown()


class Worker(Work):
    """The state of an actor."""

    def __init__(self, options, configured, checkpoint, of, folder):
        os.chdir(folder) if os.path.isdir(folder) else None
        model = None
        if configured:
            model = commandline.load_model(configured[0])
            model.config.restore(json.loads(configured[1]))
        super().__init__(types.SimpleNamespace(**options), model, checkpoint)
        self._of = of

    def fill(self, shard):
        """Embeds a shard; returns (its number, the number of embeddings committed)."""
        return shard, self.shard(shard, self._of)


def table(options, model):
    """The ProductTable that the flags of `retrieval.embed` name; None for a model's data set.

    Raises:
      ValueError: see `images.table`; --all, and the model has no table.
    """
    if options.folder or options.manifest:
        return images.table(options.folder, options.manifest, options.where, options.columns)
    if not options.all:
        return None
    rows = source.catalogue_of(model, options.where)
    if rows is None:
        raise ValueError(f"--all: {model.__name__} has no table() that lists its data set")
    return rows


def _last_line(error):
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
