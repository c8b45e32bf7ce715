"""`python -m trainer.main --model=models.simple`: trains a model."""

from absl import flags

from trainer import quiet

quiet.import_tensorflow()

from trainer import config as config_lib  # noqa: E402 (after the quiet import)
from trainer.check_towers import check_towers  # noqa: E402

flags.DEFINE_string("model", None, "Model to train: a module name.", short_name="m")
flags.DEFINE_string("trainer", "trainer.loop", "Module whose train() runs.", short_name="t")
flags.DEFINE_bool("fresh", False, "Delete an earlier run of this experiment first.", short_name="f")
flags.DEFINE_bool("debug", False, "Open IPython after set-up, do not train.", short_name="d")
flags.DEFINE_bool("yes", False, "Do not ask before deleting.")
flags.DEFINE_integer("replay_step", None, "With --debug: go to just before this step first.")
flags.DEFINE_bool("check_towers", False, "Compare N towers with one on a batch; do not train.")
flags.DEFINE_bool("allow_config_change", False, "Resume although the run will be a different one.")
FLAGS = flags.FLAGS


def main(model, given, rest):
    if rest:
        raise config_lib.UserError(f"Unexpected argument {rest[0]!r}: flags are --name=value.")
    if FLAGS.check_towers:
        print("\n".join(check_towers(model, model.config)))
        return
    loop = config_lib.load_module(FLAGS.trainer, "--trainer")
    loop.train(
        model,
        model.config,
        fresh=FLAGS.fresh,
        yes=FLAGS.yes,
        debug=FLAGS.debug,
        replay_step=FLAGS.replay_step,
        allow_config_change=FLAGS.allow_config_change,
    )


if __name__ == "__main__":
    config_lib.run(main)
