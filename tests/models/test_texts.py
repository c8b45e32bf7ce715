"""Text towers of CLIP, SigLIP and MetaCLIP 2 against PyTorch's in float64, and their export."""

import json
import pathlib
import re
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import published

from models import backbones, ranker
from models.backbones import presets, texts
from retrieval.catalogue import index
from retrieval.catalogue.opened import Catalogue
from retrieval.embeddings import passes, store
from retrieval.embeddings.embedder import Embedder
from retrieval.embeddings.texts import TextEmbedder
from trainer import checkpoints, export, loop
from trainer.config import UserError
from trainer.keras_model import eagerly

pytest.importorskip("keras_hub", reason="the extra [kerashub] is not installed")
pytestmark = pytest.mark.numeric
v1 = tf.compat.v1
ORACLE = json.loads(published.PATH.read_text())


def tower(folder):
    return texts.find(str(folder), *presets.kind_of(str(folder)))


def vectors(found, ids):
    made = eagerly(lambda: found.make()(ids).numpy())
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def near(found, expected):
    expected = np.reshape(expected, found.shape)
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def ids_of(family):
    config = family["files"]["config.json"]["text_config"]
    return published.token_ids(config["eos_token_id"], config["pad_token_id"])


@pytest.mark.parametrize("name", ("clip", "siglip", "metaclip_2"))
def test_vectors_and_scores_equal_pytorch(name, tmp_path):
    family = ORACLE[name]
    folder, size = published.folder(tmp_path / name, family), family["cases"][0]["size"]
    found = vectors(tower(folder), ids_of(family))
    near(found, family["texts"]["vectors"])
    backbone = backbones.load(f"kerashub:{folder}")
    with tf.Graph().as_default(), v1.Session() as session:
        features = tf.nn.l2_normalize(backbone.apply(tf.constant(published.images(size))), axis=1)
        session.run(v1.global_variables_initializer())
        of_images = session.run(features)
    near(found @ of_images.T, family["texts"]["scores"])
    assert backbone.texts is not None


VOCABULARY = [
    *("<unk>", "<pad>", "</s>", *"abcdefghijklmnopqrstuvwxyz", "d</w>", "e</w>", "s</w>", "t</w>"),
    *("re", "red</w>", "dr", "dre", "ss</w>", "<|startoftext|>", "<|endoftext|>"),
]
MERGES = ["#version: 0.2", "r e", "re d</w>", "d r", "dr e", "s s</w>"]


def with_vocabulary(folder):
    """Adds CLIP's vocabulary files."""
    ids = {token: n for n, token in enumerate(VOCABULARY)}
    (folder / "vocab.json").write_text(json.dumps(ids))
    (folder / "merges.txt").write_text("\n".join(MERGES))
    return folder


def test_it_is_exported_with_its_vocabulary(tmp_path):
    folder = with_vocabulary(published.folder(tmp_path / "clip", ORACLE["clip"]))
    tower(folder).save(str(tmp_path / "model" / "text"))
    with TextEmbedder.load(tmp_path / "model") as embedder:
        found = embedder.embed(["Red  dress", "red"] * 40)
    ids = np.full((2, 8), 39)
    ids[0, :6] = [38, 34, 6, 33, 37, 39]
    ids[1, :3] = [38, 34, 39]
    near(found[:2], vectors(tower(folder), ids))
    assert found.shape == (80, 20) and (found[78:] == found[:2]).all()


def of_open_clip(values, siglip):
    """A text tower in OpenCLIP's names, from Hugging Face's."""
    found = {}
    for name, value in values.items():
        for theirs, ours in (
            (r"^text_model\.", ""),
            (r"embeddings\.token_embedding", "token_embedding"),
            (r"embeddings\.position_embedding\.weight", "positional_embedding"),
            (r"final_layer_norm", "ln_final"),
            (r"^head\.", "text_projection."),
            (r"encoder\.layers", "transformer.resblocks"),
            (r"self_attn", "attn"),
            (r"layer_norm(\d)", r"ln_\1"),
            (r"fc1", "c_fc"),
            (r"fc2", "c_proj"),
        ):
            name = re.sub(theirs, ours, name)
        if name == "text_projection.weight" and not siglip:
            name, value = "text_projection", value.T
        found[name] = value
    for i in range(2):
        for end in ("weight", "bias"):
            start = f"transformer.resblocks.{i}.attn."
            parts = [found.pop(f"{start}{p}_proj.{end}") for p in "qkv"]
            found[f"{start}in_proj_{end}"] = np.concatenate(parts)
    return {f"text.{name}": value for name, value in found.items()} if siglip else found


