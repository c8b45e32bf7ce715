"""Writes old_oracle.json: what TensorFlow Addons and TensorFlow Similarity compute.

Neither installs beside today's TensorFlow, so they run in an environment of their own, on Python
3.11 or older:

    pip install tensorflow-cpu==2.15.1 tensorflow-addons==0.23.0 tensorflow-similarity==0.17.1 \
        "numpy<2" typeguard
    python tests/metriclearn/make_old_oracle.py

The batch is that of oracle.json. Both libraries compute in float32.
"""

import json
import pathlib

import numpy as np
import tensorflow as tf
import tensorflow_addons.losses as addons
import tensorflow_similarity.losses as similarity

HERE = pathlib.Path(__file__).parent
BATCH = json.loads((HERE / "oracle.json").read_text())
LABELS = tf.constant(BATCH["labels"], tf.int32)
X = tf.constant(BATCH["embeddings"], tf.float32)
ONE, OTHER = X[0::3], X[1::3]  # two views of each class
UNIT = tf.math.l2_normalize(X, axis=1)  # which TensorFlow Similarity's cosine takes for granted
CLASSES = tf.range(4)
TWO_VIEWS = tf.concat([ONE, OTHER], 0)
PAIRS = tf.constant([[i, j] for i in range(12) for j in range(i)])
DISTANCES = tf.norm(tf.gather(X, PAIRS[:, 0]) - tf.gather(X, PAIRS[:, 1]), axis=1)
ARE_SAME = tf.gather(LABELS, PAIRS[:, 0]) == tf.gather(LABELS, PAIRS[:, 1])
EACH = {"reduction": tf.keras.losses.Reduction.NONE}


def with_memory():
    loss = similarity.XBM(similarity.MultiSimilarityLoss(beta=10.0), memory_size=24)
    loss(LABELS, tf.roll(UNIT, 1, axis=1))
    return loss(LABELS, UNIT)


VALUES = {
    "addons.TripletSemiHardLoss": addons.TripletSemiHardLoss(margin=1.0)(LABELS, X),
    "addons.TripletHardLoss": addons.TripletHardLoss(margin=1.0)(LABELS, X),
    "addons.TripletHardLoss soft": addons.TripletHardLoss(soft=True)(LABELS, X),
    "addons.TripletHardLoss squared-L2": addons.TripletHardLoss(
        margin=1.0, distance_metric="squared-L2"
    )(LABELS, X),
    "addons.TripletHardLoss angular": addons.TripletHardLoss(margin=1.0, distance_metric="angular")(
        LABELS, X
    ),
    "addons.ContrastiveLoss": addons.ContrastiveLoss(margin=2.0)(ARE_SAME, DISTANCES),
    "addons.LiftedStructLoss": addons.LiftedStructLoss(margin=1.0)(LABELS, X),
    "addons.NpairsLoss": addons.NpairsLoss()(CLASSES, ONE @ tf.transpose(OTHER)),
    "addons.NpairsMultilabelLoss": addons.NpairsMultilabelLoss()(
        tf.eye(4), ONE @ tf.transpose(OTHER)
    ),
    "similarity.TripletLoss hard hard": similarity.TripletLoss(
        "cosine", "hard", "hard", margin=0.3
    )(LABELS, UNIT),
    "similarity.TripletLoss easy easy": similarity.TripletLoss("l2", "easy", "easy", margin=4.0)(
        LABELS, X
    ),
    "similarity.TripletLoss soft": similarity.TripletLoss("l2", "hard", "hard")(LABELS, X),
    "similarity.TripletLoss semi-hard": similarity.TripletLoss(
        "cosine", "hard", "semi-hard", margin=0.3, **EACH
    )(LABELS, UNIT),
    "similarity.PNLoss": similarity.PNLoss("cosine", "hard", "hard", margin=0.3)(LABELS, UNIT),
    "similarity.MultiSimilarityLoss": similarity.MultiSimilarityLoss(beta=10.0)(LABELS, UNIT),
    "similarity.CircleLoss": similarity.CircleLoss(gamma=8.0)(LABELS, UNIT),
    "similarity.SoftNearestNeighborLoss": similarity.SoftNearestNeighborLoss(temperature=2.0)(
        LABELS, X
    ),
    "similarity.MultiNegativesRankLoss": similarity.MultiNegativesRankLoss(scale=3)(ONE, OTHER),
    "similarity.SimCLRLoss": similarity.SimCLRLoss(temperature=0.2)(ONE, OTHER),
    "similarity.VicReg": similarity.VicReg(mu=0)(ONE, OTHER),
    "similarity.Barlow": similarity.Barlow()(ONE, OTHER),
    "similarity.SimSiamLoss": similarity.SimSiamLoss()(ONE, OTHER),
    "similarity.XBM": with_memory(),
}
for name, value in VALUES.items():
    print(f"{name:40} {np.asarray(value)}")
made_by = "tensorflow-addons 0.23.0 and tensorflow-similarity 0.17.1 on TensorFlow 2.15.1"
values = {name: np.asarray(value, np.float64).tolist() for name, value in VALUES.items()}
text = json.dumps({"made_by": made_by, "values": values}, indent=1)
(HERE / "old_oracle.json").write_text(text + "\n")
