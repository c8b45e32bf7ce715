"""The toy models, each test with a fresh configuration in a folder of its own."""

import pytest
import toy
import toy_global

from trainer import loop


@pytest.fixture
def config(tmp_path):
    before = toy.config.copy()
    toy.config["trainer.experiment_base_dir"] = str(tmp_path / "experiments")
    yield toy.config
    toy.config._values, toy.config.given = before._values, before.given


@pytest.fixture
def train(config):
    """Trains a toy model with these keys set (dots written `__`); returns its experiment folder."""

    def run(name="toy", model=toy, keys=(), **options):
        config.update({"trainer.experiment_name": name, **dict(keys)})
        loop.train(model, config, **options)
        return f"{config['trainer.experiment_base_dir']}/{name}"

    return run


@pytest.fixture(params=[toy, toy_global], ids=["tower_loss", "global_loss"])
def any_toy(request):
    return request.param
