"""--preset: complete recipes in files beside a model."""

import pytest
import toy
from absl import flags

from models import ranker
from trainer import helptext, presets
from trainer.commandline import from_flags
from trainer.config import UserError


def parse(*arguments):
    values = flags.FlagValues()
    for name in ("model", "preset"):
        flags.DEFINE_string(name, None, "", flag_values=values)
    return from_flags(["main", "--model=models.ranker", *arguments], values)


@pytest.fixture(autouse=True)
def config():
    before = ranker.config.to_dict()
    yield ranker.config
    ranker.config.update(before)


def test_every_preset_is_complete_and_says_for_which_data(config):
    assert presets.names(ranker) == ["finetune", "finetune-vit", "head", "scratch"]
    for name in presets.names(ranker):
        assert parse(f"--preset={name}")[0] is ranker
    lines = presets.listing(ranker)
    assert len(lines) == 6 and all(" for " in line and "flags" not in line for line in lines[2:])
    words = "--preset=finetune: for shops.*Without a GPU: --model.default_image_dimensions=144"
    with pytest.raises(helptext.Wanted, match=words):
        parse("--help")


def test_the_command_line_overrides_a_preset(config, monkeypatch):
    parse("--preset=finetune", "--model.num_steps=7")
    assert config["model.num_steps"] == 7 and not config["model.cached_features"]
    assert config["model.learning_rate_factor"] <= 0.1
    assert config["model.weights_load_path"].startswith("experiments/exp-ranker/")


@pytest.mark.parametrize("name", ["finetune", "scratch"])
def test_images_are_smaller_without_a_gpu(name, monkeypatch):
    sizes = []
    for gpus in ([], ["gpu"]):
        monkeypatch.setattr("tensorflow.config.list_physical_devices", lambda kind, g=gpus: g)
        given = [flag for flag in presets.flags_of(ranker, name) if "image_dimensions" in flag]
        sizes.append(int(given[-1].split("=")[1].split(",")[0]) if given else 224)
    assert sizes[0] < sizes[1]


def test_an_unknown_preset_is_named(config):
    with pytest.raises(UserError, match="--preset=hed: .* it has finetune, finetune-v.*'head'"):
        parse("--preset=hed")
    with pytest.raises(UserError, match="it has none"):
        presets.flags_of(toy, "head")
