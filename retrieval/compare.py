"""Compares two evaluations on the same queries.

    python -m retrieval.compare A B [--output=DIR]

A and B are `…-eval.json` files of `retrieval.eval`, or folders with such files (the newest step is
used). Queries are paired by id. A verdict in one sentence says which is better: the 95% interval of
the difference in recall@1, from a bootstrap over products, decides. Writes compare.json and
compare.html. The page shows images whose ids are image files, and images of the data sets of the
evaluated models.

    python -m retrieval.compare --old_queries=STORE --new_queries=STORE --old_catalogue=STORE
        [--new_catalogue=STORE] --output=DIR

This tests whether a new model's queries work with the catalogue that an old model embedded
(backward compatibility). A is then the old queries, B the new queries, both against the old
catalogue. Stores are written by `retrieval.embed`. A catalogue may also be the folder of an index;
it is then also searched as an index. If the new model's catalogue is given too, the result gives
the part of the gain of embedding the catalogue again that the new queries reach without it. The
output also contains a report of each pair.
"""

import dataclasses
import functools
import os

from absl import flags

from retrieval.evaluation import backward, paired
from retrieval.ranking import vectors
from retrieval.reports import comparison_page, outputs, page, terminal
from trainer import commandline, helptext, program
from trainer import config as trainer_config
from trainer.config import UserError

STORES = ("old_queries", "new_queries", "old_catalogue", "new_catalogue")


def main(evaluations, output, **images):
    """Compares two evaluations, given by their paths, and writes the result."""
    _compare(evaluations, output, **images)


def stored(stores, output, similarity="cosine", **images):
    """Evaluates backward compatibility, see `backward.evaluate`, and writes the result."""
    evaluated, paths = backward.evaluate(stores, similarity), {}
    for name, each in evaluated.items():
        folder = os.path.join(output, name)
        os.makedirs(folder, exist_ok=True)
        prefix = os.path.join(folder, "embeddings")
        outputs.write_stored(prefix, each.evaluation, each.queries, each.catalogue)
        paths |= page.paths_of(each.queries) | page.paths_of(each.catalogue)
    pair = [os.path.join(output, name) for name in ("old", "new_on_old")]
    _compare(pair, output, backward.rates(evaluated), paths, **images)


def _compare(evaluations, output, rates=None, paths=None, **images):
    """Writes the result; images: with_images and allow_code of `comparison_page.write`."""
    a, b = (paired.load(path) for path in evaluations)
    result = dataclasses.replace(paired.compare(a, b), backward=rates or {})
    comparison_page.write(output, a, b, result, paths, **images)
    terminal.print_comparison(result)
    print(f"Wrote {output}/compare.html and compare.json")


def define_flags(values):
    path, flag, choice = commandline.definers(values, "path", "bool", "enum")
    commandline.define_allow_code(values)
    path("output", ".", "Folder for compare.json and compare.html.")
    flag("images", True, "Show images of the queries that only A or only B gets right.")
    for name in STORES:
        model, kind = name.split("_")
        place = "store or index" if kind == "catalogue" else "store"
        say = f"For backward compatibility: folder of the {place} of the {model} model's {kind}."
        path(name, None, say)
    choice("similarity", "cosine", vectors.SIMILARITIES, "Similarity of two embeddings; only for "
           "stores, since evaluations contain theirs.")  # fmt: skip


def _program(options, *evaluations):
    images = {"with_images": options.images, "allow_code": options.allow_code}
    stores = {name: getattr(options, name) for name in STORES if getattr(options, name)}
    with trainer_config.user_errors(options.output):
        if not stores:
            why = "it is for stores; evaluations contain their similarity"
            commandline.refuse_idle(options, ["similarity"], why)
            if len(evaluations) != 2:
                example = helptext.command("compare", "retrieval.compare", "A", "B")
                raise UserError(f"name two evaluations: {example}")
            return main(evaluations, options.output, **images)
        missing = [name for name in STORES[:3] if name not in stores]
        if missing or evaluations:
            what = f"--{missing[0]}" if missing else "no further argument"
            raise UserError(f"backward compatibility needs {what}: see --help")
        return stored(stores, options.output, options.similarity, **images)


def run(argv=None):
    """Runs the program on a command line, `sys.argv` by default."""
    options = flags.FlagValues()
    define_flags(options)
    program.run_without_model(
        functools.partial(_program, options),
        argv,
        "Interrupted; files that were not complete were not written.",
        arguments=("[A]", "[B]"),
        flag_values=options,
        renamed={"pictures": "--images, or --noimages"},
    )


if __name__ == "__main__":
    run()
