"""The peer's side of training steps: networks and batch-hard triplets in PyTorch.

Runs in the environment that peer.py makes. Reads a number of steps a line, answers with seconds
per step.
"""

import sys

import timing
import torch
from torch import nn
from torch.nn import functional


class Residual(nn.Module):
    """Two 3 x 3 convolutions, or, with `wide`, the bottleneck of ResNet-50."""

    def __init__(self, inputs, filters, stride, wide):
        super().__init__()
        outputs = 4 * filters if wide else filters
        shapes = [(inputs, filters, 3, stride), (filters, filters, 3, 1)]
        if wide:
            shapes = [(inputs, filters, 1, 1), (filters, filters, 3, stride)]
            shapes.append((filters, outputs, 1, 1))
        self.parts = nn.ModuleList(map(_convolution, shapes))
        self.shortcut = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = _convolution((inputs, outputs, 1, stride))

    def forward(self, x):
        y = x
        for part in self.parts[:-1]:
            y = functional.relu(part(y))
        return functional.relu(self.parts[-1](y) + self.shortcut(x))


def _convolution(shape):
    inputs, outputs, size, stride = shape
    convolution = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs))


def resnet(blocks, wide, dimensions):
    layers = [_convolution((3, 64, 7, 2)), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    inputs = 64
    for stage, count in enumerate(blocks):
        filters = 64 * 2**stage
        for block in range(count):
            layers.append(Residual(inputs, filters, 2 if stage and not block else 1, wide))
            inputs = 4 * filters if wide else filters
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, dimensions)]
    return nn.Sequential(*layers)


class Transformer(nn.Module):
    """ViT-S/16, pooled by mean."""

    def __init__(self, size, depth, dimensions, width=384, heads=6, patch=16):
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.positions = nn.Parameter(0.02 * torch.randn((size // patch) ** 2, width))
        block = nn.TransformerEncoderLayer(
            width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, depth, nn.LayerNorm(width), False)
        self.head = nn.Linear(width, dimensions)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.blocks(x).mean(1))


def network(name, size, tiny, dimensions=128):
    if name == "vit":
        return Transformer(size, 1 if tiny else 12, dimensions)
    if name == "resnet50":
        return resnet((1, 1, 1, 1) if tiny else (3, 4, 6, 3), True, dimensions)
    return resnet((2, 2, 2, 2), False, dimensions)


def batch_hard():
    """The loss of pytorch-metric-learning, or the same in plain PyTorch where it is missing."""
    try:
        from pytorch_metric_learning import losses, miners
    except ImportError:
        return _batch_hard
    miner, loss = miners.BatchHardMiner(), losses.TripletMarginLoss(0.2)
    return lambda x, labels: loss(x, labels, miner(x, labels))


def _batch_hard(x, labels, margin=0.2):
    distances = (2 - 2 * x @ x.T).clamp_min(1e-12).sqrt()
    same = labels[:, None] == labels
    farthest = distances.masked_fill(~same, 0).amax(1)
    nearest = distances.masked_fill(same, 9).amin(1)
    return functional.relu(farthest - nearest + margin).mean()


def main(size, batch, threads, *options):
    torch.manual_seed(0)
    if int(threads):
        torch.set_num_threads(int(threads))
    size, batch = int(size), int(batch)
    torch.backends.cuda.matmul.allow_tf32 = True  # as TensorFlow does by default
    device = "cuda" if "cuda" in options else "cpu"
    name = next((n for n in options if n in ("resnet50", "vit")), "resnet18")
    net = network(name, size, "tiny" in options).to(device)
    x = torch.rand(batch, 3, size, size, device=device)
    if "channels_last" in options:
        net = net.to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
    if "compile" in options:
        net = torch.compile(net)
    labels = torch.arange(batch, device=device) // 4
    optimizer = torch.optim.SGD(net.parameters(), 1e-2, momentum=0.9)
    loss = batch_hard()

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype=torch.bfloat16, enabled="bf16" in options):
            embeddings = net(x)
        loss(functional.normalize(embeddings.float(), dim=1), labels).backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    timing.answer(step)


if __name__ == "__main__":
    main(*sys.argv[1:])
