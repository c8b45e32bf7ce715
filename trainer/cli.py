"""The command `prototrain`: `prototrain VERB …` runs the same program as `python -m MODULE …`.

The only difference: the current folder is searched last for modules, so that a user's `trainer.py`
or `retrieval.py` does not replace our packages. `--model=mine` still finds `mine.py`.
"""

import os
import runpy
import sys
from typing import NoReturn

from trainer import helptext, program, quiet
from trainer.config import UserError, did_you_mean

# {verb: (module, what it does)}, in the order of use; the modules are imported only when they run.
VERBS = {
    "audit": ("metriclearn.datasets.audit", "Find duplicate images, and leaks between splits."),
    "pretrained": ("models.pretrained", "Convert published weights for TensorFlow."),
    "train": ("trainer.main", "Train a model, or resume an interrupted run."),
    "launch": ("trainer.launch", "Train on several workers, and restart them after a failure."),
    "eval": ("retrieval.eval", "Evaluate a model: recall@k, MAP@R, a report with images."),
    "compare": ("retrieval.compare", "Compare two evaluations on the same queries."),
    "build": ("retrieval.build", "Build the index of a catalogue; it contains the model."),
    "search": ("retrieval.search", "Search an index by photos or words."),
    "serve": ("retrieval.serve.main", "Serve a search page and an API over an index."),
    "embed": ("retrieval.embed", "Embed images or a model's dataset into a store."),
    "index": ("retrieval.index", "Change, verify and search an index with stored embeddings."),
    "export": ("trainer.export", "Export a trained model as a SavedModel."),
    "inspect": ("trainer.inspect", "List a model's variables, FLOPs and devices."),
    "sweep": ("trainer.sweep", "Train with many configurations, by grid or search."),
    "diff": ("trainer.diff", "Show how two experiments differ."),
    "run": ("trainer.run", "Run your own action on a model."),
}


def usage() -> str:
    """Returns the list of verbs, one line each."""
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {what}" for verb, (_, what) in VERBS.items()]
    return "\n".join(
        [
            "Usage: prototrain VERB [--flag=value …]",
            "",
            *lines,
            "",
            "prototrain VERB --help explains a verb.",
        ]
    )


def main() -> NoReturn:
    """The console script."""
    program.guarded(_run, sys.argv, "Interrupted.")


def _run(argv):
    verb = argv[1] if len(argv) > 1 else "--help"
    if verb.lstrip("-") in helptext.FLAGS:
        print(usage())
        return
    if verb not in VERBS:
        near = did_you_mean(verb, VERBS)
        raise UserError(
            f"{verb!r} is not a verb of prototrain.{near} `prototrain --help` lists them."
        )
    _search_current_folder_last()
    if verb == "audit":  # its module does not suppress TensorFlow's banner
        quiet.import_tensorflow()
    helptext.started_as = f"prototrain {verb}"
    sys.argv = [helptext.started_as, *argv[2:]]
    runpy.run_module(VERBS[verb][0], run_name="__main__", alter_sys=True)


def _search_current_folder_last():
    # In an editable install our folder may not be on the path: the current one would be first.
    home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    current = os.getcwd()
    sys.path[:] = [path for path in sys.path if path not in ("", current) or path == home]
    sys.path += [path for path in (home, current) if path not in sys.path]


if __name__ == "__main__":
    main()
