"""Models: one folder each, a module with `config`, `datasets()` and `build(inputs, train_phase)`."""
