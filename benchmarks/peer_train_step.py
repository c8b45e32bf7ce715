"""The peer's side of train_step.py: ResNet-18 and batch-hard triplets in PyTorch.

Runs in the environment that peer.py makes. Reads a number of steps a line, answers with seconds.
"""

import sys
import time

import torch
from pytorch_metric_learning import losses, miners
from torch import nn
from torch.nn import functional


class Residual(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x):
        y = functional.relu(self.first_norm(self.first(x)))
        return functional.relu(self.second_norm(self.second(y)) + self.shortcut(x))


def network(dimensions):
    layers = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    layers.append(nn.MaxPool2d(3, 2, 1))
    inputs = 64
    for stage, outputs in enumerate((64, 128, 256, 512)):
        layers += [Residual(inputs, outputs, 2 if stage else 1), Residual(outputs, outputs, 1)]
        inputs = outputs
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, dimensions)]
    return nn.Sequential(*layers)


def main(size, batch, threads, *options):
    torch.manual_seed(0)
    torch.set_num_threads(int(threads))
    size, batch = int(size), int(batch)
    net, x = network(128), torch.rand(batch, 3, size, size)
    if "channels_last" in options:
        net = net.to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
    if "compile" in options:
        net = torch.compile(net)
    labels = torch.arange(batch) // 4
    optimizer = torch.optim.SGD(net.parameters(), 1e-2, momentum=0.9)
    miner, loss = miners.BatchHardMiner(), losses.TripletMarginLoss(0.2)

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled="bf16" in options):
            embeddings = net(x)
        embeddings = functional.normalize(embeddings.float(), dim=1)
        loss(embeddings, labels, miner(embeddings, labels)).backward()
        optimizer.step()

    for line in sys.stdin:
        start = time.perf_counter()
        for _ in range(int(line)):
            step()
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
