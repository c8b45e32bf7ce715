"""Embedding a model's datasets and image files, by checkpoint and SavedModel."""

import concurrent.futures
import json

import numpy as np
import pytest
from stores import run_program

from retrieval import embed
from retrieval import index as index_program
from retrieval.catalogue import index
from retrieval.embeddings import embedder, images, passes, store

pytestmark = pytest.mark.numeric


@pytest.fixture
def tiny_model(tiny, monkeypatch):
    from trainer import config as config_lib

    monkeypatch.syspath_prepend(tiny)
    monkeypatch.chdir(tiny)
    model = config_lib.load_model("tiny")
    model.config["model.size"] = 16
    return model


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


def test_embedding_with_a_saved_model(tiny_model, tmp_path):
    """A TF2 SavedModel of any origin; the pictures are the model's datasets."""
    import tensorflow as tf

    class Mean(tf.Module):
        def __init__(self):
            self.weight = tf.Variable([[1.0, 2.0]])

        @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 1], tf.float32)])
        def serve(self, picture):
            return {"embeddings": tf.reduce_mean(picture, [1, 2]) @ self.weight}

    module = Mean()
    tf.saved_model.save(module, str(tmp_path / "mean"), signatures=module.serve)
    made = embedder.Embedder.of_saved_model(str(tmp_path / "mean"), input_range="0,255")
    manifest = passes.embed_to_store(tiny_model, "retrieval_query", tmp_path / "s", made)
    found = store.read(tmp_path / "s").embeddings
    assert manifest["count"] == 22
    shown = images.wanted_of(tiny_model, "retrieval_query", store.read(tmp_path / "s").ids)
    means = np.array([image.mean() for image in shown.values()])
    np.testing.assert_allclose(found, means[:, None] * [[1, 2]], rtol=1e-5)


def test_picture_files_are_embedded_as_the_models_own(tiny_model, tmp_path, monkeypatch, capsys):
    """A photo of a catalogue item, searched for in the catalogue that the model's dataset makes."""
    import sys

    from PIL import Image

    made = of_dataset(tiny_model, "retrieval_index")
    passes.embed_to_store(tiny_model, "retrieval_index", tmp_path / "s", made)
    catalogue = store.read(tmp_path / "s")
    shown = images.wanted_of(tiny_model, "retrieval_index", catalogue.ids)
    (tmp_path / "photos").mkdir()
    for n, name in enumerate(catalogue.ids):
        Image.fromarray(shown[name][:, :, 0]).save(tmp_path / f"photos/{n:02d}.png")
    rows = images.table(str(tmp_path / "photos"))
    with embedder.Embedder.of_experiment(tiny_model, CHECKPOINT) as made:
        passes.embed_table(rows, tmp_path / "p", made)
        found = store.read(tmp_path / "p")
        np.testing.assert_allclose(found.embeddings, catalogue.embeddings, atol=1e-6)
        np.testing.assert_allclose(made.embed(found.paths.tolist()), found.embeddings, atol=1e-6)
        arrays = [shown[name] for name in catalogue.ids.tolist()]
        np.testing.assert_allclose(made.embed(arrays, batch_size=7), found.embeddings, atol=1e-6)
        # From several threads at once.
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            for again in pool.map(made.embed, [arrays] * 4):
                np.testing.assert_allclose(again, found.embeddings, atol=1e-6)
        with pytest.raises(ValueError, match=r"cannot read the image '.*none.png': no such file"):
            made.embed([tmp_path / "none.png"])
        with pytest.raises(ValueError, match="must be uint8"):
            made.embed([np.zeros((4, 4, 1))])
    # One photo, by the programs.
    index.build(tmp_path / "s", tmp_path / "i", "Flat")
    line = ["--model=tiny", f"--folder={tmp_path}/photos/07.png", f"--output={tmp_path}/q"]
    del sys.modules["tiny"]
    assert run_program(embed, *line) == 0
    capsys.readouterr()
    line = ["search", f"--store={tmp_path}/q", f"--index={tmp_path}/i", "--k=2"]
    assert run_program(index_program, *line) == 0
    (answer,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert answer["query"] == "07.png" and len(answer["results"]) == 2
    best = answer["results"][0]
    assert best["id"] == str(catalogue.ids[7]) and best["score"] == pytest.approx(1, abs=1e-6)


def test_a_model_without_a_placeholder_of_images_is_named(tiny_model, monkeypatch):
    def made():
        return embedder.Embedder.of_experiment(tiny_model, CHECKPOINT)

    monkeypatch.setattr(tiny_model, "build", lambda inputs, train_phase: inputs["image"])
    with pytest.raises(ValueError, match=r"tiny\.build\(inputs=None\) fails \(TypeError"):
        made()
    monkeypatch.setattr(tiny_model, "build", lambda inputs, train_phase: None)
    with pytest.raises(ValueError, match="makes no placeholder of images"):
        made()


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
