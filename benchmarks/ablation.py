"""Loss x miner x sampler on two data sets, three seeds each: docs/ablation.json, docs/ablation.png.

    python -m benchmarks.ablation --base_path=FOLDER   runs what is missing, then draws
    python -m benchmarks.ablation --list               the command line of every row

FOLDER is a clone of the Grocery Store data set (or --manifest=FILE, a CSV of it). Every run is what
`python -m trainer.main` trains with the listed flags. A row's learning rate is that of `rates` with
which seed 0 ends best. The script may be stopped: each run is written to the JSON as it ends, and
is not run again unless its flags are changed here.
"""

import argparse
import concurrent.futures as futures
import contextlib
import json
import multiprocessing
import os
import pathlib
import statistics
import tempfile
import time

DOCS = pathlib.Path(__file__).parent.parent / "docs"
RESULTS, PICTURE = DOCS / "ablation.json", DOCS / "ablation.png"
SEEDS = (0, 1, 2)

# ---------------------------------------------------------------------------- what is compared

_TRIPLET = "--model.loss=triplet --model.distance=euclidean --model.margin=0.2"
_CONTRASTIVE = "--model.loss=contrastive --model.loss.options=reduction=nonzero_mean"
_MEMORY = "--model.memory_size=1024 --model.memory_start=100"
METHODS = {
    "triplet, batch-hard": f"{_TRIPLET} --model.miner=batch_hard",
    "triplet, batch-hard, soft margin": (
        f"{_TRIPLET} --model.miner=batch_hard --model.loss.options=soft_margin=true"
    ),
    "triplet, batch-hard, cosine, margin 0.1": "--model.loss=triplet --model.miner=batch_hard",
    "triplet, semi-hard": f"{_TRIPLET} --model.miner=semi_hard",
    "triplet, distance-weighted": f"{_TRIPLET} --model.miner=distance_weighted",
    "triplet, all": (
        f"{_TRIPLET} --model.miner=batch_all --model.loss.options=reduction=nonzero_mean"
    ),
    "triplet, batch-hard, XBM": f"{_TRIPLET} --model.miner=batch_hard {_MEMORY}",
    "multi-similarity": "--model.loss=multi_similarity",
    "supervised contrastive": "--model.loss=supervised_contrastive",
    "proxy-anchor": "--model.loss=proxy_anchor",
    "margin, distance-weighted": "--model.loss=margin --model.miner=distance_weighted",
    "contrastive": _CONTRASTIVE,
    "contrastive, XBM": f"{_CONTRASTIVE} {_MEMORY}",
}
SAMPLERS = {"0": "", "0.8": "--model.random_within_class=0.8"}  # share of one-category batches
_BATCH = "--model.batch_size=64"  # 16 products, 4 pictures of each
DATA = {
    # A linear head on features of a frozen network; photos search the shop's pictures.
    "grocery": (
        "--dataset.name=grocery --dataset.base_path=FOLDER --dataset.domains=true "
        f"--model.cached_features=true {_BATCH} --model.num_steps=400 "
        "--trainer.evaluation_interval=100"
    ),
    # A small network from nothing; characters that are never trained on search one face's.
    "glyphs": (
        "--dataset.name=glyphs --dataset.train_where=category="
        "Latin|Greek|Cyrillic|Armenian|Georgian|number|punctuation --dataset.augment= "
        "--model.hub_address=convnet --model.default_image_dimensions=32,32,3 "
        f"{_BATCH} --model.num_steps=300 --trainer.evaluation_interval=100"
    ),
}
ROWS = [(data, method, share) for data in DATA for share in SAMPLERS for method in METHODS]
RATES = {"grocery": (0.001, 0.003, 0.01), "glyphs": (0.001, 0.003)}
FASTER = {"grocery": (0.03,), "glyphs": (0.01,)}  # further ones for proxies, which start at random
# A plain linear head, as when the runs were made.
_HELD = [
    "--model.head_init=random",
    "--model.reduced_dimension=128",
    "--model.ema_decay=0",
    "--model.lr_schedule.warmup_steps=100",
    "--trainer.early_stopping_patience=0",
]
# Of no effect on the figures: two runs share two cores better with a thread each.
_THREADS = ["--trainer.intra_op_threads=1", "--trainer.inter_op_threads=1"]


def rates(row):
    """The learning rates to try for a row, (data set, method, share)."""
    return RATES[row[0]] + (FASTER[row[0]] if "proxy" in row[1] else ())


