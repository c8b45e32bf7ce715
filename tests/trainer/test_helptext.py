"""Help: essentials first, the rest under headings."""

from absl import flags

from trainer import helptext
from trainer.config import Config


def rendered(wanted, **keys):
    values = flags.FlagValues()
    flags.DEFINE_string("model", "mine", "Model.", values, module_name="mine.program")
    flags.DEFINE_bool("verbose", False, "A library's flag.", values, module_name="absl.logging")
    config = Config(keys)
    config.declare("dataset.name", "shop", "Which data.", choices=("shop", "web"))
    config.declare("mine.depth", 3, "How deep.", within="[1, 9]")
    return helptext.render(values, config, wanted)


def section(text, heading):
    return text.split(f"\n{heading}:\n")[1].split("\n\n")[0]


def test_short_help_explains_the_essentials_and_lists_the_rest():
    text = rendered("help")
    essential = section(text, "Essential keys")
    assert "--dataset.name: [str] Which data. One of: shop, web. (default: shop)" in essential
    assert section(text, "mine") == "  --mine.depth=3"
    assert "verbose" not in text and "How deep" not in text
    assert "  --model: Model." in section(text, "Flags of this program")


def test_full_help_explains_everything_with_ranges_and_libraries_last():
    text = rendered("helpfull")
    assert section(text, "mine") == "  --mine.depth: [int] How deep. In [1, 9]. (default: 3)"
    assert "--verbose: A library's flag." in section(text, "Flags of libraries")


def test_the_learning_rate_of_the_schedule_in_use_is_essential():
    for method in ("constant", "exp", "cosine"):
        text = rendered("help", **{"model.lr_schedule.method": method})
        essential = section(text, "Essential keys")
        assert f"model.lr_schedule.{method}.value" in essential
        assert essential.count(".value:") == 1


def test_headings_are_prefixes():
    names = ("model.x", "model.optimizer.adam.x", "a.b.c.d.x")
    assert [helptext._heading(name) for name in names] == ["model", "model.optimizer", "a.b"]
