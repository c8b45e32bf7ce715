"""Searches an index by photos, by words, or by one of its items.

    python -m retrieval.search photo.jpg [more.jpg|FOLDER|-] --index=INDEX [--k=10]
        [--category=NAME] [--threshold=0.5] [--by_product] [--page=FILE.html] [--open]
    python -m retrieval.search "red dress with pockets" --index=INDEX
    python -m retrieval.search --item=ID --index=INDEX

The index contains the model that embeds the photos: nothing else is needed. `-` reads paths from
standard input, one per line. Words can be searched if the model has a text tower. An argument is
treated as words if it is not the name of a file or folder, contains no `/`, has no image suffix,
and contains a space or no dot; `--text` takes any words. The results are tables on a terminal,
otherwise one line of JSON per query. Photos that cannot be read are named on stderr; the others are
answered.
"""

import concurrent.futures
import contextlib
import functools
import itertools
import os
import sys
import tempfile
import threading
import webbrowser

import numpy as np
from absl import flags

from retrieval.embeddings import c_library, tokens
from trainer import commandline, program, quiet
from trainer import config as trainer_config
from trainer.config import UserError

BATCH = 64  # photos embedded at a time


def main(options, *arguments):
    if not options.index:
        raise UserError("--index=INDEX: name the folder of an index that `prototrain build` made")
    if bool(arguments or options.text) == bool(options.item):
        raise UserError(
            "Give a photo, a folder of photos, - for paths on standard input, words (if the "
            "model has a text tower), or --item=ID to find items similar to that item."
        )
    if not options.item:
        threading.Thread(target=_load_early).start()
    with trainer_config.user_errors(options.page or options.index):
        return _search(options, arguments)


def _load_early():
    """Loads TensorFlow's C library while FAISS is imported."""
    with contextlib.suppress(c_library.Unavailable):
        c_library.library()


def _search(options, arguments):
    words = [argument for argument in arguments if _reads_like_text(argument)]
    paths = photos(argument for argument in arguments if argument not in words)
    from retrieval.catalogue.opened import Catalogue  # FAISS and Arrow, beside `_load_early`
    from retrieval.reports import answers

    failed, shown = [], []
    with Catalogue.open(options.index) as catalogue:
        how = _how(options, catalogue)
        if options.item:
            found = catalogue.find_like(options.item, **how)
            paths = [catalogue.item(name)["path"] for name in options.item]
            groups = [(options.item, paths, catalogue.results(found))]
        else:
            groups = itertools.chain(
                _answers(catalogue, paths, how, failed) if paths else (),
                _of_texts(catalogue, words, options.text, how, failed),
            )
        for names, files, results in groups:
            for name, file, each in zip(names, files, results, strict=True):
                answers.show(name, each)
                shown.append((name, file, each))
    if options.page or options.open:
        _write_page(options, shown)
    return 1 if failed else 0


def photos(arguments):
    """Returns the paths of image files that arguments mean: files, folders, - for stdin."""
    paths = []
    for argument in arguments:
        argument = os.path.expanduser(argument)
        if argument == "-":
            lines = [line.rstrip("\r\n") for line in sys.stdin]
            if not any(lines):
                raise ValueError("-: standard input contains no path; give one path per line")
            paths += filter(None, lines)
        elif os.path.isdir(argument):
            from retrieval.embeddings import images  # all readers of data sets

            paths += images.table(argument).paths.tolist()
        else:
            paths.append(argument)
    return paths


def _reads_like_text(argument):
    """Whether an argument is words: neither a file nor similar to the name of one."""
    if argument == "-" or os.path.lexists(os.path.expanduser(argument)):
        return False
    return tokens.is_text(argument)


def _how(options, catalogue):
    """The flags that say how to search, as arguments of `Catalogue.find`."""
    threshold, count = options.threshold, catalogue.manifest["count"]
    if threshold is not None and catalogue.manifest["similarity"] == "cosine" and threshold > 1:
        raise ValueError(f"--threshold={threshold:g}: similarities are between -1 and 1")
    if options.k > count and options["k"].present:
        print(f"note: --k={options.k}: the index holds {count} items", file=sys.stderr)
    return {
        "k": min(options.k, count),
        "category": options.category,
        "threshold": threshold,
        "by_product": options.by_product,
    }


