"""Prototrain's training framework: graphs, towers, and one readable loop."""
