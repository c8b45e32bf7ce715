"""From a query to results: decode, embed and search, each in threads of its own, and timed."""

import asyncio
import concurrent.futures
import contextlib
import functools
import hashlib
import time

import faiss
import numpy as np

from metriclearn.datasets import image_files
from retrieval.ranking.counting import cores
from retrieval.serve import schemas
from retrieval.serve.batching import Batcher
from retrieval.serve.limits import Limits, Queue
from retrieval.serve.metrics import Metrics
from retrieval.serve.served import Served, Shelf


class Searcher:
    """The catalogues of a server and the threads that serve them.

    On a GPU one thread calls each model, since a second call would share the device, and others
    decode and search. On a CPU each thread decodes, embeds and searches the queries of a batch of
    its own, by a model that uses one core per call: no core waits for another between two layers.
    Only a query that is alone gets all cores. TensorFlow and FAISS release Python's lock. FAISS
    gets one thread per search, because a single query gains little from more.

    Attributes:
      shelves: {name: Shelf}; the first is the default.
      queue: admits requests.
      ready: whether requests are answered: after the start, until the end begins.
    """

    def __init__(
        self, shelves: list[Shelf], limits: Limits, metrics: Metrics, threads: int = 0,
        gpu: bool = False,
    ):  # fmt: skip
        self.shelves = {shelf.name: shelf for shelf in shelves}
        self.limits, self.metrics = limits, metrics
        self.queue = Queue(limits.queue, metrics)
        self.ready = False
        self._gpu, threads = gpu, threads or cores()
        pool = functools.partial(
            concurrent.futures.ThreadPoolExecutor, initializer=lambda: faiss.omp_set_num_threads(1)
        )
        self._pool = pool(threads, "search")
        self._calls = 1 if gpu else threads
        self._devices = {name: pool(self._calls, "device") for name in self.shelves}
        self._watching = concurrent.futures.ThreadPoolExecutor(1, "watch")
        self._batchers, self._tasks = {}, []

    @contextlib.asynccontextmanager
    async def running(self):
        """Serves and watches for new versions while the block runs."""
        for name, shelf in self.shelves.items():
            for kind, run in _models(shelf.current).items():
                lone = _of_images(shelf.current.alone) if kind == "image" else None
                if self._gpu:
                    work = functools.partial(self._embed, run)
                else:
                    work = functools.partial(self._answers, run, lone or run)
                self._batchers[name, kind] = Batcher(
                    work,
                    self._devices[name],
                    largest=self.limits.batch,
                    wait=self.limits.wait,
                    calls=self._calls,
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

    async def image(self, served: Served, file, then=None):
        """Embeds an image.

        Args:
          served: what embeds it.
          file: file object.
          then: called with the embedding in a thread, None for nothing.

        Returns:
          (SHA-256 of the file, in hexadecimal; the embedding float32 [D], or what `then` returned).

        Raises:
          Refused: it cannot be read as an image; what `then` raises.
        """
        digest = hashlib.sha256()
        prepare = functools.partial(self._decode, served.embedder, file, digest)
        found = await self._embedded(served, "image", prepare, then)
        return digest.hexdigest(), found

    async def text(self, served: Served, text: str, then=None):
        """Embeds words: the embedding float32 [D], or what `then` returned; as `image`.

        Raises:
          Refused: the model has no text tower; what `then` raises.
        """
        if served.texts is None:
            missing = served.catalogue.why_no_texts() or "the server lacks a library for texts"
            raise schemas.Refused(422, "query", missing)
        return await self._embedded(served, "text", lambda: text, then)

    def finder(self, served: Served, k: int, **options):
        """A function of a query that calls `Served.search`, for `thread`, `image` or `text`."""
        return functools.partial(self._timed, "search", served.search, k=k, **options)

    async def _embedded(self, served, kind, prepare, then):
        """What `then` makes of the embedding of what `prepare` returns, both called in threads."""
        batcher = self._batchers[served.name, kind]
        if not self._gpu:
            return await batcher.embed(_ready((prepare, then)))
        vector = await batcher.embed(self.thread(prepare))
        return await self.thread(then, vector) if then else vector

    def _answers(self, run, lone, queries):
        """What `_embedded` returns for each (prepare, then), or raises, in the calling thread.

        One thread does it all: a lone query waits for each that must wake up.
        """
        found = [_caught(prepare) for prepare, _ in queries]
        good = [i for i, each in enumerate(found) if not isinstance(each, Exception)]
        if good:
            if self.queue.length <= 1:  # nobody else needs the other cores
                run = lone
            vectors = self._embed(run, [found[i] for i in good])
            for i, vector in zip(good, vectors, strict=True):
                then = queries[i][1]
                found[i] = _caught(then, vector) if then else vector
        return found

    def _embed(self, run, inputs):
        self.metrics.batches.observe(len(inputs))
        return self._timed("embed", run, inputs)

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


def _models(served):
    """{kind of query: a function of a list of them that returns their embeddings [B, D]}."""
    texts = {"text": served.texts.embed} if served.texts else {}
    return {"image": _of_images(served.embedder)} | texts


def _of_images(embedder):
    return embedder and (lambda images: embedder.run({"image": np.stack(images)}))


async def _ready(item):
    return item


def _caught(function, *arguments):
    """What a function returns, or the exception that it raises."""
    try:
        return function(*arguments)
    except Exception as error:
        return error
