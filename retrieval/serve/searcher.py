"""From a query to results: decode, embed and search, each in threads of its own, and timed."""

import asyncio
import concurrent.futures
import contextlib
import functools
import hashlib
import time

import faiss

from metriclearn.datasets import image_files
from retrieval.ranking.counting import cores
from retrieval.serve import schemas
from retrieval.serve.batching import Batcher
from retrieval.serve.limits import Limits, Queue
from retrieval.serve.metrics import Metrics
from retrieval.serve.served import Served, Shelf


class Searcher:
    """The catalogues of a server and the threads that serve them.

    With batches, one thread calls each model, since a second call would share the same cores or the
    same GPU, and others decode. Without, each thread decodes and embeds one image after another, by
    a model that uses one core per call: no core waits for another between two layers. Further
    threads search: TensorFlow and FAISS release Python's lock. FAISS gets one thread per search,
    because a single query gains little from more.

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
        threads = threads or cores()
        self._pool = concurrent.futures.ThreadPoolExecutor(
            threads, "search", lambda: faiss.omp_set_num_threads(1)
        )
        calls = threads if limits.batch == 1 else 1
        self._devices = {
            name: concurrent.futures.ThreadPoolExecutor(calls, "device") for name in self.shelves
        }
        self._watching = concurrent.futures.ThreadPoolExecutor(1, "watch")
        self._batchers, self._tasks = {}, []

    @contextlib.asynccontextmanager
    async def running(self):
        """Serves and watches for new versions while the block runs."""
        for name, shelf in self.shelves.items():
            if self.limits.batch > 1:
                self._batchers[name] = Batcher(
                    functools.partial(self._embed, shelf.current.embedder),
                    self._devices[name],
                    largest=self.limits.batch,
                    wait=self.limits.wait,
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
            for pool in (self._pool, self._watching, *self._devices.values()):
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

    async def thread(self, function, *arguments, pool=None, **options):
        """Calls a function in one of the threads, of the pool that searches by default."""
        call = functools.partial(function, *arguments, **options)
        return await asyncio.get_running_loop().run_in_executor(pool or self._pool, call)

    async def embed(self, served: Served, file):
        """The SHA-256 of an image in a file object, in hexadecimal, and its embedding float32 [D].

        Raises:
          Refused: it cannot be read as an image.
        """
        digest = hashlib.sha256()
        one = served.embedder, file, digest
        if self._batchers:
            vector = await self._batchers[served.name].embed(self.thread(self._decode, *one))
        else:
            vector = await self.thread(self._vector, *one, pool=self._devices[served.name])
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

    def _vector(self, embedder, file, digest):
        return self._embed(embedder, self._decode(embedder, file, digest)[None])[0]

    def _embed(self, embedder, images):
        self.metrics.batches.observe(len(images))
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