def flags_of(row, rate, seed):
    """The flags of one run of a row."""
    data, method, share = row
    own = f"--model.lr_schedule.cosine.value={rate} --trainer.random_seed={seed}"
    return f"{DATA[data]} {METHODS[method]} {SAMPLERS[share]} {own}".split()


# ---------------------------------------------------------------------------- running


def parse(texts):
    """Returns the ranker, configured as by the command line."""
    from absl import flags

    from trainer.commandline import from_flags

    values = flags.FlagValues()
    flags.DEFINE_string("model", None, "", flag_values=values)
    return from_flags(["", "--model=models.ranker", *texts], values)[0]


def train(texts):
    """Trains the ranker; returns the figures of its validation and the seconds it took."""
    from trainer import quiet

    quiet.import_tensorflow()

    from models.ranker import config
    from trainer import loop, meters

    before, start = config.to_dict(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ablation-") as folder:
        place = [f"--trainer.experiment_base_dir={folder}", "--trainer.experiment_name=one"]
        model = parse([*texts, *_HELD, *_THREADS, *place])
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            steps = loop.train(model, config)
        passes = [p for p in meters.read_metrics(f"{folder}/one") if "examples" in p]
    if steps < config["model.num_steps"]:
        raise RuntimeError("was stopped")
    config.restore(before)
    best = max(passes, key=lambda p: p["recall@1"])
    return {
        **{key: round(passes[-1][key], 4) for key in ("recall@1", "recall@5")},
        "best_recall@1": round(best["recall@1"], 4),
        "best_step": best["step"],
        "seconds": round(time.monotonic() - start, 1),
    }


def chosen(row, runs):
    """The learning rate with which seed 0 ends best, or None while one is untried."""
    tried = {rate: runs[rate, 0]["recall@1"] for rate in rates(row) if (rate, 0) in runs}
    return max(tried, key=tried.get) if len(tried) == len(rates(row)) else None


def missing(row, runs):
    """The (rate, seed) that can be run now: all rates for seed 0, then the best for the others."""
    rate = chosen(row, runs)
    wanted = [(r, 0) for r in rates(row)] if rate is None else [(rate, s) for s in SEEDS]
    return [task for task in wanted if task not in runs]


def run(results, where, jobs):
    """Runs what is missing, `jobs` at a time, and writes the JSON after each."""
    total = sum(len(rates(row)) + len(SEEDS) - 1 for row in ROWS)
    first, start, running = sum(map(len, results.values())), time.monotonic(), {}
    # TensorFlow keeps some of what a graph held: a process ends after a few runs.
    options = {"mp_context": multiprocessing.get_context("spawn"), "max_tasks_per_child": 8}
    with futures.ProcessPoolExecutor(jobs, **options) as pool:
        while True:
            ready = ((row, task) for row in ROWS for task in missing(row, results[row]))
            free = [item for item in ready if item not in running.values()]
            for row, task in free[: jobs - len(running)]:
                texts = [where.get(text, text) for text in flags_of(row, *task)]
                running[pool.submit(train, texts)] = row, task
            if not running:
                return
            for future in futures.wait(running, return_when=futures.FIRST_COMPLETED).done:
                row, task = running.pop(future)
                results[row][task] = figures = future.result()
                write(results)
                done = sum(map(len, results.values()))
                left = (time.monotonic() - start) / (done - first) * (total - done)
                told = f"{', '.join(row)}  rate {task[0]} seed {task[1]}"
                told += f"  recall@1 {figures['recall@1']:.3f}"
                print(f"{done}/{total}  {told}  ETA {left / 60:.0f} min", flush=True)


# ---------------------------------------------------------------------------- results


def read():
    """Returns {row: {(rate, seed): figures}} of the JSON."""
    results = {row: {} for row in ROWS}
    if RESULTS.exists():
        for entry in json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]:
            row = entry["data"], entry["method"], entry["single_category"]
            if row in results and entry["flags"] == flags_of(row, 0, 0)[:-2]:
                for one in entry["runs"]:
                    results[row][one.pop("learning_rate"), one.pop("seed")] = one
    return results


