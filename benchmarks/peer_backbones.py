"""PyTorch's side of backbones.py: ResNet-50 and DINOv2's ViT-S/14 with random weights.

Runs in an environment with PyTorch alone.
"""

import sys

import torch
from torch import nn
from torch.nn import functional

from benchmarks import timing


class Bottleneck(nn.Module):
    def __init__(self, inputs, inner, stride):
        super().__init__()
        sizes = ((inputs, inner, 1, 1), (inner, inner, 3, stride), (inner, 4 * inner, 1, 1))
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, size, by, size // 2, bias=False) for a, b, size, by in sizes
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) for _, b, _, _ in sizes)
        self.shortcut = nn.Identity()
        if inputs != 4 * inner:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, 4 * inner, 1, stride, bias=False), nn.BatchNorm2d(4 * inner)
            )

    def forward(self, x):
        y = x
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            y = norm(conv(y))
            y = functional.relu(y) if i < 2 else y
        return functional.relu(y + self.shortcut(x))


def resnet50():
    layers = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    layers.append(nn.MaxPool2d(3, 2, 1))
    inputs = 64
    for stage, (inner, blocks) in enumerate(zip((64, 128, 256, 512), (3, 4, 6, 3), strict=True)):
        for block in range(blocks):
            layers.append(Bottleneck(inputs, inner, 2 if stage and not block else 1))
            inputs = 4 * inner
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), 2048


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale1, self.scale2 = (nn.Parameter(torch.ones(width)) for _ in range(2))

    def forward(self, x):
        b, n, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(*qkv).transpose(1, 2).reshape(b, n, width)
        x = x + self.scale1 * self.out(y)
        return x + self.scale2 * self.fc2(functional.gelu(self.fc1(self.norm2(x))))


class VisionTransformer(nn.Module):
    def __init__(self, width=384, heads=6, depth=12, patch=14, size=224):
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, 1 + (size // patch) ** 2, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        return self.norm(self.blocks(x))[:, 0]


def main(name, mode, precision, engine, size, batch, threads):
    torch.manual_seed(0)
    torch.set_num_threads(int(threads))
    size, batch = int(size), int(batch)
    x = torch.rand(batch, 3, size, size) * 2 - 1
    if name == "resnet50":
        net, width = resnet50()
        net = net.to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
    else:
        net, width = VisionTransformer(size=size), 384
    net.train(mode == "train")
    run = torch.compile(net) if engine == "compile" else net
    optimizer = torch.optim.SGD(net.parameters(), 1e-4, momentum=0.9)
    target = torch.eye(batch, width)
    sixteen = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16")

    def forward():
        with torch.inference_mode(), sixteen:
            return run(x)

    def train():
        with sixteen:
            y = run(x)
        loss = (functional.normalize(y.float()) - target).square().sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    timing.answer(train if mode == "train" else forward)


if __name__ == "__main__":
    main(*sys.argv[1:])
