"""Losses: pure functions `loss(labels, embeddings, *, options)`, each with its paper."""

from metriclearn.losses.triplet import triplet_loss

LOSSES = {"triplet": triplet_loss}
