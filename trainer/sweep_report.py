"""The results of a sweep: a table, and sweep.html with sweep.png in it."""

import base64
import html
import io
import json
import math
import os
import sys
from typing import Any

import rich.console
import rich.markup
import rich.table

from trainer import filesets
from trainer.config import Config
from trainer.files import published, write_text


def rows(study) -> list[dict[str, Any]]:
    """Returns the trials, best first: dicts of trial, state, value, params and experiment."""
    spec = study.user_attrs["spec"]
    found = []
    for trial in study.get_trials(deepcopy=False):
        values = trial.intermediate_values.values()
        best = (min if study.direction.name == "MINIMIZE" else max)(values, default=None)
        found.append(
            {
                "trial": trial.number,
                "state": trial.state.name.lower(),
                "value": best if trial.value is None else trial.value,
                "params": {name: trial.params.get(name, "") for name in spec["space"]},
                "experiment": trial.user_attrs.get("experiment", ""),
                "error": trial.user_attrs.get("error", ""),
            }
        )
    sign = 1 if study.direction.name == "MINIMIZE" else -1

    def order(row):
        # A pruned trial's figure is from another step: it is not ranked with finished trials.
        value = math.inf if row["value"] is None else sign * row["value"]
        return row["state"] != "complete", value, row["trial"]

    return sorted(found, key=order)


def _cells(row):
    value = "" if row["value"] is None else f"{row['value']:.4g}"
    params = (f"{v:.4g}" if isinstance(v, float) else str(v) for v in row["params"].values())
    return [str(row["trial"]), row["state"], value, *params]


def show(study) -> None:
    """Prints the table, best trial first."""
    spec = study.user_attrs["spec"]
    table = rich.table.Table()
    for name in ("trial", "state", spec["metric"], *spec["space"]):
        table.add_column(rich.markup.escape(name), overflow="fold")
    found = rows(study)
    for row in found:
        table.add_row(*map(rich.markup.escape, _cells(row)))
    rich.console.Console(width=None if sys.stdout.isatty() else 100).print(table)
    if found and found[0]["state"] == "complete":
        print(f"best: {found[0]['experiment']} (its checkpoint is in checkpoint/best)")
        print(f"all: {os.path.dirname(found[0]['experiment'])}/sweep.html")


def write(study, folder: str, config: Config, spec: dict[str, Any]) -> None:
    """Writes sweep.png and sweep.html, which needs no other file."""
    plots = io.BytesIO()
    _draw(study, config, spec).savefig(plots, format="png", dpi=100)
    image = base64.b64encode(plots.getvalue()).decode()
    head = ["trial", "state", spec["metric"], *spec["space"], ""]
    body = ""
    for row in rows(study):
        cells = (f"<td>{html.escape(cell)}</td>" for cell in [*_cells(row), row["error"]])
        body += f"<tr>{''.join(cells)}</tr>\n"
    shared = " ".join(f"--{name}={value}" for name, value in spec["shared"].items())
    page = f"""<!DOCTYPE html>
<meta charset="utf-8"><title>Sweep of {html.escape(spec["model"])}</title>
<style>
body {{ font-family: sans-serif; margin: 2em }}
table {{ border-collapse: collapse }}
td, th {{ padding: .2em .8em; border-bottom: 1px solid #ccc; text-align: left }}
img {{ max-width: 100% }}
</style>
<h1>Sweep of {html.escape(spec["model"])}</h1>
<p>{html.escape(folder)}; all trials with <code>{html.escape(shared)}</code>. Figures are
the best full validation passes.</p>
<img alt="Curves of all trials, and the figure by each key" src="data:image/png;base64,{image}">
<table><tr>{"".join(f"<th>{html.escape(name)}</th>" for name in head)}</tr>
{body}</table>
"""
    with filesets.together(os.path.join(folder, "sweep")) as staged:
        with published(f"{staged}.png") as out:
            out.write(plots.getvalue())
        write_text(f"{staged}.html", page)


def write_hparams(study, folder: str, config: Config, spec: dict[str, Any]) -> None:
    """Writes the trials for TensorBoard's HParams tab, see `summaries.write_hparams`."""
    from trainer import summaries  # imports TensorFlow

    def typed(name, value):
        return float(value) if config.key(name).type in ("int", "float") else value

    space = {}
    for name, text in spec["space"].items():
        choices = json.loads(text)["attributes"].get("choices", ())
        space[name] = [typed(name, value) for value in choices]
    trials = [
        row | {"params": {n: typed(n, v) for n, v in row["params"].items() if v != ""}}
        for row in rows(study)
        if os.path.isdir(row["experiment"])
    ]
    summaries.write_hparams(folder, space, spec["metric"], trials)


def _draw(study, config, spec):
    """Draws a panel of curves by step, a panel of values by trial, and one panel per key."""
    from matplotlib.figure import Figure

    panels = 2 + len(spec["space"])
    columns = min(panels, 3)
    lines = -(-panels // columns)
    figure = Figure(figsize=(4.2 * columns, 3.2 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for unused in axes[panels:]:
        unused.set_axis_off()
    trials = study.get_trials(deepcopy=False)
    for trial in trials:
        curve = sorted(trial.intermediate_values.items())
        style = "-" if trial.state.name == "COMPLETE" else ":"
        axes[0].plot(*zip(*curve, strict=True), style, marker=".") if curve else None
    axes[0].set(xlabel="step", ylabel=spec["metric"], title="each trial (dotted: not finished)")
    done = [trial for trial in trials if trial.state.name == "COMPLETE"]
    best = min if study.direction.name == "MINIMIZE" else max
    values = [trial.value for trial in done]
    numbers = [trial.number for trial in done]
    axes[1].plot(numbers, values, "o")
    axes[1].step(numbers, [best(values[: i + 1]) for i in range(len(values))], where="post")
    axes[1].set(xlabel="trial", title="best so far")
    axes[1].xaxis.get_major_locator().set_params(integer=True)
    for axis, (name, text) in zip(axes[2:], spec["space"].items(), strict=False):
        tried = [trial.params[name] for trial in done]
        bounds = json.loads(text)["attributes"]
        if "low" in bounds:
            axis.set_xscale("log" if bounds["log"] else "linear")
            axis.set_xlim(bounds["low"], bounds["high"])
        elif config.key(name).type in ("int", "float"):
            tried = [float(value) for value in tried]
        axis.margins(x=0.2)
        axis.tick_params(axis="x", which="both", labelrotation=30)
        axis.plot(tried, values, "o")
        axis.set(title=name, ylabel=spec["metric"])
    return figure
