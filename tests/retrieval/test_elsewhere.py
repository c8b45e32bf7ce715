"""The snippets of docs/elsewhere.md, on one store, one index and one exported model."""

import pathlib
import re

import numpy as np
import pytest
from PIL import Image
from stores import run_program

from retrieval import build, embed
from retrieval.catalogue.opened import Catalogue
from retrieval.embeddings import store
from trainer import export

pytestmark = pytest.mark.numeric
DOCS = pathlib.Path(__file__).parents[2] / "docs"


def blocks(page):
    return re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.M | re.S)


@pytest.fixture
def ran(tiny_model, tmp_path, monkeypatch):
    """What the snippets' names are after they ran, and the folder they ran in."""
    random = np.random.default_rng(0)
    for n in range(9):
        (tmp_path / "shop" / f"p{n // 3}").mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (20, 13 + n), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "shop" / f"p{n // 3}" / f"{n}.png")
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    source = "--model=tiny", f"--folder={tmp_path}/shop"
    assert run_program(embed, *source, f"--output={tmp_path}/STORE") == 0
    assert run_program(build, *source, f"--output={tmp_path}/INDEX") == 0
    export.export(tiny_model, "experiments/exp-tiny/checkpoint/model-3", str(tmp_path / "EXPORT"))
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks("elsewhere.md"):
        exec(block, names)
    return names, tmp_path


def test_other_programs_read_what_this_one_reads(ran):
    names, folder = ran
    embedded = store.read(folder / "STORE")
    np.testing.assert_array_equal(names["vectors"], embedded.embeddings)
    table = names["table"]
    assert table["id"].to_list() == embedded.ids.tolist()
    np.testing.assert_array_equal(np.stack(table["vector"].to_list()), embedded.embeddings)
    assert dict(names["images_per_product"].iter_rows()) == {"p0": 3, "p1": 3, "p2": 3}
    center = embedded.embeddings[embedded.products == "p1"].mean(axis=0)
    np.testing.assert_allclose(names["centers"]["p1"], center, rtol=1e-6)

    with Catalogue.open(folder / "INDEX") as catalogue, catalogue.embedder() as embedder:
        found = catalogue.results(catalogue.find(embedded.embeddings[:1], k=3))[0]
        photo = embedder.embed(["photo.png"])
    assert names["found"]["id"].to_list() == [each["id"] for each in found]
    scores = [each["score"] for each in found]
    np.testing.assert_allclose(names["found"]["score"], scores, rtol=1e-5)
    # The same pixels through the same graph, by another runtime's kernels.
    for vectors in names["embeddings"], names["vectors_of_keras"]:
        np.testing.assert_allclose(vectors, photo, atol=64 * np.finfo(np.float32).eps)

    code = blocks("exporting.md")[0].replace("experiments/exp-simple/export/model-1200", "EXPORT")
    exec(code, exported := {"images": names["pixels"]("photo.png")[None]})
    np.testing.assert_allclose(exported["embeddings"], photo, atol=64 * np.finfo(np.float32).eps)
