"""Embedding a model's datasets and image files, by checkpoint and SavedModel."""

import concurrent.futures
import json

import numpy as np
import pytest
from stores import run_program

from retrieval import embed
from retrieval import index as index_program
from retrieval.catalogue import index
from retrieval.embeddings import c_library, embedder, images, passes, store

pytestmark = pytest.mark.numeric


CHECKPOINT = "experiments/exp-tiny/checkpoint/model-3"


def of_dataset(model, name):
    spec = images.spec_of(model, [name])
    return embedder.Embedder.of_experiment(model, CHECKPOINT, spec=spec)


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
    assert run_program(embed, *line) == 0
    capsys.readouterr()
    line = ["search", f"--store={tmp_path}/q", f"--index={tmp_path}/i", "--k=2"]
    assert run_program(index_program, *line) == 0
    (answer,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert answer["query"] == "07.png" and len(answer["results"]) == 2
    best = answer["results"][0]
    assert best["id"] == str(catalogue.ids[7]) and best["score"] == pytest.approx(1, abs=1e-6)


def test_a_saved_embedder_embeds_alike(tiny_model, tmp_path, monkeypatch):
    """By TensorFlow's C library, by its Python package, and as any SavedModel: files and arrays."""
    from PIL import Image

    random = np.random.default_rng(0)
    gray = random.integers(0, 256, (40, 60), np.uint8)
    Image.fromarray(gray).save(tmp_path / "a.jpg")
    Image.fromarray(gray).convert("RGB").rotate(3).save(tmp_path / "b.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(gray).convert("RGB").save(tmp_path / "c.jpg", exif=turned)
    paths = [tmp_path / name for name in ("a.jpg", "b.png", "c.jpg")]
    rows = images.table(str(tmp_path))
    with embedder.Embedder.of_experiment(tiny_model, CHECKPOINT) as made:
        made.save(tmp_path / "model")
        expected = made.embed(paths)
        passes.embed_table(rows, tmp_path / "s", made)
        np.testing.assert_allclose(store.read(tmp_path / "s").embeddings, expected, atol=1e-6)
        with embedder.Embedder.load(tmp_path / "model") as loaded:
            assert isinstance(loaded._session, c_library.Session)
            for name in ("size", "channels", "boxes", "dimensions", "max_pixels", "source"):
                assert getattr(loaded, name) == getattr(made, name), name
            np.testing.assert_allclose(loaded.embed(paths), expected, atol=1e-6)
            np.testing.assert_array_equal(loaded.decode(paths[2]), made.decode(paths[2]))
            with open(paths[0], "rb") as file:
                np.testing.assert_array_equal(loaded.decode(file.read()), made.decode(paths[0]))
            with pytest.raises(ValueError, match="copy its folder"):
                loaded.save(tmp_path / "again")

    def unavailable(folder, threads):
        raise c_library.Unavailable("no library")

    monkeypatch.setattr(c_library, "Session", unavailable)
    with embedder.Embedder.load(tmp_path / "model") as loaded:
        np.testing.assert_allclose(loaded.embed(paths), expected, atol=1e-6)
    with embedder.Embedder.of_saved_model(str(tmp_path / "model")) as other:
        np.testing.assert_allclose(other.embed(paths), expected, atol=1e-6)


def test_what_a_loaded_embedder_refuses(tiny_model, tmp_path):
    from PIL import Image

    with pytest.raises(ValueError, match=r"prototrain\.json: cannot be read"):
        embedder.Embedder.load(tmp_path)
    with embedder.Embedder.of_experiment(tiny_model, CHECKPOINT) as made:
        made.max_pixels = 1000
        made.save(tmp_path / "model")
    Image.new("L", (50, 50)).save(tmp_path / "large.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "large.jpg").read_bytes()[:200])
    with embedder.Embedder.load(tmp_path / "model") as loaded:
        with pytest.raises(ValueError, match=r"large.jpg': 50 x 50 pixels exceed the limit of 1,0"):
            loaded.decode(tmp_path / "large.jpg")
        with pytest.raises(ValueError, match=r"cut.jpg': the file is truncated"):
            loaded.decode(tmp_path / "cut.jpg")
        with pytest.raises(ValueError, match=r"^cannot read the image: not a JPEG"):
            loaded.decode(b"text")
    (tmp_path / "model/variables/variables.index").unlink()
    with pytest.raises(ValueError, match="model: the model cannot be loaded: "):
        embedder.Embedder.load(tmp_path / "model")
    with pytest.raises(ValueError, match="takes no images alone"):
        of_dataset(tiny_model, "retrieval_index").save(tmp_path / "other")


def test_a_model_without_a_placeholder_of_images_is_named(tiny_model, monkeypatch):
    def made():
        return embedder.Embedder.of_experiment(tiny_model, CHECKPOINT)

    monkeypatch.setattr(tiny_model, "build", lambda inputs, train_phase: inputs["image"])
    with pytest.raises(ValueError, match=r"tiny\.build\(inputs=None\) fails \(TypeError"):
        made()
    monkeypatch.setattr(tiny_model, "build", lambda inputs, train_phase: None)
    with pytest.raises(ValueError, match="makes no placeholder of images"):
        made()
