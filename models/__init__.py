"""Models, one folder each: `config`, `datasets()` and `build(inputs, train_phase)`."""
