"""What `benchmarks.serve` compares with: an index, photos, and searches without a server."""

import concurrent.futures as futures
import contextlib
import io
import multiprocessing
import os
import time

import numpy as np
from PIL import Image


def photos(folder, count=32):
    """JPEG files: of a folder, or made: smooth noise at 640 x 480."""
    if folder:
        names = sorted(n for n in os.listdir(folder) if n.lower().endswith((".jpg", ".jpeg")))
        return [open(os.path.join(folder, name), "rb").read() for name in names[:count]]
    found = []
    for n in range(count):
        pixels = np.random.default_rng(n).integers(0, 256, (12, 16, 3)).astype(np.uint8)
        out = io.BytesIO()
        Image.fromarray(pixels).resize((640, 480), Image.Resampling.BICUBIC).save(out, "JPEG")
        found.append(out.getvalue())
    return found


def build(folder, count):
    """Writes an index of `count` random items that carries Lite0."""
    import tensorflow as tf

    from models import backbones
    from retrieval.catalogue import index
    from retrieval.embeddings import store
    from retrieval.embeddings.embedder import Embedder

    def graph(session):
        images = tf.compat.v1.placeholder(tf.uint8, [None, 224, 224, 3], "image")
        network = backbones.load("pretrained:efficientnet_lite0")
        features = network.apply(images, False)
        head = np.random.default_rng(1).normal(size=(features.shape[1], 128)).astype(np.float32)
        session.run(tf.compat.v1.global_variables_initializer())
        return {"image": images}, tf.nn.l2_normalize(features @ head, 1)

    source = {"checkpoint_sha256": "benchmark"}
    with Embedder.of_graph(graph, size=(224, 224), channels=3, source=source) as embedder:
        place = os.path.join(folder, "store")
        os.makedirs(place)
        manifest = store.begin(place, source)
        random = np.random.default_rng(0)
        # Products of 20 images: without products, any index must scan everything.
        centers = random.normal(size=(count // 20 + 1, embedder.dimensions))
        for start in range(0, count, 10_000):
            size = min(10_000, count - start)
            ids = np.char.add("item-", np.arange(start, start + size).astype(str))
            near = centers[random.integers(0, len(centers), size)]
            rows = (near + 0.3 * random.normal(size=near.shape)).astype(np.float32)
            store.append(place, manifest, store.Embedded(rows, ids, ids, np.full(size, "")), 1)
        store.finish(place, manifest)
        index.build(place, os.path.join(folder, "index"), "IVF256,Flat", save_model=embedder.save)
    return os.path.join(folder, "index")


class Bare:
    """Embedding and searching without a server, with so many threads of TensorFlow."""

    def __init__(self, index, threads, photos):
        from retrieval.catalogue.opened import Catalogue

        self.catalogue = Catalogue.open(index)
        self.embedder, self.photos = self.catalogue.embedder(threads), photos
        self.pixels = np.stack([self.embedder.decode(photo) for photo in photos])[:8]
        self.forward(1, 0.1)
        self.searches()

    def searches(self):
        """([seconds per query], seconds of processor per query) of all photos."""
        times, begun = [], time.process_time()
        for photo in self.photos:
            start = time.perf_counter()
            vector = self.embedder.run({"image": self.embedder.decode(photo)[None]})
            self.catalogue.results(self.catalogue.find(vector, 10))
            times.append(time.perf_counter() - start)
        return times, (time.process_time() - begun) / len(times)

    def forward(self, lanes, seconds):
        """(images per second, seconds of processor per image) of the model alone, in batches of 8.

        Args:
          lanes: batches at the same time.
          seconds: to run.
        """
        begun, start = time.process_time(), time.perf_counter()

        def lane(_):
            count = 0
            while time.perf_counter() - start < seconds:
                self.embedder.run({"image": self.pixels})
                count += len(self.pixels)
            return count

        with futures.ThreadPoolExecutor(lanes) as pool:
            count = sum(pool.map(lane, range(lanes)))
        took = time.perf_counter() - start
        return count / took, (time.process_time() - begun) / count

    @classmethod
    @contextlib.contextmanager
    def process(cls, *arguments):
        """Yields a function that calls a method, by name, of a `Bare` in a process of its own."""
        fresh = multiprocessing.get_context("spawn")
        with futures.ProcessPoolExecutor(1, fresh, cls._begin, arguments) as pool:
            yield lambda name, *given: pool.submit(cls._call, name, *given).result()

    @classmethod
    def _begin(cls, *arguments):
        cls.made = cls(*arguments)

    @classmethod
    def _call(cls, name, *given):
        return getattr(cls.made, name)(*given)
