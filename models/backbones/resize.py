"""Bicubic resizing as in PyTorch, for which published position embeddings were made.

TensorFlow's differs: it drops taps beyond a border where PyTorch repeats the border, and it uses
another coefficient. At 224 pixels, DINOv2's features would change by 0.3%.
"""

import numpy as np


def bicubic(out: int, size: int, *, antialias: bool) -> np.ndarray:
    """The matrix, float64 [out, size], that resizes along one axis.

    Equals `torch.nn.functional.interpolate(mode="bicubic", align_corners=False)`: a cubic kernel
    (Keys 1981) with a = -0.75, or -0.5 with `antialias`, where it also widens when it shrinks.
    """
    a, step = (-0.5 if antialias else -0.75), size / out
    widen = max(step, 1.0) if antialias else 1.0
    matrix = np.zeros((out, size))
    for i in range(out):
        center = (i + 0.5) * step - 0.5
        taps = np.arange(np.floor(center - 2 * widen), np.ceil(center + 2 * widen) + 1)
        weights = _cubic((taps - center) / widen, a)
        if antialias:  # only taps within the border, normalized to sum 1
            inside = (taps >= 0) & (taps < size)
            taps, weights = taps[inside], weights[inside] / weights[inside].sum()
        np.add.at(matrix[i], np.clip(taps, 0, size - 1).astype(int), weights)
    return matrix


def _cubic(x, a):
    x = np.abs(x)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def positions(table: np.ndarray, grid: tuple[int, int], *, antialias: bool) -> np.ndarray:
    """Resizes a table of position embeddings to another grid of patches.

    Args:
      table: [..., P + n * n, F]; the first P rows, of class and other tokens, do not change.
      grid: (height, width) in patches.
      antialias: see `bicubic`; False for Hugging Face's networks, True for timm's and OpenCLIP's.

    Returns:
      float32 [..., P + height * width, F].
    """
    count, width = table.shape[-2:]
    side = int(count**0.5)
    prefix = count - side * side
    if (side, side) == tuple(grid):
        return table
    matrices = [bicubic(n, side, antialias=antialias) for n in grid]
    square = table[..., prefix:, :].reshape(side, side, width).astype(np.float64)
    resized = np.einsum("hi,wj,ijf->hwf", *matrices, square, optimize=True).astype(np.float32)
    resized = resized.reshape(*table.shape[:-2], -1, width)
    return np.concatenate([table[..., :prefix, :], resized], -2)
