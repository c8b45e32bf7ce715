"""Embedding image files into a store, beside the forward pass alone and what bounds both.

    python -m benchmarks.embed [--network=pretrained:efficientnet_lite0] [--photos=FOLDER]

runs, in turns:

    pass           the network over decoded batches that are in memory, on all cores
    decode         the input pipeline over the same files, whose batches nobody uses
    side by side   both at once, in two threads, until both have ended: what an embedding that
                   decodes on the same cores can reach
    embed          `prototrain embed` of the files: hashes, columns and the store, too

Each counts from its second batch on, since the first prepares the graph. With
`--network=keras:keras.applications:ResNet50` the weights are random. Without --photos, the images
are smooth noise at 640 x 480.
"""

import argparse
import os
import statistics
import tempfile
import threading
import time

import numpy as np

from benchmarks.bare_search import photos
from trainer import quiet

SIZE = 224


def embedder_of(network):
    """An `Embedder` of a network without a head."""
    import tensorflow as tf

    from models import backbones
    from retrieval.embeddings.embedder import Embedder

    def graph(session):
        images = tf.compat.v1.placeholder(tf.uint8, [None, SIZE, SIZE, 3], "image")
        features = backbones.load(network).apply(images, False)
        session.run(tf.compat.v1.global_variables_initializer())
        return {"image": images}, features

    return Embedder.of_graph(graph, size=(SIZE, SIZE), channels=3, source={"network": network})


def write(folder, source, count):
    """Writes `count` JPEG files and returns their table."""
    from retrieval.embeddings import images

    found = photos(source)
    for n in range(count):
        with open(os.path.join(folder, f"{n:06d}.jpg"), "wb") as out:
            out.write(found[n % len(found)])
    return images.table(folder)


class Case:
    """What is timed; every method returns images/s."""

    def __init__(self, embedder, rows, batch_size):
        self.embedder, self.rows, self.batch_size = embedder, rows, batch_size
        self.pixels = next(self._batches())["image"]
        self.count = len(rows) // batch_size - 1  # batches after the first
        self.run()

    def _batches(self):
        from retrieval.embeddings import images

        def make():
            return images.of_table(self.rows, self.embedder.size, 3, self.batch_size)

        with images.opened(make, "decoding", keys=("image",)) as found:
            yield from found

    def _rate(self, start):
        return self.count * self.batch_size / (time.perf_counter() - start)

    def run(self):
        """pass"""
        start = time.perf_counter()
        for _ in range(self.count):
            self.embedder.run({"image": self.pixels})
        return self._rate(start)

    def decode(self):
        """decode"""
        batches = self._batches()
        next(batches)
        start = time.perf_counter()
        for _ in batches:
            pass
        return self._rate(start)

    def side_by_side(self):
        """side by side"""
        batches = self._batches()
        next(batches)
        start = time.perf_counter()
        decoding = threading.Thread(target=lambda: [None for _ in batches])
        decoding.start()
        self.run()
        decoding.join()
        return self._rate(start)

    def embed(self):
        """embed"""
        from retrieval.embeddings import passes, store

        times = []
        real, self.embedder.run = (
            self.embedder.run,
            lambda batch: times.append(time.perf_counter()) or real(batch),
        )
        try:
            with tempfile.TemporaryDirectory() as folder:
                how = {"batch_size": self.batch_size}
                passes.embed_table(self.rows, os.path.join(folder, "s"), self.embedder, **how)
                end = time.perf_counter()
                assert store.is_complete(os.path.join(folder, "s"))
        finally:
            del self.embedder.run
        return self.count * self.batch_size / (end - times[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="pretrained:efficientnet_lite0")
    parser.add_argument("--photos", default="", help="a folder of JPEG files")
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    quiet.import_tensorflow()
    with tempfile.TemporaryDirectory() as folder, embedder_of(options.network) as embedder:
        case = Case(embedder, write(folder, options.photos, options.images), options.batch_size)
        timed = (case.run, case.decode, case.side_by_side, case.embed)
        rounds = [[each() for each in timed] for _ in range(options.rounds)]
    for each, rates in zip(timed, zip(*rounds, strict=True), strict=True):
        print(f"{each.__doc__:12s} {statistics.median(rates):8.1f} images/s")
    alone, _, bound, ours = np.array(rounds).T
    print(
        f"{options.network}: embed keeps {np.median(ours / alone):.3f} of the pass and "
        f"{np.median(ours / bound):.3f} of both side by side"
    )


if __name__ == "__main__":
    main()
