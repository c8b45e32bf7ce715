"""The peer's side of triplet_loss.py; runs in the peer's environment, driven over pipes.

Each line on standard input is `B D REPEATS`; each answer is one JSON line with the seconds of one
forward and backward pass of batch-hard mining and triplet loss, and the memory that it took.
"""

import json
import resource
import sys
import time

import numpy as np
import torch
from pytorch_metric_learning import distances, losses, miners, reducers

torch.set_num_threads(int(sys.argv[1]))
distance = distances.LpDistance(normalize_embeddings=False)
miner = miners.BatchHardMiner(distance=distance)
loss = losses.TripletMarginLoss(margin=0.2, distance=distance, reducer=reducers.MeanReducer())
size = None

for line in sys.stdin:
    *wanted, repeats = (int(n) for n in line.split())
    if wanted != size:
        size = wanted
        values = np.random.default_rng(0).standard_normal(size, np.float32)
        embeddings = torch.tensor(values, requires_grad=True)
        labels = torch.arange(size[0]) // 4
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    for _ in range(repeats):
        embeddings.grad = None
        value = loss(embeddings, labels, miner(embeddings, labels))
        value.backward()
    seconds = (time.perf_counter() - start) / repeats
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(
        json.dumps({"seconds": seconds, "grown_mb": grown / 1024, "loss": float(value.detach())}),
        flush=True,
    )
