"""A served catalogue: 24 images of 12 products in an index, the tiny model, and a running server."""

import contextlib
import sys
import threading
import time

import httpx
import numpy as np
import pytest
from PIL import Image

from retrieval.catalogue import index
from retrieval.embeddings import embedder, images
from retrieval.serve import app, limits, metrics, processes, searcher, served, thumbnails

PRODUCTS = 12
NASTY = "<b>é\n\"&'%2F?#x"  # in the id and product of one item


def pattern(product, noise=0, size=96):
    """A photo of a product: RGB, uint8 [size, size, 3]."""
    random = np.random.default_rng([product, 7])
    pixels = random.integers(0, 256, (8, 8, 3)) + np.random.default_rng(noise).normal(
        0, 25 * bool(noise), (8, 8, 3)
    )
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return image.resize((size, size), Image.Resampling.NEAREST)


@pytest.fixture(scope="session")
def shop(tmp_path_factory, tiny):
    """A folder with images/, the index `i`, and the model's `embedder` as an attribute."""
    folder = tmp_path_factory.mktemp("shop")
    (folder / "images").mkdir()
    lines = ["path,label,category"]
    for product in range(PRODUCTS):
        for n in range(2):
            name = f"images/{product}-{n}.png"
            pattern(product, 1 + n).save(folder / name)
            lines.append(f"{name},p{product},{'even' if product % 2 == 0 else 'odd'}")
    (folder / "shop.csv").write_text("\n".join(lines))
    sys.path.insert(0, str(tiny))
    try:
        made = embedder.Embedder.of_experiment("tiny", str(tiny / "experiments/exp-tiny"))
    finally:
        sys.path.remove(str(tiny))
    embedder.embed_table(images.table(csv=str(folder / "shop.csv")), folder / "s", made)
    index.build(folder / "s", folder / "i", "Flat")
    yield folder, made
    made.close()


@contextlib.contextmanager
def run(shelves, feedback="", **options):
    """Yields (address, Searcher) of a server in a thread."""
    figures = metrics.Metrics()
    limit = limits.Limits(**options)
    made = [
        served.Shelf(name, str(folder), lambda _, e=e: e, thumbnails.Thumbnails(), figures)
        for name, (folder, e) in shelves.items()
    ]
    found = searcher.Searcher(made, limit, figures, 2)
    sock = processes.bound("127.0.0.1", 0)
    server = processes.server(app.create(found, feedback), limit.timeout)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    thread.start()
    address = f"http://127.0.0.1:{sock.getsockname()[1]}"
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        yield address, found
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="session")
def serving(shop, tmp_path_factory):
    """(address, Searcher) of a server of the shop that takes feedback."""
    folder, made = shop
    feedback = tmp_path_factory.mktemp("feedback") / "f.jsonl"
    with run({"shop": (folder / "i", made)}, str(feedback)) as (address, found):
        yield address, found


@pytest.fixture(scope="session")
def http(serving):
    with httpx.Client(base_url=serving[0]) as client:
        yield client
