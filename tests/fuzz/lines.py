"""Command lines of every program, right but for one to three flags, each made from a number."""

import collections
import os
import pathlib
import re
import shutil

import forks
import numpy as np

from trainer import cli

# What a flag is set to. Paths are within the folder of the run; nothing here means another place.
VALUES = [
    "", " ", "0", "-1", "1", "2", "3", "7", "0.5", "-0.5", "1e9", "1e400", "-1e-400", "100000000",
    "2147483648", "9223372036854775807", "-99999999999999999999", "nan", "-nan", "inf", "-inf",
    "1,2", "1,,2", ",", "3,1", "a,b", "1;2", "0x10", "1_000", "+1", "1.", "٣", "½", "true",
    "False", "yes", "None", "null", "[]", "{}", "{x}", "%s", "%", "%n", "*", "?", "run[1]", "é",
    "日本", "🙂", "\u202eabc", "a\u0000b", "a\nb", "\n", "\t", "'", "\"", "\\", "`id`", "$(id)",
    "; true", "<b>", "x" * 300, "x" * 5000, "../up", "..", ".", "a/b", "./a/../b", "nothing",
    "nothing/x", "~nobody/x", "file.txt", "empty", "folder", "q.npy", "q.txt", "s", "i", "ra",
    "images", "m.csv", "saved", "pipe", "null", "loop", "images/00.png", "bad.json",
    "experiments", "experiments/toy", "toy", "models.simple", "toy_served", "mine", "broken",
    "../mine.py", "mine.py", "./mine", "mine.", ".mine", "models", "os", "os:getcwd",
    "os.path:join", "toy:is_kernel", "toy:nothing", "nothing:x", ":", "a:b:c", "log:1:2",
    "log:0:1", "2:1", "1:2:3:4", "min:loss", "max:", "loss", "median", "cosine", "dot", "Flat",
    "IVF2,Flat", "IVF0,Flat", "IVF999999999,Flat", "HNSW32", "PQ3", "PQ2x8", "auto", "(", "IDMap",
    "constant", "step", "adam", "role=query", "split=", "=", "=x", "a=b|c,d=e", "path=file",
    "0,1", "-1,1", "imagenet", "float16", "skip", "\udcff", "\ud800",
]  # fmt: skip

# Right command lines, and the verbs whose flags may be added to them.
COMMANDS = [
    "train --model=toy_served --model.num_steps=2 --trainer.print_interval=0",
    "train --model=toy --model.num_steps=1",
    "eval --queries=q.npy --query_labels=q.txt --output=out",
    "eval --queries=s --catalogue=i --output=out",
    "eval --model=toy_served",
    "embed --saved_model=saved --folder=images --output=out",
    "embed --saved_model=saved --manifest=m.csv --output=out",
    "index build --store=s --output=out --factory=Flat",
    "index build --store=s --output=i",
    "index add --store=s --index=i",
    "index remove --ids=ids.txt --index=i",
    "index search --store=s --index=i --page=page.html",
    "index info --index=i",
    "index verify --index=i",
    "index versions --index=i",
    "index rollback --to=1 --index=i",
    "compare ra rb --output=out",
    "compare --old_queries=s --new_queries=s --old_catalogue=i --output=out",
    "export --model=toy_served --output=out",
    "inspect --model=toy_served",
    "sweep --model=toy_served --grid=toy.dropout=0.1,0.3",
    "sweep --model=toy_served --search=toy.dropout=0.1:0.3 --trials=2",
    "run --model=toy_served --action=os",
    "audit folder images --report=page.html",
    "audit manifest m.csv --report=page.html",
    "diff experiments/toy experiments/toy",
    "pretrained efficientnet_lite3 --weights=file.txt",
]
# Programs that read big numbers as work to do, which a test must not.
SAFE = {
    "model.num_steps",
    "trainer.num_towers",
    "model.batch_size",
    "threads",
    "batch_size",
    "jobs",
}
SAFE |= {"model.gradient_accumulation_steps", "image_size", "trials", "replay_step", "debug"}
# absl's own, which write where they are told to, or start a debugger.
ABSL = re.compile(r"pdb|profil|log|v$|verbosity|stderrthreshold|only_check|test_|xml|op_conversion")


