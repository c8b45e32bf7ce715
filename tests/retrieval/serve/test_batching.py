"""Micro-batches, with a device that is a function."""

import asyncio
import concurrent.futures
import threading

import numpy as np
import pytest

from retrieval.serve.batching import Batcher


class Device:
    """Embeds an image as its mean; holds every batch until `go` is set."""

    def __init__(self):
        self.sizes, self.go = [], threading.Event()
        self.go.set()

    def __call__(self, images):
        images = np.stack(images)
        self.sizes.append(len(images))
        assert self.go.wait(10)
        if images.max() == 255:
            raise ValueError("the device failed")
        return images.mean((1, 2, 3))[:, None]


async def image(value, gate=None):
    if gate is not None:
        await gate.wait()
    return np.full((2, 2, 1), value, np.uint8)


@pytest.fixture
def run_with():
    """Runs a coroutine function with a `Device` and a `Batcher`."""

    def run(work, **options):
        async def main():
            device = Device()
            with concurrent.futures.ThreadPoolExecutor(options.get("calls", 1)) as pool:
                batcher = Batcher(device, pool, **{"largest": 4, "wait": 5.0, **options})
                try:
                    return await work(device, batcher)
                finally:
                    device.go.set()
                    await batcher.close()

        return asyncio.run(asyncio.wait_for(main(), 30))

    return run


def test_everyone_gets_their_own_answer_in_batches_of_at_most_the_largest(run_with):
    async def work(device, batcher):
        device.go.clear()
        tasks = [asyncio.create_task(batcher.embed(image(n))) for n in range(10)]
        await asyncio.sleep(0)
        device.go.set()
        found = await asyncio.gather(*tasks)
        assert [one[0] for one in found] == list(range(10))
        assert max(device.sizes) <= 4 and sum(device.sizes) == 10 and len(device.sizes) < 10

    run_with(work)


def test_a_lone_image_does_not_wait(run_with):
    """With an hour to wait for others, it would time out."""

    async def work(device, batcher):
        assert (await batcher.embed(image(7)))[0] == 7
        assert device.sizes == [1]

    run_with(work, wait=3600.0)


def test_images_that_are_being_decoded_are_waited_for(run_with):
    async def work(device, batcher):
        gate = asyncio.Event()
        late = asyncio.create_task(batcher.embed(image(1, gate)))
        await asyncio.sleep(0)
        first = asyncio.create_task(batcher.embed(image(2)))
        await asyncio.sleep(0.05)
        assert device.sizes == []
        gate.set()
        await asyncio.gather(first, late)
        assert device.sizes == [2]

    run_with(work, wait=3600.0)


def test_waiting_ends(run_with):
    async def work(device, batcher):
        never = asyncio.create_task(batcher.embed(image(1, asyncio.Event())))
        await asyncio.sleep(0)
        assert (await batcher.embed(image(2)))[0] == 2
        never.cancel()

    run_with(work, wait=0.01)


def test_an_image_that_cannot_be_decoded_ends_the_waiting(run_with):
    async def work(device, batcher):
        async def broken():
            await asyncio.sleep(0.01)
            raise ValueError("no image")

        lost = asyncio.create_task(batcher.embed(broken()))
        await asyncio.sleep(0)
        assert (await batcher.embed(image(2)))[0] == 2
        with pytest.raises(ValueError, match="no image"):
            await lost

    run_with(work, wait=3600.0)


def test_an_error_of_the_device_reaches_its_batch_and_no_other(run_with):
    async def work(device, batcher):
        with pytest.raises(ValueError, match="the device failed"):
            await batcher.embed(image(255))
        assert (await batcher.embed(image(3)))[0] == 3

    run_with(work)


def test_who_has_left_is_not_embedded(run_with):
    async def work(device, batcher):
        device.go.clear()
        busy = asyncio.create_task(batcher.embed(image(1)))
        await asyncio.sleep(0.05)  # in the device
        left = asyncio.create_task(batcher.embed(image(2)))
        stays = asyncio.create_task(batcher.embed(image(3)))
        await asyncio.sleep(0.05)
        left.cancel()
        await asyncio.sleep(0)
        device.go.set()
        await asyncio.gather(busy, stays)
        assert device.sizes == [1, 1]

    run_with(work)


def test_idle_devices_share_what_waits(run_with):
    async def work(device, batcher):
        device.go.clear()
        tasks = [asyncio.create_task(batcher.embed(image(n))) for n in range(4)]
        await asyncio.sleep(0.05)
        assert device.sizes == [2, 2]  # not 4 on one
        tasks += [asyncio.create_task(batcher.embed(image(n))) for n in range(4, 8)]
        await asyncio.sleep(0.05)
        assert len(device.sizes) == 2  # both are busy
        device.go.set()
        found = await asyncio.gather(*tasks)
        assert [one[0] for one in found] == list(range(8)) and sum(device.sizes) == 8

    run_with(work, calls=2)
