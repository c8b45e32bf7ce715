"""Prints what `prototrain VERB --help` and `--helpfull` print, as JSON, all from one process."""

import contextlib
import io
import json
import sys

from absl import flags
from absl.testing import flagsaver

from trainer import cli, quiet

MODELS = ("models.simple", "models.ranker")
WITH_MODELS = ("train", "eval", "build", "embed", "export", "inspect", "sweep", "run")


def printed(*arguments):
    """Returns what `prototrain` prints for the arguments; it must end without an error."""
    sys.argv = ["prototrain", *arguments]
    before, streams = flagsaver.save_flag_values(), (sys.stdout, sys.stderr)
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            cli.main()
    except SystemExit as ended:
        assert not ended.code, (arguments, out.getvalue())
    finally:
        sys.stdout, sys.stderr = streams
        flagsaver.restore_flag_values(before)
        flags.FLAGS.unparse_flags()
    return out.getvalue()


if __name__ == "__main__":
    quiet.import_tensorflow()
    found = {verb: {"help": printed(verb, "--help")} for verb in cli.VERBS}
    for verb, texts in found.items():
        texts["helpfull"] = printed(verb, "--helpfull")
        for model in MODELS if verb in WITH_MODELS else ():
            texts[model] = printed(verb, f"--model={model}", "--helpfull")
    json.dump(found, sys.stdout)
