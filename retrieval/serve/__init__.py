"""The search page and its API: what `prototrain serve` runs."""
