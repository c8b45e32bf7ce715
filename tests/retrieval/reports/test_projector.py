"""The files of TensorBoard's projector."""

import dataclasses

import numpy as np
from google.protobuf import text_format
from PIL import Image
from tensorboard.plugins.projector import projector_config_pb2

from retrieval.reports import projector


def with_images(items, color):
    images = np.full((len(items), 6, 6, 3), color, np.uint8)
    images[:, 0, 0, 1] = np.arange(len(items))
    return dataclasses.replace(items, images=images)


def config_of(folder):
    text = (folder / "projector_config.pbtxt").read_text()
    return text_format.Parse(text, projector_config_pb2.ProjectorConfig()).embeddings[0]


def test_vectors_table_and_sprite_agree(circle, tmp_path):
    queries, catalogue = (with_images(each, n) for each, n in zip(circle, (50, 90), strict=True))
    queries.ids[0] = "\t"
    projector.write(tmp_path / "p", queries, catalogue)
    made = config_of(tmp_path / "p")
    vectors = np.loadtxt(tmp_path / "p" / made.tensor_path, delimiter="\t")
    both = np.concatenate([queries.embeddings, catalogue.embeddings])
    np.testing.assert_allclose(vectors, both, rtol=1e-4, atol=1e-9)
    table = [line.split("\t") for line in (tmp_path / "p/metadata.tsv").read_text().splitlines()]
    assert table[0] == ["id", "product", "category", "role"] and len(table) == 11
    assert table[1] == ["␉", "a", "", "query"] and table[7] == ["1", "a", "", "catalogue"]
    sprite = np.asarray(Image.open(tmp_path / "p" / made.sprite.image_path))
    side = list(made.sprite.single_image_dim)
    assert side == [6, 6] and sprite.shape == (24, 24, 3)  # 10 images, in rows of 4
    for n in range(10):
        tile = sprite[n // 4 * 6 :, n % 4 * 6 :]
        assert tile[1, 1, 0] == (50 if n < 6 else 90) and tile[0, 0, 1] == (n if n < 6 else n - 6)


def test_points_are_limited_and_images_optional(circle, tmp_path, monkeypatch):
    monkeypatch.setattr(projector, "POINTS", 5)
    projector.write(tmp_path, *circle)
    roles = [line.split("\t")[3] for line in (tmp_path / "metadata.tsv").read_text().splitlines()]
    assert roles.count("query") == 2 and roles.count("catalogue") == 3
    assert not (tmp_path / "sprite.png").exists() and not config_of(tmp_path).HasField("sprite")
