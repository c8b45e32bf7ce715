"""Whole datasets through an embedder, into stores and into memory, where they are kept."""

import numpy as np
import pytest
from stores import run_program

from metriclearn.datasets import ProductTable
from retrieval import embed
from retrieval.embeddings import embedder, images, passes, store

pytestmark = pytest.mark.numeric
CHECKPOINT = "experiments/exp-tiny/checkpoint/model-3"


def of_dataset(model, name):
    spec = images.spec_of(model, [name])
    return embedder.Embedder.of_experiment(model, CHECKPOINT, spec=spec)


def test_embedding_resumes_after_a_kill(tiny_model, tmp_path, monkeypatch):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    made = of_dataset(tiny_model, "retrieval_index")
    passes.embed_to_store(tiny_model, "retrieval_index", whole, made, shard_rows=7)
    append = store.append

    def killed(folder, manifest, *given):
        if len(manifest["shards"]) == 2:
            raise KeyboardInterrupt
        append(folder, manifest, *given)

    with monkeypatch.context() as patch:
        patch.setattr(store, "append", killed)
        with pytest.raises(KeyboardInterrupt):
            passes.embed_to_store(tiny_model, "retrieval_index", broken, made, shard_rows=7)
    passes.embed_to_store(tiny_model, "retrieval_index", broken, made, shard_rows=7)
    a, b = store.read(whole), store.read(broken)
    np.testing.assert_array_equal(a.embeddings, b.embeddings)
    np.testing.assert_array_equal(a.ids, b.ids)
    assert len(store.manifest_of(broken)["shards"]) == 4


def test_an_image_that_cannot_be_read_is_one_line(tiny_model, monkeypatch):
    import tensorflow as tf

    def datasets():
        damaged = tf.data.Dataset.range(2).map(lambda n: _broken(tf, n))
        return {"retrieval_index": damaged.batch(1)}

    monkeypatch.setattr(tiny_model, "datasets", datasets)
    with pytest.raises(ValueError, match=r"^cannot read the image 'a b\.jpg': truncated$"):
        passes.embed_datasets(tiny_model, ["retrieval_index"], CHECKPOINT)


def _broken(tf, n):
    check = tf.debugging.Assert(n < 1, ["cannot read the image 'a b.jpg': truncated"])
    with tf.control_dependencies([check]):
        text = {key: tf.identity("x") for key in ("id", "product", "category")}
        return text | {"image": tf.zeros([8, 8, 1], tf.uint8), "label": n}


def test_all_embeds_the_catalogue_of_all_splits(tiny_model, tiny_table, tmp_path, capsys):
    assert run_program(embed, "--model=tiny", "--all", f"--output={tmp_path}/a") == 0
    assert store.read(tmp_path / "a").ids.tolist() == list("345678")
    where = ["--all", "--where=product=a|b"]
    assert run_program(embed, "--model=tiny", *where, f"--output={tmp_path}/w") == 0
    assert store.read(tmp_path / "w").ids.tolist() == list("1256")
    assert run_program(embed, "--model=tiny", "--all", "--folder=x", f"--output={tmp_path}/b") == 1
    assert "--all embeds the whole catalogue of --model's data set" in capsys.readouterr().err


def test_embed_says_which_share_of_the_products_the_test_catalogue_is(
    tiny_model, tmp_path, capsys, monkeypatch
):
    line = ["--model=tiny", f"--output={tmp_path}/a"]
    assert run_program(embed, *line) == 0
    assert "--all" not in capsys.readouterr().out  # nothing is known of a model without a table
    products = [f"p<{n}>" for n in range(60)]
    rows = ProductTable(products=products, ids=products)
    monkeypatch.setattr(tiny_model, "table", lambda: rows, raising=False)
    assert run_program(embed, *line) == 0
    said = "25 of 60 products: the test catalogue; --all for all\n"
    assert capsys.readouterr().out.endswith(said)


def test_a_dataset_is_embedded_in_shards_and_into_object_storage(
    tiny_model, tiny_table, tmp_path, capsys, monkeypatch
):
    """Its batches are those of one process; a length that it does not say is one line."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    line = ["--model=tiny", "--dataset=retrieval_query", "--shard_rows=7"]
    assert run_program(embed, *line, f"--output={tmp_path}/whole") == 0
    shards = [*line, f"--output={tmp_path}/s"]
    assert run_program(embed, *shards, "--shard=1/2") == 0
    assert run_program(embed, "--finish", f"--output={tmp_path}/s") == 1
    assert "missing: 0/2 (batches 0 to 1); embed again" in capsys.readouterr().err
    assert run_program(embed, *shards, "--shard=0/2") == 0
    assert run_program(embed, "--finish", f"--output={tmp_path}/s") == 0
    assert run_program(embed, *line, "--output=memory://passes/s") == 0
    whole = store.read(tmp_path / "whole")
    for folder in (tmp_path / "s", "memory://passes/s"):
        found = store.read(folder)
        np.testing.assert_array_equal(found.embeddings, whole.embeddings)
        assert found.ids.tolist() == whole.ids.tolist() and len(found) == 22
    known = tiny_model.datasets

    def of_unknown_length():
        return {name: d.filter(lambda row: True) for name, d in known().items()}

    monkeypatch.setattr(tiny_model, "datasets", of_unknown_length)
    assert run_program(embed, *line, f"--output={tmp_path}/e", "--shard=0/2") == 1
    assert "'retrieval_query' of tiny has no known number" in capsys.readouterr().err
