"""Metric learning for TensorFlow: distances, miners, losses, samplers, augmentation, data sets."""
