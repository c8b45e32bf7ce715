"""From embeddings to a catalogue index, and to numbers and pictures about it."""
