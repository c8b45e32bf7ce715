"""Micro-batches: queries that arrive together are embedded together; a lone one does not wait."""

import asyncio

import numpy as np


class Batcher:
    """Embeds images one by one for its callers, and in batches for the device.

    While one batch is embedded, the images of the next gather. An idle device starts at once,
    unless more images are being decoded: for those it waits, at most so long.
    """

    def __init__(self, run, pool, *, largest, wait):
        """Args:

        run: a list of B images, or of what else the model takes -> float [B, D].
        pool: an executor with one thread, in which `run` is called.
        largest: images per batch, at most.
        wait: seconds to wait for images that are announced.
        """
        self._run, self._pool, self._largest, self._wait = run, pool, largest, wait
        self._coming = 0
        self._queue = asyncio.Queue()
        self._changed = asyncio.Event()  # an image arrived, or one that was announced will not
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
            end = loop.time() + self._wait
            while len(batch) < self._largest:
                if not self._queue.empty():
                    batch.append(self._queue.get_nowait())
                    continue
                if not self._coming or loop.time() >= end:
                    break
                self._changed.clear()
                try:
                    async with asyncio.timeout_at(end):
                        await self._changed.wait()
                except TimeoutError:
                    break
            # Those whose deadline has passed wait no more.
            batch = [(image, future) for image, future in batch if not future.done()]
            if batch:
                await self._answer(loop, *zip(*batch, strict=True))

    async def _answer(self, loop, images, futures):
        try:
            found = await loop.run_in_executor(self._pool, self._run, list(images))
        except Exception as error:
            found = [error] * len(futures)
        for future, one in zip(futures, found, strict=True):
            if future.done():
                continue
            if isinstance(one, Exception):
                future.set_exception(one)
            else:
                future.set_result(one)

    async def close(self) -> None:
        """Ends the task; what waits is not answered."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
