"""What replaces TensorFlow Addons and TensorFlow Similarity, against vectors of theirs.

Each entry computes, with our functions, what the old one computed (make_old_oracle.py). Where no
option does, it states the difference by what has to be done to our terms.
"""

import functools
import json
import pathlib
import re

import numpy as np
import pytest

import metriclearn as ml

pytestmark = pytest.mark.numeric
HERE = pathlib.Path(__file__).parent
OLD = json.loads((HERE / "old_oracle.json").read_text())["values"]
BATCH = json.loads((HERE / "oracle.json").read_text())
LABELS, X = np.array(BATCH["labels"]), np.array(BATCH["embeddings"])
CLASSES, ONE, OTHER = np.arange(4), X[0::3], X[1::3]
ACROSS = ml.References(CLASSES, OTHER, [-1] * 4)  # the other view, in which no row is the anchor
VIEWS = np.concatenate([CLASSES, CLASSES]), np.concatenate([ONE, OTHER])
ADDONS_SEMI_HARD = functools.partial(ml.mine_semi_hard, margin=None, fallback="farthest")
HARD_SEMI_HARD = functools.partial(ml.mine_batch_easy_hard, positive="hard", negative="semi_hard")
EASY_EASY = functools.partial(ml.mine_batch_easy_hard, positive="easy", negative="easy")


def squared_contrastive():
    """Squares each term, and averages all pairs together."""
    return np.mean(ml.contrastive_loss(LABELS, X, negative_margin=2.0, reduction="none") ** 2)


def semi_hard_of_similarity():
    """Anchors whose farthest positive has no negative beyond take the farthest negative."""
    with_one = HARD_SEMI_HARD(LABELS, X, distance="cosine")
    terms = np.full([12, 1], np.nan)
    options = {"distance": "cosine", "margin": 0.3, "reduction": "none"}
    hard_easy = functools.partial(HARD_SEMI_HARD, negative="easy")
    terms[:, 0] = ml.triplet_loss(LABELS, X, miner=hard_easy, **options)
    terms[with_one.anchors, 0] = ml.triplet_loss(LABELS, X, miner=HARD_SEMI_HARD, **options)
    return terms


def positive_negative():
    """The negative is compared with the positive, too, and the nearer distance counts."""
    a, p, n = ml.mine_batch_hard(LABELS, X, distance="cosine")
    d = ml.pairwise_distances(X, distance="cosine").numpy()
    return np.mean(np.maximum(0, d[a, p] - np.minimum(d[a, n], d[p, n]) + 0.3))


def circle_of_similarity():
    """Adds log(1 + sum) of positives and negatives, where the paper has log(1 + product)."""
    s, same = 1 - ml.pairwise_distances(X, distance="cosine").numpy(), LABELS[:, None] == LABELS
    pull = np.where(same & ~np.eye(12, dtype=bool), np.exp(-8 * (1.4 - s) * (s - 0.6)), 0)
    push = np.where(~same, np.exp(8 * np.maximum(s + 0.4, 0) * (s - 0.4)), 0)
    ours = ml.circle_loss(LABELS, X, relaxation=0.4, gamma=8.0)
    np.testing.assert_allclose(ours, np.mean(np.log1p(pull.sum(1) * push.sum(1))))
    return np.mean(np.log1p(pull.sum(1)) + np.log1p(push.sum(1)))


def with_a_candidate_of_zeros():
    """Its sum of exponentials has a 1 more, as if a zero vector were among the negatives."""
    others = ml.References([*CLASSES, -1], np.concatenate([OTHER, np.zeros([1, 5])]), [-1] * 4)
    return ml.n_pairs_loss(CLASSES, 3 * ONE, references=others)


def with_memory():
    memory = ml.cross_batch_memory(24, 5, dtype="float64")
    ml.enqueue(memory, LABELS, np.roll(X, 1, axis=1))
    references = ml.enqueue(memory, LABELS, X)
    return ml.multi_similarity_loss(LABELS, X, beta=10.0, references=references)


HERE_NOW = {
    "addons.TripletSemiHardLoss": lambda: ml.triplet_loss(
        LABELS, X, miner=ADDONS_SEMI_HARD, margin=1.0
    ),
    "addons.TripletHardLoss": lambda: ml.triplet_loss(LABELS, X, margin=1.0),
    "addons.TripletHardLoss soft": lambda: ml.triplet_loss(LABELS, X, soft_margin=True),
    "addons.TripletHardLoss squared-L2": lambda: ml.triplet_loss(
        LABELS, X, margin=1.0, distance="squared"
    ),
    "addons.TripletHardLoss angular": lambda: ml.triplet_loss(
        LABELS, X, margin=1.0, distance="cosine"
    ),
    "addons.ContrastiveLoss": squared_contrastive,
    "addons.LiftedStructLoss": lambda: ml.lifted_structured_loss(LABELS, X, form="pairs"),
    "addons.NpairsLoss": lambda: ml.n_pairs_loss(CLASSES, ONE, references=ACROSS),
    "addons.NpairsMultilabelLoss": lambda: ml.n_pairs_loss(CLASSES, ONE, references=ACROSS),
    "similarity.TripletLoss hard hard": lambda: ml.triplet_loss(
        LABELS, X, distance="cosine", margin=0.3
    ),
    "similarity.TripletLoss easy easy": lambda: ml.triplet_loss(
        LABELS, X, miner=EASY_EASY, margin=4.0
    ),
    "similarity.TripletLoss soft": lambda: ml.triplet_loss(LABELS, X, soft_margin=True),
    "similarity.TripletLoss semi-hard": semi_hard_of_similarity,
    "similarity.PNLoss": positive_negative,
    "similarity.MultiSimilarityLoss": lambda: ml.multi_similarity_loss(LABELS, X, beta=10.0),
    "similarity.CircleLoss": circle_of_similarity,
    "similarity.SoftNearestNeighborLoss": lambda: ml.nca_loss(LABELS, X, scale=1 / 2.0),
    "similarity.MultiNegativesRankLoss": with_a_candidate_of_zeros,
    "similarity.SimCLRLoss": lambda: 2 * ml.nt_xent_loss(*VIEWS, temperature=0.2),
    "similarity.VicReg": lambda: ml.vicreg_loss(*VIEWS, variance=0.0),
    "similarity.Barlow": lambda: ml.barlow_twins_loss(*VIEWS),
    "similarity.SimSiamLoss": lambda: ml.simsiam_loss(*VIEWS) / 2 + 0.001,
    "similarity.XBM": with_memory,
}


@pytest.mark.parametrize("name", OLD)
def test_it_computes_what_the_old_one_did(name):
    wanted = np.array(OLD[name])
    if name == "similarity.VicReg":
        wanted = wanted.mean()  # it gives a value per example, and Keras averages
    # The old libraries compute in float32: rounding of distances of a few units, times 10.
    tolerance = 10 * 32 * np.finfo(np.float32).eps
    np.testing.assert_allclose(HERE_NOW[name](), wanted, rtol=tolerance, atol=tolerance)


def test_the_guide_lists_them_all():
    guide = (HERE.parent.parent / "docs" / "keras.md").read_text(encoding="utf-8")
    for library, heading in (
        ("addons", "TensorFlow Addons"),
        ("similarity", "TensorFlow Similarity"),
    ):
        section = guide.partition(f"## From {heading}")[2].partition("\n## ")[0]
        named = set(re.findall(r"^\| `(\w+)`", section, re.M))
        computed = {key.split(".")[1].split()[0] for key in OLD if key.startswith(library)}
        assert computed <= named
