"""The peer's side of quality_vs_peer.py: the same head, batches and loss in PyTorch.

Runs in the environment that peer.py makes.
"""

import json
import os
import sys
import time

import numpy as np
import torch
from pytorch_metric_learning import distances, losses, miners
from torch.nn import functional

EUCLIDEAN = distances.LpDistance(normalize_embeddings=False)
LOSSES = {
    "supervised_contrastive": (None, losses.SupConLoss(temperature=0.1)),
    "multi_similarity": (
        miners.MultiSimilarityMiner(epsilon=0.1),
        losses.MultiSimilarityLoss(alpha=2, beta=50, base=0.5),
    ),
    "triplet": (
        miners.BatchHardMiner(distance=EUCLIDEAN),
        losses.TripletMarginLoss(margin=0.2, distance=EUCLIDEAN),
    ),
}


def main(path, name, learning_rate):
    torch.set_num_threads(os.cpu_count())
    data = dict(np.load(path))
    features, labels = torch.tensor(data["features"]), torch.tensor(data["labels"])
    head = torch.nn.Linear(features.shape[1], 128)
    with torch.no_grad():
        head.weight.copy_(torch.tensor(data["weights"]).T)
        head.bias.zero_()
    optimizer = torch.optim.Adam(head.parameters(), float(learning_rate))
    miner, loss = LOSSES[name]
    start = time.perf_counter()
    for batch in torch.tensor(data["batches"]):
        optimizer.zero_grad(set_to_none=True)
        embeddings, of = functional.normalize(head(features[batch]), dim=1), labels[batch]
        value = loss(embeddings, of, miner(embeddings, of)) if miner else loss(embeddings, of)
        value.backward()
        optimizer.step()
        last = value.item()
    seconds = time.perf_counter() - start
    with torch.no_grad():
        np.save(path + ".peer.npy", functional.normalize(head(features), dim=1).numpy())
    print(json.dumps({"seconds": seconds, "loss": last}))


if __name__ == "__main__":
    main(*sys.argv[1:])
