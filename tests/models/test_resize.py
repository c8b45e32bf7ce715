"""Bicubic resizing by PyTorch's rule; the numbers are torch 2.13's interpolate in float64."""

import numpy as np
import pytest

from models.backbones.resize import bicubic, positions

SIGNAL = np.array([0.0, 1, -2, 3, 5, -1, 2, 4, 0.5])
TORCH = {
    (4, False): [0.9692383, 2.303223, -1.137695, 2.958496],
    (4, True): [-0.1265129, 1.880495, 1.744157, 2.239185],
    (7, False): [0.1603499, -0.548105, 1.330904, 5.0, -0.951895, 3.763848, 0.9497085],
    (7, True): [0.3806881, -0.5362776, 1.286019, 4.218045, -0.2145144, 3.397476, 1.36071],
    (13, False): [
        -0.08261265, 0.8443332, 0.3281748, -2.055985, 0.7218935, 4.422394, 5.0,
        0.4897588, -0.6791079, 2.285617, 4.036868, 2.602071, 0.2108557,
    ],
    (13, True): [
        -0.06179775, 0.708136, 0.4169322, -2.020482, 0.9312699, 4.098771, 5.0,
        0.4446973, -0.4560765, 2.201639, 3.934456, 2.440594, 0.2837079,
    ],
}  # fmt: skip


@pytest.mark.parametrize(("out", "antialias"), TORCH)
def test_resizes_as_pytorch_does(out, antialias):
    found = bicubic(out, len(SIGNAL), antialias=antialias) @ SIGNAL
    np.testing.assert_allclose(found, TORCH[out, antialias], rtol=0, atol=1e-6)


def test_positions_keep_the_tokens_before_them():
    table = np.random.default_rng(0).normal(size=(1, 2 + 9, 4)).astype(np.float32)
    found = positions(table, (3, 5), antialias=False)
    assert found.shape == (1, 2 + 15, 4) and found.dtype == np.float32
    np.testing.assert_array_equal(found[:, :2], table[:, :2])
    rows = table[0, 2:].reshape(3, 3, 4)
    expected = np.einsum("wj,hjf->hwf", bicubic(5, 3, antialias=False), rows)
    np.testing.assert_allclose(found[0, 2:].reshape(3, 5, 4), expected, atol=1e-6)
    assert positions(table, (3, 3), antialias=True) is table
