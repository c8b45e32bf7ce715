"""The network, its loss and its validation figures."""

import numpy as np
import tensorflow as tf

import metriclearn
from models.simple.config import config
from models.simple.datasets import channels
from retrieval.metrics import recall_at_k
from trainer.layers import ModelDict, conv2d, dense, dropout, group_norm


def build(inputs=None, train_phase=False):
    """Builds one tower: `image`, uint8 [B, H, W, C] -> `embeddings`, [B, D] of length 1."""
    if inputs is None:
        size = config["model.image_size"]
        shape = [None, size, size, channels()]
        inputs = {"image": tf.compat.v1.placeholder(tf.uint8, shape, "image")}
    model = ModelDict(image=inputs["image"])
    model.pixels = tf.cast(model.image, tf.float32) / 127.5 - 1
    for i, filters in enumerate(config["model.filters"]):
        x = conv2d(model.last, filters, 3, f"conv{i}", strides=2, use_bias=False)
        model[f"conv{i}"] = tf.nn.relu(group_norm(x, 8, f"norm{i}"))
    model.features = tf.reshape(model.last, [-1, model.last.shape[1:].num_elements()])
    dropped = dropout(model.features, config["model.dropout"], train_phase)
    model.projection = dense(dropped, config["model.embedding_size"], "embedding")
    model.embeddings = tf.nn.l2_normalize(model.projection, axis=1)
    if "label" in inputs:
        model.labels = inputs["label"]
    return model


def loss(outputs):
    """Triplet loss over the whole batch, with the embeddings of all towers."""
    batch, margin = (outputs.labels, outputs.embeddings), config["model.margin"]
    hardest = metriclearn.mine_batch_hard(*batch)
    figures = metriclearn.triplet_statistics(*batch, hardest, margin=margin)
    figures |= metriclearn.embedding_statistics(outputs.embeddings)
    for name, value in figures.items():
        tf.compat.v1.summary.scalar(f"mining/{name}", value)
    return {
        "loss": metriclearn.triplet_loss(
            *batch, margin=margin, miner=config["model.miner"], reduction="nonzero_mean"
        ),
        "triplets": tf.stack(hardest, axis=1),
        "hardest_triplet": metriclearn.hardest_triplet(outputs.embeddings, hardest),
    }


def metrics(outputs):
    """Recall@1 on the validation split; each product's first image is the catalogue."""
    embeddings, labels = outputs["embeddings"], outputs["labels"]
    first = np.unique(labels, return_index=True)[1]
    query = np.setdiff1d(np.arange(len(labels)), first)
    rates = recall_at_k(embeddings[query], labels[query], embeddings[first], labels[first], ks=(1,))
    return {"recall@1": rates[1]}