@pytest.mark.parametrize("name", ("clip", "siglip"))
def test_towers_of_open_clip_are_those_of_hugging_face(name, tmp_path):
    family, siglip = ORACLE[name], name == "siglip"
    shapes = {n: s for n, s in family["shapes"].items() if n.startswith("text_")}
    values = {n: published.value(n, s) for n, s in shapes.items()}
    text = {"context_length": 8, "heads": 2, "width": 32, "layers": 2}
    if siglip:
        text |= {"pool_type": "last", "norm_kwargs": {"eps": 1e-6}}
        text |= {"act_kwargs": {"approximate": "tanh"}, "tokenizer_kwargs": {"clean": "lower"}}
    model = {"vision_cfg": {"image_size": 24}, "text_cfg": text, "quick_gelu": not siglip}
    files = {"open_clip_config.json": {"model_cfg": model, "preprocess_cfg": {}}}
    laid = {"files": files, "weights": "open_clip_model.safetensors"}
    folder = published.folder(tmp_path / name, laid, of_open_clip(values, siglip))
    found = tower(folder)
    assert (found.family, found.cleaning, found.length) == (name, "lower" if siglip else None, 8)
    near(vectors(found, ids_of(family)), family["texts"]["vectors"])


def test_a_folder_without_a_vocabulary_or_a_tensor_is_named(tmp_path):
    family = ORACLE["clip"]
    folder = published.folder(tmp_path / "clip", family)
    with pytest.raises(ValueError, match="clip: there is no vocabulary of texts"):
        tower(folder).save(str(tmp_path / "model"))
    name = "text_model.encoder.layers.1.mlp.fc1.bias"
    values = {n: published.value(n, s) for n, s in family["shapes"].items() if n != name}
    with_vocabulary(published.folder(tmp_path / "clip", family, values))
    with pytest.raises(ValueError, match=f"the tensor {name} is missing"):
        tower(folder).save(str(tmp_path / "model"))
    config = {"model_type": "clip_vision_model", "hidden_size": 32}
    assert texts.find(str(folder), "hf", config) is None


def test_a_ranker_without_a_head_is_searched_by_words(tmp_path):
    folder = with_vocabulary(published.folder(tmp_path / "clip", ORACLE["clip"]))
    processor = ORACLE["clip"]["files"]["preprocessor_config.json"]
    processor = json.dumps(processor | {"size": {"height": 24, "width": 24}})
    (folder / "preprocessor_config.json").write_text(processor)
    lines = ["path,label,split"]
    for i in range(4):
        Image.fromarray(published.images(24)[i // 2] // (i % 2 + 1)).save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png,p{i // 2},train")
    (tmp_path / "manifest.csv").write_text("\n".join(lines))
    given = {
        "trainer.experiment_base_dir": str(tmp_path),
        "trainer.experiment_name": "run",
        "trainer.evaluation_interval": 0,
        "model.hub_address": f"kerashub:{folder}",
        "model.batch_size": 4,
        "model.num_steps": 0,
        "dataset.name": "manifest",
        "dataset.base_path": str(tmp_path),
        "dataset.validation": False,
        "dataset.images_per_product": 2,
    }
    before = ranker.config.to_dict()
    try:
        ranker.config.update(given)
        with pytest.raises(UserError, match="to search by text, train with --model.reduced_dim"):
            ranker.texts()
        ranker.config["model.reduced_dimension"] = 0
        loop.train(ranker, ranker.config)
        prefix = checkpoints.latest(str(tmp_path / "run" / "checkpoint"))
        with Embedder.of_experiment(ranker, prefix, threads=1) as embedder:
            # The files' own.
            assert embedder.size == (24, 24)
            assert embedder.resizing["method"] == "bicubic+antialias"
            passes.embed_table(ranker.table(), str(tmp_path / "store"), embedder)
            index.build(tmp_path / "store", tmp_path / "i", "Flat", save_model=embedder.save)
        served = str(tmp_path / "served")
        for again in (False, True):
            export.export(ranker, prefix, served, overwrite=again)
        (folder / "merges.txt").unlink()
        with pytest.raises(UserError, match="there is no vocabulary of texts"):
            ranker.texts()
    finally:
        ranker.config.update(before)
    with Catalogue.open(tmp_path / "i") as catalogue, catalogue.text_embedder(1) as embedder:
        ids = np.array([[38, 34, 39, 39, 39, 39, 39, 39]])
        words = vectors(tower(folder), ids)
        near(embedder.embed(["red"]), words)
        found = catalogue.find(embedder.embed(["red"]), k=4)
        stored = store.read(tmp_path / "store")
        near(found.scores[0], np.sort(words @ stored.embeddings.T)[0, ::-1])
    # An export is searched by the same words and images, as is an index that is built with it.
    with Embedder.of_saved_model(served, threads=1) as embedder:
        assert (embedder.size, embedder.resizing["method"]) == ((24, 24), "bicubic+antialias")
        near(embedder.embed(stored.paths.tolist()), stored.embeddings)
        embedder.save(tmp_path / "model")
        for model in (served, tmp_path / "model"):
            with TextEmbedder.load(model, threads=1) as made:
                near(made.embed(["red"]), words)
        vocabulary = tmp_path / "served/text/assets/tokenizer.json"
        vocabulary.write_text(vocabulary.read_text().replace("red", "den"))
        with pytest.raises(ValueError, match=r"tokenizer.json: is damaged \(its checksum"):
            embedder.save(tmp_path / "other")
