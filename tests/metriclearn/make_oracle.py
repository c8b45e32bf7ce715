"""Writes oracle.json: what pytorch-metric-learning computes where its definition is ours.

    python -m benchmarks.peer tests/metriclearn/make_oracle.py

Float64, `LpDistance(normalize_embeddings=False)`, plain means. Excluded, because the peer defines
them otherwise: proxy-NCA (its softmax includes the own proxy), n-pairs (two embeddings per class),
Smooth-AP (the query counts among its own positives).

Where the peer's code departs from its own formula, the case says what was changed to compute the
formula: angular gets normalized embeddings (the peer normalizes anchors and positives only), the
manifold loss's matrix is inverted in float64 (the peer casts it to float32), and the histogram of
the dynamic soft margin carries no gradient (the peer's second step fails because it does).
"""

import json
import math
import pathlib

import numpy as np
import torch
import torch.nn.functional as F
from pytorch_metric_learning import distances, losses, miners, reducers
from pytorch_metric_learning.utils import loss_and_miner_utils

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


def set_weight(loss, name, value):
    """Sets a parameter of a loss, whose layout differs from loss to loss."""
    getattr(loss, name).data = torch.tensor(value)
    return loss


def first_classes(loss):
    """The peer's instance loss takes column c for class c, so class c must come first in row c."""
    return lambda x, labels, _: loss(x[INTERLEAVED], labels[INTERLEAVED])


def without_gradient_of_histogram(loss):
    loss.update_histogram = torch.no_grad()(loss.update_histogram)
    return loss


def in_float64(loss):
    """The manifold loss takes its labels as a miner's result."""

    def run(x, labels, _):
        cast, torch.Tensor.float = torch.Tensor.float, torch.Tensor.double
        try:
            return loss(x, indices_tuple=labels)
        finally:
            torch.Tensor.float = cast

    return run


# Rows in which class c comes first in row c; the inverse puts gradients back.
INTERLEAVED = np.arange(12).reshape(4, 3).T.reshape(-1)
CENTERS = rng.normal(size=(4, 2, 5)).round(3)
COLUMNS = CENTERS.reshape(8, 5).T
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
        "lifted_structured",
        {"margin": 1.0, "form": "pairs"},
        losses.LiftedStructureLoss(neg_margin=1.0, distance=EUCLIDEAN, reducer=MEAN),
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
    (
        "generalized_lifted_structured",
        {"positive_margin": 0.3, "negative_margin": 1.5},
        losses.GeneralizedLiftedStructureLoss(
            neg_margin=1.5, pos_margin=0.3, distance=EUCLIDEAN, reducer=MEAN
        ),
        None,
    ),
    (
        "angular",
        {"angle": 35.0},
        lambda x, labels, _: losses.AngularLoss(alpha=35, reducer=MEAN)(F.normalize(x), labels),
        None,
    ),
    (
        "dynamic_soft_margin",
        {},
        without_gradient_of_histogram(losses.DynamicSoftMarginLoss()),
        None,
    ),
    ("histogram", {"bins": 20}, losses.HistogramLoss(n_bins=20), None),
    ("instance", {"scale": 8.0}, first_classes(losses.InstanceLoss(gamma=8)), None),
    (
        "intra_pair_variance",
        {"positive_epsilon": 0.02, "negative_epsilon": 0.03},
        losses.IntraPairVarianceLoss(pos_eps=0.02, neg_eps=0.03),
        None,
    ),
    (
        "nca",
        {"scale": 0.7},
        losses.NCALoss(
            softmax_scale=0.7,
            distance=distances.LpDistance(normalize_embeddings=False, power=2),
            reducer=MEAN,
        ),
        None,
    ),
    ("nt_xent", {"temperature": 0.2}, losses.NTXentLoss(temperature=0.2, reducer=MEAN), None),
    (
        "ranked_list",
        {"margin": 0.5, "boundary": 2.5, "positive_temperature": 0.5, "negative_temperature": 2.0},
        losses.RankedListLoss(
            margin=0.5, alpha=2.5, Tp=0.5, Tn=2.0, distance=EUCLIDEAN, reducer=MEAN
        ),
        None,
    ),
    (
        "snr_contrastive",
        {"positive_margin": 0.1, "negative_margin": 2.0},
        losses.SignalToNoiseRatioContrastiveLoss(
            pos_margin=0.1,
            neg_margin=2.0,
            distance=distances.SNRDistance(normalize_embeddings=False),
            reducer=MEAN,
        ),
        None,
    ),
    (
        "threshold_consistent_margin",
        {"positive_margin": 0.8, "negative_margin": 0.1, "positive_weight": 0.5},
        losses.ThresholdConsistentMarginLoss(
            margin_plus=0.8, margin_minus=0.1, lambda_plus=0.5, lambda_minus=1.0
        ),
        None,
    ),
    (
        "tuplet_margin",
        {"margin": 0.2, "scale": 8.0},
        losses.TupletMarginLoss(margin=math.degrees(0.2), scale=8, reducer=MEAN),
        None,
    ),
    (
        "vicreg",
        {"invariance": 20.0, "variance": 10.0, "covariance": 2.0},
        lambda x, labels, _: losses.VICRegLoss(
            invariance_lambda=20, variance_mu=10, covariance_v=2
        )(x[0::3], ref_emb=x[1::3]),
        None,
    ),
    *(
        (
            "pnp",
            {"variant": variant, "temperature": 0.1, "count_query": True} | options,
            losses.PNPLoss(variant=variant, anneal=0.1, **options),
            None,
        )
        for variant, options in (
            ("O", {}),
            ("Ds", {}),
            ("Dq", {"alpha": 2}),
            ("Iu", {}),
            ("Ib", {"b": 3}),
        )
    ),
    (
        "large_margin_softmax",
        {"margin": 3, "scale": 0.5},
        with_proxies(losses.LargeMarginSoftmaxLoss(4, 5, margin=3, scale=0.5, reducer=MEAN), True),
        None,
    ),
    (
        "sphereface",
        {"margin": 4, "scale": 2.0},
        with_proxies(losses.SphereFaceLoss(4, 5, margin=4, scale=2.0, reducer=MEAN), True),
        None,
    ),
    ("p2sgrad", {}, set_weight(losses.P2SGradLoss(5, 4), "weight", PROXIES.T), None),
    (
        "sub_center_arcface",
        {"margin": 0.3, "scale": 8.0},
        set_weight(
            losses.SubCenterArcFaceLoss(
                num_classes=4,
                embedding_size=5,
                margin=math.degrees(0.3),
                scale=8.0,
                sub_centers=2,
                reducer=MEAN,
            ),
            "W",
            COLUMNS,
        ),
        None,
    ),
    (
        "soft_triple",
        {"margin": 0.05, "scale": 8.0, "temperature": 0.2},
        set_weight(
            losses.SoftTripleLoss(
                4, 5, centers_per_class=2, la=8, gamma=0.2, margin=0.05, reducer=MEAN
            ),
            "fc",
            COLUMNS,
        ),
        None,
    ),
    (
        "manifold",
        {"context_weight": 0.5, "restart": 0.3, "margin": 0.01},
        in_float64(
            set_weight(
                losses.ManifoldLoss(5, K=4, lambdaC=0.5, alpha=0.7, margin=0.01),
                "proxies",
                PROXIES,
            )
        ),
        None,
    ),
    (
        "weighted_sum",
        {
            "terms": [
                ["triplet", 0.7, {"miner": "batch_all", "margin": 1.0}],
                ["nt_xent", 0.3, {"temperature": 0.2}],
            ]
        },
        losses.MultipleLosses(
            [triplet(margin=1.0), losses.NTXentLoss(temperature=0.2, reducer=MEAN)],
            weights=[0.7, 0.3],
        ),
        None,
    ),
]

