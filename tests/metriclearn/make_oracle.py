"""Writes oracle.json: what pytorch-metric-learning computes where its definition is ours.

    python -m benchmarks.peer tests/metriclearn/make_oracle.py

Float64, `LpDistance(normalize_embeddings=False)`, plain means. Excluded, because the peer defines
them otherwise: proxy-NCA (its softmax includes the own proxy), n-pairs (two embeddings per class),
semi-hard triplets (all of them within the margin, not the nearest), Smooth-AP (the query counts
among its own positives).
"""

import json
import math
import pathlib

import numpy as np
import torch
from pytorch_metric_learning import distances, losses, miners, reducers

torch.set_default_dtype(torch.float64)
rng = np.random.default_rng(2024)
LABELS = np.repeat(np.arange(4), 3)
EMBEDDINGS = rng.normal(size=(12, 5)).round(3)
PROXIES = rng.normal(size=(4, 5)).round(3)
EUCLIDEAN = distances.LpDistance(normalize_embeddings=False)
MEAN = reducers.MeanReducer()


def triplet(**options):
    reducer = options.pop("reducer", MEAN)
    return losses.TripletMarginLoss(distance=EUCLIDEAN, reducer=reducer, **options)


def easy(strategy):
    return miners.BatchEasyHardMiner(pos_strategy="easy", neg_strategy=strategy, distance=EUCLIDEAN)


def with_proxies(loss, transposed):
    """Classification losses keep one column per class, proxy-anchor one row."""
    weights = torch.tensor(PROXIES.T if transposed else PROXIES)
    parameter = loss.W if transposed else loss.proxies
    parameter.data = weights.clone()
    return loss


HARDEST = miners.BatchHardMiner(distance=EUCLIDEAN)
MINED = {"margin": 1.0}
CASES = [
    (
        "triplet",
        {"miner": "batch_hard"} | MINED,
        triplet(margin=1.0),
        HARDEST,
    ),
    ("triplet", {"miner": "batch_all"} | MINED, triplet(margin=1.0), None),
    (
        "triplet",
        {"miner": "batch_all", "reduction": "nonzero_mean"} | MINED,
        triplet(margin=1.0, reducer=reducers.AvgNonZeroReducer()),
        None,
    ),
    (
        "triplet",
        {"miner": "batch_hard", "soft_margin": True},
        triplet(margin=0.0, smooth_loss=True),
        HARDEST,
    ),
    ("triplet", {"miner": "easy_positive"} | MINED, triplet(margin=1.0), easy("semihard")),
    (
        "contrastive",
        {"positive_margin": 0.1, "negative_margin": 2.0},
        losses.ContrastiveLoss(pos_margin=0.1, neg_margin=2.0, distance=EUCLIDEAN, reducer=MEAN),
        None,
    ),
    (
        "lifted_structured",
        {"margin": 1.0},
        losses.GeneralizedLiftedStructureLoss(
            neg_margin=1.0, pos_margin=0.0, distance=EUCLIDEAN, reducer=MEAN
        ),
        None,
    ),
    (
        "multi_similarity",
        {"alpha": 2.0, "beta": 10.0, "base": 0.5, "epsilon": None},
        losses.MultiSimilarityLoss(alpha=2.0, beta=10.0, base=0.5, reducer=MEAN),
        None,
    ),
    (
        "multi_similarity",
        {"alpha": 2.0, "beta": 10.0, "base": 0.5, "epsilon": 0.1},
        losses.MultiSimilarityLoss(alpha=2.0, beta=10.0, base=0.5, reducer=MEAN),
        miners.MultiSimilarityMiner(epsilon=0.1),
    ),
    (
        "circle",
        {"relaxation": 0.4, "gamma": 8.0},
        losses.CircleLoss(m=0.4, gamma=8.0, reducer=MEAN),
        None,
    ),
    (
        "supervised_contrastive",
        {"temperature": 0.2},
        losses.SupConLoss(temperature=0.2, reducer=MEAN),
        None,
    ),
    ("fast_ap", {"bins": 10}, losses.FastAPLoss(num_bins=10, reducer=MEAN), None),
    (
        "normalised_softmax",
        {"scale": 8.0},
        with_proxies(losses.NormalizedSoftmaxLoss(4, 5, temperature=1 / 8.0, reducer=MEAN), True),
        None,
    ),
    (
        "cosface",
        {"margin": 0.35, "scale": 8.0},
        with_proxies(losses.CosFaceLoss(4, 5, margin=0.35, scale=8.0, reducer=MEAN), True),
        None,
    ),
    (
        "arcface",
        {"margin": 0.3, "scale": 8.0},
        with_proxies(
            losses.ArcFaceLoss(4, 5, margin=math.degrees(0.3), scale=8.0, reducer=MEAN), True
        ),
        None,
    ),
    (
        "proxy_anchor",
        {"margin": 0.1, "scale": 8.0},
        with_proxies(losses.ProxyAnchorLoss(4, 5, margin=0.1, alpha=8.0), False),
        None,
    ),
]

vectors = []
for name, options, loss, miner in CASES:
    embeddings, labels = torch.tensor(EMBEDDINGS, requires_grad=True), torch.tensor(LABELS)
    value = loss(embeddings, labels, miner(embeddings, labels) if miner else None)
    value.backward()
    vectors.append(
        {
            "loss": name,
            "options": options,
            "value": value.item(),
            "gradient": [[float(f"{g:.12g}") for g in row] for row in embeddings.grad.tolist()],
        }
    )
    print(f"{name:24} {value.item():.6f}  {options}")

oracle = {
    "made_by": "pytorch-metric-learning 2.9.0, torch 2.13.0",
    "labels": LABELS.tolist(),
    "embeddings": EMBEDDINGS.tolist(),
    "proxies": PROXIES.tolist(),
    "vectors": vectors,
}
path = pathlib.Path(__file__).with_name("oracle.json")
path.write_text(json.dumps(oracle, indent=1) + "\n")