def _answers(catalogue, paths, how, failed):
    """Yields (names, paths, results) of readable photos; adds the others to `failed`."""
    with (
        catalogue.embedder() as embedder,
        concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool,
    ):

        def decode(path):
            try:
                return path, embedder.decode(path)
            except ValueError as error:
                return path, error

        for start in range(0, len(paths), BATCH):
            read, pixels = [], []
            with quiet.filtered_stderr(lambda lines: ()):  # libjpeg also prints errors
                decoded = list(pool.map(decode, paths[start : start + BATCH]))
            for path, image in decoded:
                if isinstance(image, ValueError):
                    failed.append(path)
                    print(f"error: {image}", file=sys.stderr)
                else:
                    read.append(path)
                    pixels.append(image)
            if read:
                vectors = embedder.run({"image": np.stack(pixels)})
                results = catalogue.results(catalogue.find(vectors, **how))
                for path, vector, each in zip(read, vectors, results, strict=True):
                    if not each and how["threshold"] is not None:
                        _explain(catalogue, path, vector, how)
                yield read, read, results


def _of_texts(catalogue, words, explicit, how, failed):
    """Yields (texts, no paths, results) of arguments that are words, and of --text."""
    if not (words or explicit):
        return
    missing = catalogue.why_no_texts()
    if missing:
        for name in words:
            print(f"error: {name!r} is not a file, and cannot be searched as text: {missing}",
                  file=sys.stderr)  # fmt: skip
        for text in explicit:
            print(f"error: --text={text}: {missing}", file=sys.stderr)
        failed += [*words, *explicit]
        return
    for name in words:
        if " " not in name:
            print(f"note: there is no file {name!r}: searching for it as text", file=sys.stderr)
    texts = [*words, *explicit]
    if not all(text.strip() for text in texts):
        raise ValueError("--text is empty: give words")
    with catalogue.text_embedder() as embedder:
        vectors = embedder.embed(texts)
    results = catalogue.results(catalogue.find(vectors, **how))
    for text, vector, each in zip(texts, vectors, results, strict=True):
        if not each and how["threshold"] is not None:
            _explain(catalogue, text, vector, how)
    yield texts, [""] * len(texts), results


def _explain(catalogue, path, vector, how):
    """Prints how far the nearest item is below the threshold."""
    best = catalogue.find(vector[None], 1, how["category"])
    ((nearest,),) = catalogue.results(best)
    print(
        f"{path}: no match above --threshold={how['threshold']:g}; the nearest item, "
        f"{nearest['id']!r}, scores {nearest['score']:.3f}",
        file=sys.stderr,
    )


def _write_page(options, shown):
    from retrieval.reports import search_page

    page = options.page
    if not page:
        handle, page = tempfile.mkstemp(".html", "prototrain-found-")
        os.close(handle)
    search_page.write(page, f"Found in {options.index}", shown)
    print(f"images of the results: {page}", file=sys.stderr)
    if options.open:
        webbrowser.open(f"file://{os.path.abspath(page)}")


def define_flags(values):
    text, path, decimal, number, flag, several = commandline.definers(
        values, "string", "path", "float", "integer", "bool", "multi_string"
    )
    path("index", None, "Folder of an index that `prototrain build` made.")
    number("k", 10, "Results per query.", lower_bound=1)
    text("category", None, "Search only items of this category.")
    decimal("threshold", None, "Show only items with at least this score.")
    flag("by_product", False, "Show only the best item of each product.")
    several("item", [], "Instead of a photo: the id of an item, to find similar items.")
    several("text", [], "Words to search for, even if they look like a file name.")
    path("page", None, "HTML file to write, with the images of queries and results.")
    flag("open", False, "Open the page in the browser.")


def run(argv=None):
    """Runs the program on a command line, `sys.argv` by default."""
    options = flags.FlagValues()
    define_flags(options)
    program.run_without_model(
        functools.partial(main, options),
        argv,
        "Interrupted.",
        arguments=("[PHOTO|WORDS …]",),
        flag_values=options,
    )


if __name__ == "__main__":
    run()
