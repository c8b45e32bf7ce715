"""Micro-batches: queries that arrive together are embedded together; a lone one does not wait."""

import asyncio
import contextlib

import numpy as np


class Batcher:
    """Embeds images one by one for its callers, and in batches for the device.

    While batches are embedded, the images of the next gather. An idle device starts at once, unless
    more images are being decoded: for those it waits, at most so long. Idle devices share what
    waits.
    """

    def __init__(self, run, pool, *, largest, wait=0.0, calls=1):
        """Args:

        run: a list of B images, or of what else the model takes -> B embeddings, float [D]; an
          exception in place of one is raised for its caller alone.
        pool: an executor with as many threads as calls, in which `run` is called.
        largest: images per batch, at most.
        wait: seconds to wait for images that are announced.
        calls: devices, batches embedded at the same time at most.
        """
        self._run, self._pool, self._largest, self._wait = run, pool, largest, wait
        self._idle, self._coming, self._batches = calls, 0, set()
        self._queue = asyncio.Queue()
        self._changed = asyncio.Event()  # an image or a device has come, or an image will not
        self._task = asyncio.create_task(self._serve())

    async def embed(self, decode) -> np.ndarray:
        """Returns the embedding [D] of the image that the awaitable `decode` returns.

        Raises:
          Exception: what `decode` or the model raises.
        """
        self._coming += 1
        try:
            image = await decode
        finally:
            self._coming -= 1
            self._changed.set()
        future = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((image, future))
        self._changed.set()
        return await future

    async def _serve(self):
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._queue.get()]
            while not self._idle:
                await self._change(None)
            end = loop.time() + self._wait
            while len(batch) < self._share(len(batch)):
                if not self._queue.empty():
                    batch.append(self._queue.get_nowait())
                elif loop.time() < end:
                    await self._change(end)
                else:
                    break
            # Those whose deadline has passed wait no more.
            batch = [(image, future) for image, future in batch if not future.done()]
            if batch:
                self._idle -= 1
                task = asyncio.create_task(self._answer(loop, *zip(*batch, strict=True)))
                self._batches.add(task)
                task.add_done_callback(self._batches.discard)

    def _share(self, taken):
        """How many of the images that wait or are announced the next batch takes."""
        waiting = taken + self._queue.qsize() + self._coming
        return min(self._largest, -(-waiting // self._idle))

    async def _change(self, end):
        self._changed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(end):
                await self._changed.wait()

    async def _answer(self, loop, images, futures):
        try:
            found = await loop.run_in_executor(self._pool, self._run, list(images))
        except Exception as error:
            found = [error] * len(futures)
        finally:
            self._idle += 1
            self._changed.set()
        for future, one in zip(futures, found, strict=True):
            if future.done():
                continue
            if isinstance(one, Exception):
                future.set_exception(one)
            else:
                future.set_result(one)

    async def close(self) -> None:
        """Ends the task; what waits is not answered."""
        tasks = self._task, *self._batches
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
