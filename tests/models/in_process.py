"""Training of models.ranker in the tests' own process, by the flags of a command line."""

import contextlib

from absl import flags

from models import ranker
from trainer import loop
from trainer.commandline import from_flags


@contextlib.contextmanager
def trained(*given):
    """Trains as `prototrain train --model=models.ranker` does; its configuration holds within."""
    before = ranker.config.to_dict()
    values = flags.FlagValues()
    for name in ("model", "preset"):
        flags.DEFINE_string(name, None, "", flag_values=values)
    try:
        from_flags(["main", "--model=models.ranker", *map(str, given)], values)
        loop.train(ranker, ranker.config)
        yield ranker.config
    finally:
        ranker.config.update(before)