# Miners of pairs, and of triplets as all combinations of an anchor's pairs.
MINERS = [
    ("angular", {"angle": 20.0}, miners.AngularMiner(angle=20)),
    ("hdc", {"share": 0.25}, miners.HDCMiner(filter_percentage=0.25, distance=EUCLIDEAN)),
    (
        "pair_margin",
        {"positive_margin": 1.5, "negative_margin": 2.5},
        miners.PairMarginMiner(pos_margin=1.5, neg_margin=2.5, distance=EUCLIDEAN),
    ),
    # So many steps that no two pairs share one: nothing is left to chance.
    (
        "uniform_histogram",
        {"bins": 100_000, "positives_per_bin": 2, "negatives_per_bin": 3},
        miners.UniformHistogramMiner(100_000, pos_per_bin=2, neg_per_bin=3, distance=EUCLIDEAN),
    ),
    ("multi_similarity", {"epsilon": 0.2}, miners.MultiSimilarityMiner(epsilon=0.2)),
    *(
        (
            "triplet_margin",
            {"kind": ours, "margin": 0.5},
            miners.TripletMarginMiner(margin=0.5, type_of_triplets=theirs, distance=EUCLIDEAN),
        )
        for ours, theirs in (
            ("all", "all"),
            ("hard", "hard"),
            ("semi_hard", "semihard"),
            ("easy", "easy"),
        )
    ),
    *(
        (
            "batch_easy_hard",
            {"positive": positive, "negative": negative},
            miners.BatchEasyHardMiner(
                positive.replace("_", ""), negative.replace("_", ""), distance=EUCLIDEAN
            ),
        )
        for positive in ("easy", "hard", "semi_hard", "all")
        for negative in ("easy", "hard", "semi_hard", "all")
        if {positive, negative} not in ({"semi_hard"}, {"semi_hard", "all"})
    ),
    (
        "batch_easy_hard",
        {
            "positive": "hard",
            "negative": "hard",
            "positive_range": [0.5, 2.5],
            "negative_range": [1.5, 4.0],
        },
        miners.BatchEasyHardMiner("hard", "hard", (0.5, 2.5), (1.5, 4.0), distance=EUCLIDEAN),
    ),
]
OF_PAIRS = ("hdc", "pair_margin", "uniform_histogram", "multi_similarity")

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

mined = []
for name, options, miner in MINERS:
    embeddings, labels = torch.tensor(EMBEDDINGS), torch.tensor(LABELS)
    rows = miner(embeddings, labels)
    if name not in OF_PAIRS:
        rows = loss_and_miner_utils.convert_to_triplets(rows, labels)
    rows = [row.tolist() for row in rows]
    mined.append({"miner": name, "options": options, "rows": rows})
    print(f"{name:24} {[len(row) for row in rows]}  {options}")

oracle = {
    "made_by": "pytorch-metric-learning 2.9.0, torch 2.13.0",
    "labels": LABELS.tolist(),
    "embeddings": EMBEDDINGS.tolist(),
    "proxies": PROXIES.tolist(),
    "centers": CENTERS.tolist(),
    "vectors": vectors,
    "mined": mined,
}
path = pathlib.Path(__file__).with_name("oracle.json")
path.write_text(json.dumps(oracle, indent=1) + "\n")
