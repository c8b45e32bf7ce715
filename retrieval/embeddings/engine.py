"""Embedding on a Ray cluster: actors keep the model warm and take shards until all are committed.

Ray only starts and restarts processes. Shards, commits and resuming are those of
`retrieval.embeddings.parts`, so a store that Ray began can be completed by any other scheduler.
"""

import json
import os
import pathlib
import sys
import types

from retrieval.embeddings import images, parts, passes, source
from trainer import commandline, engines

ROOT = str(pathlib.Path(__file__).parents[2])
SHARDS = 4  # per worker, so that none waits long for the last
RESTARTS = 3  # of an actor whose process or machine was lost


def embed(options: dict, model, checkpoint: str | None, workers: int, batches: int) -> None:
    """Embeds a table on Ray and waits; `parts.finish` completes the store.

    Args:
      options: {flag: value} of `retrieval.embed`.
      model: the configured model module; None with a SavedModel.
      checkpoint: prefix, which all machines can read; None with a SavedModel.
      workers: number of actors.
      batches: of the table.

    Raises:
      ValueError: Ray is not installed, or a shard cannot be embedded.
    """
    try:
        import ray
    except ImportError:
        raise ValueError("--engine=ray: pip install 'prototrain[distributed]'") from None

    folder = options["output"]
    of = parts.planned(folder) or max(1, min(batches, SHARDS * workers))
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


class Worker:
    """What an actor holds: the model in a session, and the listing."""

    def __init__(self, options, configured, checkpoint, of, folder):
        os.chdir(folder) if os.path.isdir(folder) else None
        self.options, self.of = options, of
        model = None
        if configured:
            model = commandline.load_model(configured[0])
            model.config.restore(json.loads(configured[1]))
        self.rows = table(types.SimpleNamespace(**options), model)
        self.embedder = source.opened(types.SimpleNamespace(**options), model, checkpoint)

    def fill(self, shard):
        """Embeds a shard; (its number, the embeddings committed)."""
        names = ("on_bad_image", "batch_size", "dtype", "shard_rows")
        how = {name: self.options[name] for name in names}
        where = self.options["output"], self.embedder, shard, self.of
        return shard, passes.embed_shard(self.rows, *where, **how)


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
        raise ValueError(f"--all: {model.__name__} has no table() of its whole data set")
    return rows


def _last_line(error):
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