def names(text):
    """The names of the flags that a `--helpfull` shows."""
    found = re.findall(r"^  (?:-\w, )?--([^\s:]+):", text, re.MULTILINE)
    return [name for name in found if not ABSL.search(name)]


def line(number, flags_of):
    """One command line, as a list of words, and its files {path: bytes}.

    Args:
      number: chooses it.
      flags_of: {verb: names of its flags}.
    """
    random = np.random.default_rng([7, number])
    pick = lambda some: some[int(random.integers(len(some)))]  # noqa: E731
    words, made = pick(COMMANDS).split(), {}
    if random.random() < 0.1:
        words = words[: int(random.integers(len(words) + 1))]
    known = flags_of.get(words[0] if words else "", ["model"]) or ["model"]
    for _ in range(int(random.integers(1, 4))):
        name, value, kind = pick(known), pick(VALUES), int(random.integers(24))
        if name in SAFE and re.fullmatch(r"[\d+_]{3,}|\d+e\d+|0x\d+", value):
            value = pick(["0", "1", "2", "-1"])
        if kind == 0:
            words.append(value)
        elif kind == 1:
            words.append(f"--{value}" if random.random() < 0.5 else f"--{name}{value}")
        elif kind == 2:
            words += [f"-{name}", value]
        elif kind == 3:
            words.append(pick([f"--no{name}", f"--{name}", f"--{name}=", "--", "-", "-x", "--=1"]))
        elif kind == 4:
            made["flags.txt"] = _flag_file(random, name, value)
            words.append(pick(["--flagfile=flags.txt", "--flagfile", f"--flagfile={value}"]))
        elif kind == 5 and len(words) > 1:
            words[int(random.integers(len(words)))] = value
        elif kind == 6 and len(words) > 1:
            del words[int(random.integers(len(words)))]
        elif kind == 7:
            words.insert(int(random.integers(len(words) + 1)), pick(words or [value]))
        else:
            words.append(f"--{name}={value}")
    # The operating system passes no NUL in a word, and only bytes.
    text = [
        os.fsdecode(os.fsencode(w.encode("utf-8", "surrogateescape"))) if _fits(w) else ""
        for w in words
    ]
    return [word.replace("\0", "0") for word in text], made


def _fits(word):
    try:
        word.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def _flag_file(random, name, value):
    start = [b"", b"\xef\xbb\xbf", b"\xff\xfe", b"# x\n", b"\0", b"--flagfile=flags.txt\n"]
    text = f"--{name}={value}\n".encode("utf-8", "surrogateescape" if _fits(value) else "replace")
    return start[int(random.integers(len(start)))] + text


def write_inputs(folder):
    """Makes what the command lines name, but for stores, indices and evaluations."""
    folder = pathlib.Path(folder)
    for name in ("folder", "up"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "mine.py").write_text("config = 1\n")
    (folder / "broken.py").write_text("def (:\n")
    (folder / "file.txt").write_text("text\n")
    (folder / "empty").write_text("")
    (folder / "bad.json").write_text("{")
    (folder / "ids.txt").write_text("i001\n")
    os.mkfifo(folder / "pipe")
    (folder / "null").symlink_to("/dev/null")
    (folder / "loop").symlink_to("loop")


def prepare():
    """Makes all that the command lines name, in the current folder."""
    import kills

    write_inputs(".")
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
        flags_of[verb] = names(text)
    code, text, _ = forks.forked(prepare)
    assert code == 0, text
    ends, failed = collections.Counter(), 0
    for number in range(first, first + count):
        words, made = line(number, flags_of)
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
