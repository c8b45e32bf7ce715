"""A served catalogue: 24 images of 12 products, the tiny model, and a running server."""

import contextlib
import functools
import io
import shutil
import sys
import threading
import time

import httpx
import numpy as np
import pytest
from PIL import Image

from retrieval.catalogue import index
from retrieval.embeddings import embedder, store
from retrieval.serve import app, limits, metrics, opening, processes, searcher, thumbnails

PRODUCTS = 12
NASTY = "<b>é\n\"&'%2F?#x/image"  # in the id and product of one item


def pattern(product, noise=0, size=96):
    """A photo of a product: RGB, uint8 [size, size, 3]."""
    random = np.random.default_rng([product, 7])
    pixels = random.integers(0, 256, (8, 8, 3)) + np.random.default_rng(noise).normal(
        0, 25 * bool(noise), (8, 8, 3)
    )
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return image.resize((size, size), Image.Resampling.NEAREST)


@pytest.fixture(scope="session")
def photo():
    """A photo of a product, as the bytes of a PNG file."""

    def made(product, noise=9):
        out = io.BytesIO()
        pattern(product, noise).save(out, "PNG")
        return out.getvalue()

    return made


@pytest.fixture(scope="session")
def nasty():
    """The id of one item."""
    return NASTY


@pytest.fixture(scope="session")
def shop(tmp_path_factory, tiny):
    """(a folder with images/ and the index `i`; the embedder of its model)."""
    folder = tmp_path_factory.mktemp("shop")
    (folder / "images").mkdir()
    names = [f"images/{product}-{n}.png" for product in range(PRODUCTS) for n in range(2)]
    for number, name in enumerate(names):
        pattern(number // 2, 1 + number % 2).save(folder / name)
    sys.path.insert(0, str(tiny))
    try:
        made = embedder.Embedder.of_experiment("tiny", str(tiny / "experiments/exp-tiny"))
    finally:
        sys.path.remove(str(tiny))
    categories = [("even", "odd")[number // 2 % 2] for number in range(len(names))]
    items = [*zip(names, [f"p{n // 2}" for n in range(24)], categories, names, strict=True)]
    # One item with an awkward id and the image of another.
    write(folder, "s", made, [*items, (NASTY, NASTY, "", names[6])])
    index.build(folder / "s", folder / "i", "Flat", save_model=made.save)
    yield folder, made
    made.close()


def write(folder, name, made, items, weights=None, root=None):
    """Writes a store of items (id, product, category, path below the root)."""
    ids, products, categories, paths = (np.array(column) for column in zip(*items, strict=True))
    paths = np.array([str((root or folder) / path) for path in paths])
    found = store.Embedded(made.embed(list(paths)), ids, products, categories, paths=paths)
    (folder / name).mkdir()
    source = made.source | ({"checkpoint_sha256": weights} if weights else {})
    manifest = store.begin(folder / name, source)
    store.append(folder / name, manifest, found, 1)
    store.finish(folder / name, manifest)
    return folder / name


@pytest.fixture(scope="session")
def write_items():
    """`write`, for tests that change an index."""
    return write


@pytest.fixture(scope="session")
def copy_model(shop):
    """Gives a further index the model of the shop's, as `save_model` of `index.build`."""
    return functools.partial(shutil.copytree, shop[0] / "i/versions/000001/model")


@contextlib.contextmanager
def run(*indices, feedback="", **options):
    """Yields (address, Searcher) of a server in a thread."""
    figures = metrics.Metrics()
    limit = limits.Limits(**{"timeout": 60.0} | options)  # a first answer, on a busy machine
    made = opening.shelves(indices, thumbnails.Thumbnails(), figures, 1)
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
def start():
    """`run`, for tests that need a server of their own."""
    return run


@pytest.fixture(scope="session")
def feedback_file(tmp_path_factory):
    return tmp_path_factory.mktemp("feedback") / "f.jsonl"


@pytest.fixture(scope="session")
def serving(shop, feedback_file):
    """(address, Searcher) of a server of the shop that takes feedback."""
    with run(f"shop={shop[0]}/i", feedback=str(feedback_file)) as (address, found):
        yield address, found


@pytest.fixture(scope="session")
def http(serving):
    with httpx.Client(base_url=serving[0], timeout=60) as client:
        yield client
