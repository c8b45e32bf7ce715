"""From a query to results: decode, embed and search, each in threads of its own, and timed."""

import asyncio
import concurrent.futures
import contextlib
import functools
import hashlib
import os
import time

import faiss

from metriclearn.datasets import image_files
from retrieval.serve import schemas
from retrieval.serve.batching import Batcher
from retrieval.serve.limits import Limits, Queue
from retrieval.serve.metrics import Metrics
from retrieval.serve.served import Served, Shelf


class Searcher:
    """The catalogues of a server and the threads that serve them.

    One thread calls each model, since a second call would share the same cores or the same GPU. The
    others decode images and search: TensorFlow and FAISS release Python's lock. FAISS gets one
    thread per search, because a single query gains little from more.

    Attributes:
      shelves: {name: Shelf}; the first is the default.
      queue: admits requests.
      ready: whether requests are answered: after the start, until the end begins.
    """

    def __init__(self, shelves: list[Shelf], limits: Limits, metrics: Metrics, threads: int = 0):
        self.shelves = {shelf.name: shelf for shelf in shelves}
        self.limits, self.metrics = limits, metrics
        self.queue = Queue(limits.queue, metrics)
        self.ready = False
        self._pool = concurrent.futures.ThreadPoolExecutor(
            threads or os.cpu_count(), "search", lambda: faiss.omp_set_num_threads(1)
        )
        self._devices = [concurrent.futures.ThreadPoolExecutor(1, "device") for _ in shelves]
        self._watching = concurrent.futures.ThreadPoolExecutor(1, "watch")
        self._batchers, self._tasks = {}, []

    @contextlib.asynccontextmanager
    async def running(self):
        """Serves and watches for new versions while the block runs."""
        for (name, shelf), device in zip(self.shelves.items(), self._devices, strict=True):
            self._batchers[name] = Batcher(
                functools.partial(self._embed, shelf.current.embedder),
                device,
                largest=self.limits.batch,
                wait=self.limits.wait,
                observe=self.metrics.batches.observe,
            )
            self._tasks.append(asyncio.create_task(shelf.watch(self._watching)))
        self.ready = True
        try:
            yield
        finally:
            self.ready = False
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            for batcher in self._batchers.values():
                await batcher.close()
            for pool in (self._pool, self._watching, *self._devices):
                pool.shutdown(wait=False)

    def reload(self) -> None:
        """Looks for new versions now, also for such as were refused."""
        for shelf in self.shelves.values():
            self._watching.submit(shelf.refresh, again=True)

    def served(self, catalogue: str = "") -> Served:
        """What is served now of a catalogue, the first by default; Refused if there is none."""
        shelf = self.shelves.get(catalogue or next(iter(self.shelves)))
        if shelf is None:
            raise schemas.Refused(404, "catalogue", f"there is no catalogue {catalogue!r}")
        return shelf.current

    async def thread(self, function, *arguments, **options):
        """Calls a function in one of the threads."""
        call = functools.partial(function, *arguments, **options)
        return await asyncio.get_running_loop().run_in_executor(self._pool, call)

    async def embed(self, served: Served, file):
        """The SHA-256 of an image in a file object, in hexadecimal, and its embedding float32 [D].

        Raises:
          Refused: it cannot be read as an image.
        """
        digest = hashlib.sha256()
        decode = self.thread(self._decode, served.embedder, file, digest)
        vector = await self._batchers[served.name].embed(decode)
        return digest.hexdigest(), vector

    async def embed_text(self, served: Served, text: str):
        """The embedding float32 [D] of words.

        Raises:
          Refused: the model has no text tower.
        """
        if served.texts is None:
            missing = served.catalogue.why_no_texts() or "the server lacks a library for texts"
            raise schemas.Refused(422, "query", missing)
        return (await self.thread(self._timed, "embed", served.texts.embed, [text]))[0]

    async def search(self, served: Served, query, k, **options):
        """As `Served.search`, in a thread."""
        return await self.thread(self._timed, "search", served.search, query, k, **options)

    def _embed(self, embedder, images):
        return self._timed("embed", embedder.run, {"image": images})

    def _decode(self, embedder, file, digest):
        content = file.read()
        digest.update(content)
        try:
            return self._timed("decode", self._pixels, embedder, content)
        except ValueError as error:
            raise schemas.Refused(422, "image", str(error)) from None

    def _pixels(self, embedder, content):
        image_files.check(content, self.limits.pixels)  # the model's own limit may be larger
        return embedder.decode(content)

    def _timed(self, stage, function, *arguments, **options):
        start = time.perf_counter()
        try:
            return function(*arguments, **options)
        finally:
            self.metrics.stages.labels(stage).observe(time.perf_counter() - start)
