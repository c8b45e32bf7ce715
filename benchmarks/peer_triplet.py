"""The peer's side of triplet_loss.py; runs in the peer's environment, driven over pipes.

Each line on standard input is `B D REPEATS`; each answer is the seconds of one forward and backward
pass of batch-hard mining and triplet loss, or, for 0 repeats, the MiB that one adds at most.
"""

import sys

import numpy as np
import timing
import torch
from pytorch_metric_learning import distances, losses, miners, reducers

torch.set_num_threads(int(sys.argv[1]))
distance = distances.LpDistance(normalize_embeddings=False)
miner = miners.BatchHardMiner(distance=distance)
loss = losses.TripletMarginLoss(margin=0.2, distance=distance, reducer=reducers.MeanReducer())
size = None


def step():
    embeddings.grad = None
    loss(embeddings, labels, miner(embeddings, labels)).backward()


for line in sys.stdin:
    *wanted, repeats = (int(n) for n in line.split())
    if wanted != size:
        size = wanted
        values = np.random.default_rng(0).standard_normal(size, np.float32)
        embeddings = torch.tensor(values, requires_grad=True)
        labels = torch.arange(size[0]) // 4
    print(timing.seconds(step, repeats) if repeats else timing.grown(step), flush=True)
