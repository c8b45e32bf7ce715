"""Tables of figures: of one run, and docs/performance.md from the history of releases."""

import dataclasses
import json
import pathlib

from benchmarks import figures, machine

HERE = pathlib.Path(__file__).parent
PAGE = HERE.parent / "docs" / "performance.md"
HISTORY = HERE / "history.jsonl"
FIELDS = dataclasses.fields(figures.Figure)
LIMITS = HERE / "limits.md"  # written by hand: what stops the figures that are not reached

HEAD = """# Performance

<!-- Written by `python -m benchmarks.run --document` from benchmarks/history.jsonl: edit neither
here; the words are those of benchmarks/page.py and benchmarks/limits.md. -->

Every figure without a unit is a ratio of two measurements that alternate in one run: the median of
the rounds, in brackets their quartiles. "Asked" is the project's aim. Measure your machine with

```
python -m benchmarks.run --quick --output=figures
```

which takes about five minutes on two cores and writes `figures.md` and `figures.json`; without
`--quick` sizes are those of the table. `python -m benchmarks.peer` first installs PyTorch and
pytorch-metric-learning, the peers, in an environment of their own.
"""

GPU = """
## GPU

On a machine with one or more GPUs, without network, the following command measures training steps,
batch-hard mining, towers, input and memory beside the bare products and convolutions of the same
GPU, and beside PyTorch where it is installed:

```
python -m benchmarks.gpu --output=figures-gpu
```
"""


def read(path=None):
    """The records of the history, oldest first."""
    path = path or HISTORY
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def record(result, path=None):
    """Appends a run to the history, in place of one of the same version and processor."""
    path = path or HISTORY
    key = _key(result)
    kept = [each for each in read(path) if _key(each) != key]
    lines = [json.dumps(each, separators=(",", ":")) + "\n" for each in [*kept, result]]
    path.write_text("".join(lines), encoding="utf-8")


def _key(result):
    about = result["machine"]
    return result["version"], about["processor"], about.get("gpus", []), result.get("source")


def table(rows):
    """Markdown of the rows of one run."""
    lines = ["| work | measured | asked | note |", "|---|---|---|---|"]
    for row in rows:
        note = row["note"].replace("|", "\\|")
        lines.append(f"| {row['name']} | {_amount(row)} | {row['reach'] or ''} | {note} |")
    return "\n".join(lines) + "\n"


def one_run(result):
    """Markdown of one run: the table, and the conditions."""
    return f"{table(result['figures'])}\n{conditions(result)}\n"


def conditions(result):
    """One paragraph: machine, versions and what else matters."""
    about = result["machine"]
    found = {name: number for name, number in about.get("versions", {}).items() if number}
    versions = [f"{name} {number}" for name, number in found.items()]
    parts = [machine.in_words(about), about.get("system", ""), ", ".join(versions)]
    parts += [result.get("source", ""), "quick sizes" if result.get("quick") else ""]
    parts += [result.get("date", ""), result.get("note", "")]
    return "; ".join(filter(None, parts)) + "."


def written(records):
    """The text of docs/performance.md."""
    ours = [each for each in records if not each["machine"].get("gpus")]
    newest = {each["machine"]["make"]: each for each in ours}
    parts = [HEAD, _side_by_side(newest)]
    parts += [f"* **{_title(each)}**: {conditions(each)}" for each in newest.values()]
    if LIMITS.exists():
        parts.append("\n" + LIMITS.read_text(encoding="utf-8").rstrip())
    parts.append(_releases(ours))
    parts.append(GPU)
    on_gpu = [each for each in records if each["machine"].get("gpus")]
    if on_gpu:
        parts += [one_run(on_gpu[-1])]
    else:
        parts.append("No figures yet: no GPU was at hand. The tests run it on CPU devices.")
    return "\n".join(filter(None, parts)).rstrip() + "\n"


def _title(record):
    return f"{record['machine']['make']}, {record['version']}"


def _side_by_side(newest):
    """Rows of the newest records, a column per make of processor."""
    found = {make: _by_name(each) for make, each in newest.items()}
    asked = {name: bound for rows in figures.REACH.values() for name, bound in rows.items()}
    names = dict.fromkeys(name for rows in found.values() for name in rows)
    order = [*asked, *(name for name in names if name not in asked)]
    head = ["work", *map(_title, newest.values()), "asked"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name in order:
        amounts = [_amount(rows[name]) if name in rows else "" for rows in found.values()]
        bound = "{} {:g}".format(*asked[name]) if name in asked else ""
        lines.append("| " + " | ".join([name, *amounts, bound]) + " |")
    return "\n".join(lines) + "\n"


def _releases(records):
    """Medians of the asked rows, a column per release; '' if there is one release per make."""
    makes = dict.fromkeys(each["machine"]["make"] for each in records)
    parts = []
    for make in makes:
        mine = [each for each in records if each["machine"]["make"] == make][-6:]
        if len(mine) < 2:
            continue
        lines = ["| work | " + " | ".join(each["version"] for each in mine) + " |"]
        lines.append("|---" * (len(mine) + 1) + "|")
        for name in (name for rows in figures.REACH.values() for name in rows):
            values = [_by_name(each).get(name) for each in mine]
            if any(values):
                medians = [_amount({**v, "low": None}) if v else "" for v in values]
                lines.append(f"| {name} | {' | '.join(medians)} |")
        parts += [f"\n## Releases on {make}\n", *lines]
    return "\n".join(parts)


def _by_name(record):
    return {row["name"]: row for row in record["figures"]}


def _amount(row):
    """What a row of the history measured, in words; a short row has name and value only."""
    known = {field.name: row[field.name] for field in FIELDS if field.name in row}
    return figures.amount(figures.Figure(**known))
