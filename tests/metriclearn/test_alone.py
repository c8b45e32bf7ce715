"""The library needs TensorFlow and NumPy, and nothing else of this project."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent.parent
# TensorFlow may load what it likes, so what it brings is subtracted.
CODE = """
import sys
import numpy as np
import tensorflow
before = set(sys.modules)
import metriclearn
print(metriclearn.__file__)
print(*sorted(set(sys.modules) - before))
for name in metriclearn.__all__:
    getattr(metriclearn, name)
print(*{name.split('.')[0] for name in set(sys.modules) - before})
from metriclearn import augment, datasets
labels, x = np.arange(8) % 4, np.random.default_rng(0).normal(size=(8, 3))
assert np.isfinite(metriclearn.triplet_loss(labels, x))
assert len(metriclearn.pk_sampler(labels, products=2, images=2)(0)) == 4
print(*{name.split('.')[0] for name in sys.modules} & {'trainer', 'retrieval', 'models', 'faiss'})
"""


def test_it_works_in_a_folder_of_its_own(tmp_path):
    """Its import costs one small module, and its names only the library's own."""
    (tmp_path / "metriclearn").symlink_to(ROOT / "metriclearn")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", CODE], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    here = str(tmp_path / "metriclearn" / "__init__.py")
    assert done.stdout.splitlines() == [here, "metriclearn", "metriclearn", ""], done.stderr
