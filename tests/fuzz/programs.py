"""Runs the command lines of `lines`, each in a process and a folder of its own: see `run`."""

import collections
import os
import pathlib
import shutil

import forks
import kills
import lines
import numpy as np

from trainer import cli


def prepare():
    """Makes all that the command lines name, in the current folder."""
    lines.write_inputs(".")
    kills.prepare_embed()
    kills.write_store("s", slice(0, 40))
    kills.write_store("c", slice(20, 80))
    np.save("q.npy", kills.POINTS[:20])
    pathlib.Path("q.txt").write_text("".join(f"p{n % 5}\n" for n in range(20)))
    rows = "".join(f"images/{n:02}.png,p{n % 4}\n" for n in range(12))
    pathlib.Path("m.csv").write_text(f"path,label\n{rows}")
    for words in (
        ["index", "build", "--store=s", "--output=i", "--factory=Flat"],
        ["eval", "--queries=s", "--catalogue=c", "--output=ra"],
        ["eval", "--queries=s", "--catalogue=c", "--output=rb", "--similarity=dot"],
        ["train", "--model=toy_served", "--model.num_steps=2"],
    ):
        code, text, _ = forks.forked(forks.program(words))
        assert code == 0, text


def run(count, first, top):
    """Runs command lines number `first` to `first + count - 1`; returns the number that failed.

    A program must end by itself, with code 0, or with code 1 and one line that begins with
    `error:`; it shows no traceback.
    """
    good = os.path.join(top, "lines", "good")
    os.makedirs(good)
    os.chdir(good)
    flags_of = {}
    for verb in cli.VERBS:
        model = ["--model=toy_served"] if verb in ("train", "export", "inspect", "sweep") else []
        code, text, _ = forks.forked(forks.program([verb, *model, "--helpfull"]))
        assert code == 0, text
        flags_of[verb] = lines.names(text)
    code, text, _ = forks.forked(prepare)
    assert code == 0, text
    ends, failed = collections.Counter(), 0
    for number in range(first, first + count):
        words, made = lines.line(number, flags_of)
        work = os.path.join(top, "lines", "work", "inner")
        os.makedirs(os.path.dirname(work))
        os.system(f"cp -a '{good}' '{work}'")
        os.chdir(work)
        for name, data in made.items():
            pathlib.Path(name).write_bytes(data)
        try:
            code, text, _ = forks.forked(forks.program(words))
            error = [each for each in text.splitlines() if each.startswith("error:")]
            fault = "Traceback" in text or code not in (0, 1) or (code == 1) != (len(error) == 1)
        except AssertionError as late:
            fault, code, text = True, 0, str(late)
        ends["refused" if code == 1 else "done"] += 1
        if fault:
            failed += 1
            print(f"line {number}: {words} {made}: code {code}\n{text[-3000:]}", flush=True)
        os.chdir(top)
        shutil.rmtree(os.path.join(top, "lines", "work"))
    print(f"command lines: {dict(ends)}, {failed} failed", flush=True)
    return failed
