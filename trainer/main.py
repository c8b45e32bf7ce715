"""`python -m trainer.main --model=models.simple`: trains a model."""

from types import ModuleType

from absl import flags

from trainer import quiet

quiet.import_tensorflow()

from trainer import config as config_lib  # noqa: E402 (after the quiet import)
from trainer.check_towers import check_towers  # noqa: E402

flags.DEFINE_string("model", None, "Model to train: a module name.", short_name="m")
flags.DEFINE_string("preset", None, "A complete recipe of the model; see the end of --help.")
flags.DEFINE_string("trainer", "trainer.loop", "Module whose train() runs.", short_name="t")
flags.DEFINE_bool("fresh", False, "First delete an earlier run of this experiment.", short_name="f")
flags.DEFINE_bool("yes", False, "Do not ask before deleting.")
flags.DEFINE_bool(
    "fallback", False, "Set damaged checkpoints aside; resume from the newest whole one."
)
flags.DEFINE_bool("allow_config_change", False, "Resume although the run will be a different one.")
flags.DEFINE_bool("check_towers", False, "Compare N towers with one on a batch; do not train.")
flags.DEFINE_bool("debug", False, "Open IPython after set-up, do not train.", short_name="d")
flags.DEFINE_integer("replay_step", None, "With --debug: first train to just before this step.")
FLAGS = flags.FLAGS


def main(model: ModuleType, given: set[str], rest: list[str]) -> None:
    """The program, for `trainer.config.run`."""
    config_lib.no_arguments(rest)
    if FLAGS.check_towers:
        print("\n".join(check_towers(model, model.config)))
        return
    loop = config_lib.load_module(FLAGS.trainer, "--trainer")
    if not hasattr(loop, "train"):
        raise config_lib.UserError(f"--trainer={FLAGS.trainer}: the module has no train().")
    options = {"fallback": True} if FLAGS.fallback else {}  # a copy of an older loop lacks it
    loop.train(
        model,
        model.config,
        fresh=FLAGS.fresh,
        yes=FLAGS.yes,
        debug=FLAGS.debug,
        replay_step=FLAGS.replay_step,
        allow_config_change=FLAGS.allow_config_change,
        **options,
    )


if __name__ == "__main__":
    config_lib.run(main, stopped="stopped before the first step: the same command starts again")
