"""Runs the benchmarks of speed, and writes their figures as one table.

    python -m benchmarks.run [--quick] [--only=NAME,...] [--output=FILE]
    python -m benchmarks.run [--quick] [--only=NAME,...] --record=VERSION [--note=TEXT]
    python -m benchmarks.run --document

Each benchmark runs in a process of its own. --quick takes smaller sizes and fewer rounds, under
five minutes on two quiet cores. --output writes FILE.md and FILE.json. --record appends the figures
to benchmarks/history.jsonl; of the same row in a version's records, the last one counts. --document
writes docs/performance.md from that file. After Ctrl-C the table holds what
was measured until then.
"""

import argparse
import dataclasses
import datetime
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

from benchmarks import figures, machine, page

ROOT = pathlib.Path(__file__).parent.parent


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--document", action="store_true", help="only write docs/performance.md")
    add_flags(parser)
    options = parser.parse_args(arguments)
    if options.document:
        page.PAGE.write_text(page.written(page.read()), encoding="utf-8")
        return 0
    start = in_process_of_its_own(*["--quick"] * options.quick)
    return all_of(figures.REACH, start, options, parser)


def add_flags(parser):
    """The flags that this program and benchmarks.gpu share."""
    parser.add_argument("--quick", action="store_true", help="smaller sizes, fewer rounds")
    parser.add_argument("--only", default="", help="names, separated by commas")
    parser.add_argument("--output", default="", help="write FILE.md and FILE.json")
    parser.add_argument("--record", default="", metavar="VERSION", help="append to the history")
    parser.add_argument("--note", default="", help="conditions, kept with the record")


def all_of(reach, start, options, parser):
    """Runs the benchmarks that the flags ask for, and prints, writes and records their figures."""
    names = [name for name in options.only.split(",") if name] or list(reach)
    if unknown := set(names) - set(reach):
        parser.error(f"--only={','.join(sorted(unknown))}: choose from {', '.join(reach)}")
    folder = pathlib.Path(options.output).parent
    if options.output and not os.access(folder, os.W_OK):
        parser.error(f"--output={options.output}: {folder} is no folder that can be written")
    expected = seconds_before(page.read(), names, options.quick)
    result, whole = gather(names, start, expected, reach)
    result |= {"quick": options.quick, "note": options.note}
    if options.only:
        result["source"] = f"{', '.join(names)} alone"
    return finish(result, whole, options.output, options.record)


def finish(result, whole, output, version=""):
    """Prints and writes the table; records it if it is whole. Returns the exit status."""
    text = page.table(result["figures"])
    print(f"{machine.in_words(result['machine'])}\n\n{text}")
    if output:
        name = re.sub(r"\.(md|json)$", "", output)
        pathlib.Path(f"{name}.md").write_text(page.one_run(result), encoding="utf-8")
        content = json.dumps(result, indent=1) + "\n"
        pathlib.Path(f"{name}.json").write_text(content, encoding="utf-8")
    if version and whole:
        page.record({"version": version, **result})
    elif version:
        print("interrupted: not recorded", file=sys.stderr)
    return 0 if whole else 130


def gather(names, start, expected, reach=figures.REACH):
    """Runs benchmarks one after the other.

    Args:
      names: of benchmarks.
      start: yields the `Figure`s of a named benchmark; RuntimeError if it fails.
      expected: {name: seconds}, for the time left.
      reach: {benchmark: {row: …}}, the rows that each must give.

    Returns:
      (what --output writes, whether all of them ran).
    """
    rows, taken, whole = [], {}, True
    begun = time.perf_counter()
    for i, name in enumerate(names):
        _announce(i, names, expected, time.perf_counter() - begun)
        found, since, reason = [], time.perf_counter(), ""
        try:
            for each in start(name):
                found.append(each)
                print(f"  {figures.text(each, reach)}", file=sys.stderr, flush=True)
        except KeyboardInterrupt:
            whole, reason = False, "interrupted"
        except RuntimeError as error:
            reason = str(error)
        missing = [row for row in reach.get(name, ()) if row not in {f.name for f in found}]
        if reason and not missing:
            missing = [name]
        lacking = [figures.Figure(row, None, note=reason) for row in missing]
        for each in lacking:
            print(f"  {figures.text(each, reach)}", file=sys.stderr, flush=True)
        taken[name] = round(time.perf_counter() - since, 1)
        for each in found + lacking:
            bound, met = figures.asked(each, reach)
            row = {"benchmark": name, **dataclasses.asdict(each)}
            rows.append(row | {"asked": bound, "reached": met})
        if not whole:
            break
    return {
        "date": datetime.date.today().isoformat(),
        "machine": machine.described(),
        "seconds": taken,
        "figures": rows,
    }, whole


def in_process_of_its_own(*more, module="benchmarks.{}"):
    """Returns a `start` for `gather`: threads and memory of one benchmark do not touch another's.

    Args:
      more: flags for every benchmark.
      module: what runs, with the benchmark's name in place of {}.
    """

    def start(name):
        command = [sys.executable, "-m", *module.format(name).split(), "--lines", *more]
        with tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(
                command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True
            )
            try:
                for line in process.stdout:
                    if line.startswith('{"name"'):
                        yield figures.Figure(**json.loads(line))
                process.wait()
            finally:
                _end(process)
            errors.seek(0)
            said = [line.strip() for line in errors if line.strip()]
        if process.returncode < 0:
            raise RuntimeError(f"ended by {signal.Signals(-process.returncode).name}")
        if process.returncode:
            raise RuntimeError(f"failed: {said[-1] if said else process.returncode}")

    return start


def _end(process):
    """Interrupts a process that still runs, so that it ends its own workers."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def seconds_before(records, names, quick):
    """{benchmark: seconds} of the newest record with the same sizes that has one of the names."""
    for record in reversed(records):
        taken = record.get("seconds", {})
        if record.get("quick") == quick and not taken.keys().isdisjoint(names):
            return taken
    return {}


def _announce(i, names, expected, passed):
    left = [expected.get(name) for name in names[i:]]
    end = f", about {sum(left) / 60:.1f} left" if None not in left else ""
    line = f"[{i + 1}/{len(names)}] {names[i]} ({passed / 60:.1f} minutes passed{end})"
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
