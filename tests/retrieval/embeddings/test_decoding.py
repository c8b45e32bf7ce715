"""One image as a model takes it; that it equals training's pixels is tested with the embedder."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from retrieval.embeddings import decoding


@pytest.fixture(scope="module", params=[1, 3])
def decode(request):
    """(channels, the function) of a model of images of 8 x 16."""
    session = tf.compat.v1.Session(graph=tf.Graph())
    about = (8, 16), request.param, 10_000
    tensors = decoding.add_to_graph(session.graph, *about)
    yield request.param, decoding.decoder(session, tensors, *about)
    session.close()


def test_gray_and_color_are_converted_into_each_other(decode):
    channels, function = decode
    red = np.full((30, 20, 3), (200, 0, 0), np.uint8)
    expected = [60] if channels == 1 else [200, 0, 0]  # .299 of red
    assert np.array_equal(function(red), np.broadcast_to(expected, (8, 16, channels)))
    for gray in (np.full((5, 5), 9, np.uint8), np.full((5, 5, 1), 9, np.uint8)):
        assert np.array_equal(function(gray), np.full((8, 16, channels), 9))
    content = io.BytesIO()
    Image.fromarray(red).save(content, "PNG")
    assert np.array_equal(function(content.getvalue()), function(red))


def test_what_is_no_image_is_refused(decode, tmp_path):
    _, function = decode
    for array in (np.zeros((4, 4, 3)), np.zeros((4, 4, 2), np.uint8), np.zeros(4, np.uint8)):
        with pytest.raises(ValueError, match="an image must"):
            function(array)
    with pytest.raises(ValueError, match=f"cannot read the image '{tmp_path}': not a regular file"):
        function(tmp_path)
    for kind in ("JPEG", "PNG"):  # refused from its header, by TensorFlow and by Pillow
        content = io.BytesIO()
        Image.new("RGB", (101, 100)).save(content, kind)
        with pytest.raises(ValueError, match=r"^cannot read the image: 101 x 100 pixels exceed"):
            function(content.getvalue())


def test_notes_behind_a_jpegs_end_do_not_matter(decode):
    channels, function = decode
    content = io.BytesIO()
    Image.new("RGB", (40, 40), (9, 99, 199)).save(content, "JPEG")
    plain = function(content.getvalue())
    for notes in (b"notes", bytes(2 * decoding.TRAILER)):  # the second is decoded by Pillow
        difference = function(content.getvalue() + notes).astype(int) - plain
        assert np.abs(difference).max() <= 1 and plain.shape == (8, 16, channels)