def write(results):
    """Writes the JSON; returns its rows."""
    rows = []
    for row, runs in results.items():
        rate, keys = chosen(row, runs), ("learning_rate", "seed")
        entry = dict(zip(("data", "method", "single_category"), row, strict=True))
        entry |= {"flags": flags_of(row, 0, 0)[:-2], "learning_rate": rate}
        entry["runs"] = [dict(zip(keys, task, strict=True)) | one for task, one in runs.items()]
        if all((rate, seed) in runs for seed in SEEDS):
            entry["seeds"] = [runs[rate, seed]["recall@1"] for seed in SEEDS]
            entry["recall@1"] = round(statistics.mean(entry["seeds"]), 4)
        rows.append(entry)
    note = "recall@1 of the last step; each query has one relevant picture, so that it is MAP@R too"
    temporary = RESULTS.with_suffix(".writing")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump({"note": note, "rows": rows}, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, RESULTS)
    return rows


def table(rows):
    """The means and, in brackets, the lowest and highest seed, as Markdown."""
    cells = {}
    for row in (r for r in rows if "seeds" in r):
        figures = row["recall@1"], min(row["seeds"]), max(row["seeds"])
        mean, low, high = (f"{figure:.3f}"[1:] for figure in figures)
        cells[row["data"], row["method"], row["single_category"]] = f"{mean} ({low}-{high})"
    columns = [(data, share) for data in DATA for share in SAMPLERS]
    lines = [["loss, miner", *map(", ".join, columns)], ["---"] * (1 + len(columns))]
    lines += [[m, *(cells.get((data, m, share), "") for data, share in columns)] for m in METHODS]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def draw(rows):
    """A panel for each data set, a line for each method and sampler, a dot for each seed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    titles = {
        "grocery": "Grocery: a head on frozen features,\n296 validation photos of known products",
        "glyphs": "Glyphs: a small network from nothing,\n1,420 pictures of characters never seen",
    }
    left = {"grocery": 0.61, "glyphs": 0.84}  # what lies below is told in figures
    looks = {
        "0": ("mixed batches", "#0072b2", -0.17),
        "0.8": ("0.8 of one category", "#d55e00", 0.17),
    }
    methods = list(METHODS)
    figure, panels = plt.subplots(1, len(DATA), figsize=(9, 5.2), sharey=True, layout="constrained")
    for axes, data in zip(panels, DATA, strict=True):
        for y in range(0, len(methods), 2):
            axes.axhspan(y - 0.5, y + 0.5, color="#f2f2f2", zorder=0)
        for row in (r for r in rows if r["data"] == data and "seeds" in r):
            _, colour, offset = looks[row["single_category"]]
            y = methods.index(row["method"]) + offset
            if row["recall@1"] < left[data]:
                told = f" \u2190 {row['recall@1']:.3f} (" + ", ".join(map(str, row["seeds"])) + ")"
                axes.text(left[data], y, told, color=colour, size=7, va="center")
                continue
            axes.plot(row["seeds"], [y] * len(SEEDS), "o-", ms=3.5, color=colour, alpha=0.6)
            axes.plot(row["recall@1"], y, "|", ms=10, mew=2, color=colour)
        axes.set_title(titles[data], fontsize=9)
        axes.set_xlabel("recall@1", fontsize=9)
        axes.set_xlim(left[data])
        axes.set_ylim(len(methods) - 0.5, -0.5)
        axes.set_yticks(range(len(methods)), methods)
        axes.tick_params(labelsize=8)
        axes.grid(axis="x", alpha=0.4)
    handles = [plt.Line2D([], [], marker="o", color=c, label=t) for t, c, _ in looks.values()]
    figure.legend(handles=handles, loc="outside lower right", ncols=2, fontsize=8)
    figure.savefig(PICTURE, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--base_path", help="clone of the Grocery Store data set")
    parser.add_argument("--manifest", help="or a CSV of it")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, a core each")
    parser.add_argument("--list", action="store_true", help="print the rows' command lines")
    o = parser.parse_args()
    results = read()
    if o.list:
        for row, runs in results.items():
            texts = [
                f"'{t}'" if "|" in t else t for t in (*flags_of(row, chosen(row, runs), 0), *_HELD)
            ]
            print(f"python -m trainer.main --model=models.ranker {' '.join(texts)}")
        return
    if o.base_path or o.manifest:
        where = {"--dataset.base_path=FOLDER": f"--dataset.base_path={o.base_path or o.manifest}"}
        if o.manifest:
            where["--dataset.name=grocery"] = "--dataset.name=manifest"
        run(results, where, o.jobs)
    rows = write(results)
    draw(rows)
    print(table(rows))


if __name__ == "__main__":
    main()
