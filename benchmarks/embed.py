"""Embedding into a store over the bare forward pass of the same graph.

    python -m benchmarks.embed --model=models.simple [--checkpoint=PREFIX] [--dataset=NAME]

runs the pass of `retrieval.embed` (progress, columns, hashes, store) and, in turns with it, a bare
`make_callable` loop over the same dataset, graph and weights that fetches the embeddings only. Both
are timed from the second batch on: the first prepares graph and dataset, once however many follow.
"""

import statistics
import tempfile
import time

from absl import flags

from trainer import program, quiet


def bare(model, name, checkpoint):
    """(seconds, images) of one pass that does nothing but embed, both without its first batch."""
    import tensorflow as tf

    from trainer import checkpoints

    v1 = tf.compat.v1
    with tf.Graph().as_default() as graph, v1.Session() as session:
        batch = v1.data.make_one_shot_iterator(model.datasets()[name]).get_next()
        outputs = model.build(dict(batch), train_phase=False)
        variables = graph.get_collection(v1.GraphKeys.GLOBAL_VARIABLES)
        checkpoints.restore(session, checkpoint, variables, averages=True)
        step, count = session.make_callable(outputs.embeddings), 0
        step()
        start = time.perf_counter()
        while True:
            try:
                count += len(step())
            except tf.errors.OutOfRangeError:
                return time.perf_counter() - start, count


def stored(model, name, checkpoint):
    """Seconds of one pass into a store, without its first batch."""
    from retrieval.embeddings import images, passes, store
    from retrieval.embeddings.embedder import Embedder

    spec = images.spec_of(model, [name])
    with (
        tempfile.TemporaryDirectory() as folder,
        Embedder.of_experiment(model, checkpoint, spec=spec) as embedder,
    ):
        manifest = store.begin(folder, {})
        parts = passes.batches(embedder, lambda: model.datasets()[name], "embedding")
        first, start = next(parts), time.perf_counter()
        store.append(folder, manifest, store.joined([first, *parts]), 1)
        return time.perf_counter() - start


def main(model, given, rest):
    from trainer import experiment

    _, checkpoint = experiment.locate(model, given, flags.FLAGS.checkpoint)
    ours, least = [], []
    for _ in range(flags.FLAGS.rounds):
        seconds, count = bare(model, flags.FLAGS.dataset, checkpoint)
        least.append(seconds)
        ours.append(stored(model, flags.FLAGS.dataset, checkpoint))
    a, b = statistics.median(ours), statistics.median(least)
    print(f"{count} images: {count / a:.0f}/s stored, {count / b:.0f}/s bare, ratio {b / a:.3f}")
    return 0


if __name__ == "__main__":
    quiet.import_tensorflow()
    flags.DEFINE_string("model", None, "Model module.", short_name="m")
    flags.DEFINE_string("checkpoint", None, "Checkpoint prefix; the experiment's newest if absent.")
    flags.DEFINE_string("dataset", "retrieval_query", "Which of the model's datasets.")
    flags.DEFINE_integer("rounds", 5, "Passes of each.")
    program.run(main)
