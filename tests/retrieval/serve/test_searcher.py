"""From a query to results, without HTTP."""

import asyncio
import dataclasses
import hashlib
import io

import numpy as np
import pytest
from PIL import Image

from retrieval.serve import limits, metrics, opening, schemas, searcher, thumbnails


@pytest.fixture(params=[(1, False), (4, False), (8, True)], ids=["one by one", "CPU", "GPU"])
def use(shop, request):
    """Runs a coroutine function with a running `Searcher` over the shop, in both ways to embed."""

    def run(work, **options):
        async def main():
            figures = metrics.Metrics()
            shelves = opening.shelves([f"{shop[0]}/i"], thumbnails.Thumbnails(), figures, 1)
            batch, gpu = request.param
            limit = limits.Limits(batch=batch, **options)
            found = searcher.Searcher(shelves, limit, figures, 2, gpu)
            assert not found.ready
            async with found.running():
                assert found.ready
                await work(found)
            assert not found.ready

        asyncio.run(main())

    return run


def test_queries_at_once_get_the_embeddings_that_each_gets_alone(use, shop, photo):
    async def work(found):
        served = found.served()
        answers = await asyncio.gather(
            *(found.image(served, io.BytesIO(photo(n))) for n in range(12))
        )
        digests, embeddings = zip(*answers, strict=True)
        assert digests[3] == hashlib.sha256(photo(3)).hexdigest()
        alone = shop[1].embed([photo(n) for n in range(12)], batch_size=1)
        # A batch is another matrix product: float32 sums of 192 terms, of unit length.
        np.testing.assert_allclose(embeddings, alone, atol=192 * 2**-24)
        sizes = found.metrics.registry.get_sample_value
        assert sizes("prototrain_batch_size_sum") == 12
        assert sizes("prototrain_batch_size_count") == 12 or found.limits.batch > 1
        for n, embedding in enumerate(embeddings):
            results, _ = await found.thread(found.finder(served, 1), embedding)
            assert results[0]["product"] == f"p{n}"
        _, (results, _) = await found.image(served, io.BytesIO(photo(5)), found.finder(served, 1))
        assert results[0]["product"] == "p5"

    use(work)


def test_an_image_of_too_many_pixels_is_refused_in_every_format(use):
    async def work(found):
        for kind in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"):
            out = io.BytesIO()
            Image.new("RGB", (40, 30)).save(out, kind)
            with pytest.raises(schemas.Refused, match="limit"):
                await found.image(found.served(), io.BytesIO(out.getvalue()))

    use(work, pixels=1000)


def test_truncated_images_are_refused(use, photo):
    async def work(found):
        for size in (0, 1, 30, 100, len(photo(1)) // 2):
            with pytest.raises(schemas.Refused) as error:
                await found.image(found.served(), io.BytesIO(photo(1)[:size]))
            assert error.value.status == 422 and error.value.reason == "image"

    use(work)


def test_an_unknown_catalogue_is_refused(use):
    async def work(found):
        with pytest.raises(schemas.Refused, match="'x'"):
            found.served("x")

    use(work)


def test_queries_of_a_batch_fail_alone(use, photo):
    """Whatever fails, its neighbors in the batch are answered."""

    async def work(found):
        served, refused = found.served(), schemas.Refused(404, "category", "none")

        def then(vector):
            raise refused

        def ask(n):
            content = b"no image" if n % 3 == 1 else photo(n)
            return found.image(served, io.BytesIO(content), then if n % 3 == 2 else None)

        answers = await asyncio.gather(*map(ask, range(12)), return_exceptions=True)
        for n, answer in enumerate(answers):
            if n % 3 == 0:
                np.testing.assert_allclose(answer[1], found_alone[n], atol=192 * 2**-24)
            elif n % 3 == 1:
                assert isinstance(answer, schemas.Refused) and answer.status == 422
            else:
                assert answer is refused

    found_alone = {}

    async def alone(found):
        for n in range(0, 12, 3):
            found_alone[n] = (await found.image(found.served(), io.BytesIO(photo(n))))[1]

    use(alone)
    use(work)


def test_only_a_query_that_is_alone_gets_all_cores(shop, photo):
    figures = metrics.Metrics()
    shelves = opening.shelves([f"{shop[0]}/i"], thumbnails.Thumbnails(), figures, 1, 2)
    found = searcher.Searcher(shelves, limits.Limits(), figures, 2)
    calls = []

    served = found.served()

    class Spy:
        def run(self, batch):
            calls.append(len(batch["image"]))
            return served.alone.run(batch)

    async def main():
        shelves[0].current = dataclasses.replace(served, alone=Spy())
        async with found.running():
            with found.queue:
                _, alone = await found.image(served, io.BytesIO(photo(3)))
                assert calls == [1]
                with found.queue:
                    _, among = await found.image(served, io.BytesIO(photo(3)))
            assert calls == [1]
            np.testing.assert_allclose(alone, among, atol=192 * 2**-24)

    asyncio.run(main())
