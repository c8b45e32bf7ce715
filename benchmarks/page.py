"""Tables of figures: of a run, and docs/performance.md from the history of releases."""

import dataclasses
import json
import pathlib

from benchmarks import figures, machine

HERE = pathlib.Path(__file__).parent
PAGE = HERE.parent / "docs" / "performance.md"
HISTORY = HERE / "history.jsonl"
FIELDS = dataclasses.fields(figures.Figure)
LIMITS = HERE / "limits.md"  # written by hand

HEAD = """# Performance

<!-- Written by `python -m benchmarks.run --document` from benchmarks/history.jsonl. Do not edit
this file: the text is in benchmarks/page.py and benchmarks/limits.md. -->

A figure without a unit is a ratio of two measurements that alternate in one run: the median of the
rounds, with the quartiles in brackets. "Target" is what the project aims at. To measure your
machine, run

```
python -m benchmarks.run --quick --output=figures
```

This takes about five minutes on two cores and writes `figures.md` and `figures.json`. Without
`--quick`, the sizes are those of the table. To include PyTorch and pytorch-metric-learning in the
comparison, first install them in a separate environment by `python -m benchmarks.peer`.
"""

GPU = """
## GPU

On a machine with one or more GPUs, the following command measures training steps, batch-hard
mining, towers, input and memory, compared with bare products and convolutions on the same GPU
and, if it is installed, with PyTorch. It needs no network:

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
    """Adds a run to the history, replacing a run of the same version and processor."""
    path = path or HISTORY
    key = _key(result)
    kept = [each for each in read(path) if _key(each) != key]
    lines = [json.dumps(each, separators=(",", ":")) + "\n" for each in [*kept, result]]
    path.write_text("".join(lines), encoding="utf-8")


def _key(result):
    about = result["machine"]
    return result["version"], about["processor"], about.get("gpus", []), result.get("source")


def table(rows):
    """Markdown of the rows of a run."""
    lines = [_line("work", "measured", "target", "note"), _rule(4)]
    for row in rows:
        note = row["note"].replace("|", "\\|")
        lines.append(_line(row["name"], figures.amount(_figure(row)), row["asked"], note))
    return "\n".join(lines) + "\n"


def one_run(result):
    """Markdown of a run: the table and the conditions."""
    return f"{table(result['figures'])}\n{conditions(result)}\n"


def conditions(result):
    """A paragraph with machine, versions and other conditions."""
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
    parts = [HEAD, _side_by_side(ours)]
    shown = {_title(each) for each in _newest(ours).values()}
    parts += [f"* **{_title(each)}**: {conditions(each)}" for each in ours if _title(each) in shown]
    if LIMITS.exists():
        parts.append("\n" + LIMITS.read_text(encoding="utf-8").rstrip())
    parts.append(_releases(ours))
    parts.append(GPU)
    on_gpu = [each for each in records if each["machine"].get("gpus")]
    if on_gpu:
        parts += [one_run(on_gpu[-1])]
    else:
        parts.append("No figures yet: no GPU was available. The tests run it on CPU devices.")
    return "\n".join(filter(None, parts)).rstrip() + "\n"


def _title(record):
    return f"{record['machine']['make']}, {record['version']}"


def _side_by_side(records):
    """Rows, with a column per make of processor; rows missing in its newest record are older."""
    newest = _newest(records)
    columns = {make: {} for make in newest}
    for each in records:
        for row in each["figures"]:
            columns[each["machine"]["make"]][row["name"]] = each["version"], _figure(row)
    names = dict.fromkeys(name for rows in figures.REACH.values() for name in rows)
    names |= dict.fromkeys(name for rows in columns.values() for name in rows)
    lines = [_line("work", *map(_title, newest.values()), "target"), _rule(len(newest) + 2)]
    for name in names:
        cells, bound = [], ""
        for make, rows in columns.items():
            version, found = rows.get(name, ("", None))
            older = f", in {version}" if found and version != newest[make]["version"] else ""
            cells.append(found and f"{figures.amount(found)}{older}")
            bound = (found and figures.asked(found)[0]) or bound
        lines.append(_line(name, *cells, bound or figures.asked(figures.Figure(name, None))[0]))
    return "\n".join(lines) + "\n"


def _newest(records):
    return {each["machine"]["make"]: each for each in records}


def _releases(records):
    """Medians of the asked rows, with a column per release; '' if there is one release per make."""
    parts = []
    for make in _newest(records):
        versions = {}
        for each in (each for each in records if each["machine"]["make"] == make):
            rows = versions.setdefault(each["version"], {})
            rows |= {row["name"]: _figure(row) for row in each["figures"]}
        if len(versions) < 2:
            continue
        names, found = list(versions)[-6:], list(versions.values())[-6:]
        lines = [_line("work", *names), _rule(len(names) + 1)]
        for name in (name for rows in figures.REACH.values() for name in rows):
            medians = [dataclasses.replace(f[name], low=None) if name in f else None for f in found]
            lines.append(_line(name, *(each and figures.amount(each) for each in medians)))
        parts += [f"\n## Releases on {make}\n", *lines]
    return "\n".join(parts)


def _line(*cells):
    return f"| {' | '.join(cell or '' for cell in cells)} |"


def _rule(columns):
    return "|" + "---|" * columns


def _figure(row):
    """The `Figure` of a row of the history; a short row has only name and value."""
    return figures.Figure(**{f.name: row[f.name] for f in FIELDS if f.name in row})
