"""Command lines of every program, right but for one to three flags, each made from a number."""

import os
import pathlib
import re

import numpy as np

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
