"""What the flags of the program name, opened: indexes and the models that embed queries."""

import os

from retrieval.embeddings.embedder import Embedder
from retrieval.serve.served import Shelf
from retrieval.serve.thumbnails import Thumbnails


def shelves(options, limits, metrics) -> list[Shelf]:
    """Opens every index that `options.index` names, as folder or name=folder.

    Raises:
      ValueError: a name twice, not an index, or a model that does not fit it.
    """
    named = {}
    for text in options.index:
        name, found, folder = text.rpartition("=")
        folder = os.path.expanduser(folder)
        name = name if found else os.path.basename(os.path.abspath(folder))
        if name in named:
            raise ValueError(f"--index: two are called {name!r}; name them: a={folder},b=…")
        named[name] = folder
    images = Thumbnails(options.image_root, limits.pixels)

    def open_model(catalogue):
        if options.saved_model:
            made = Embedder.of_saved_model(options.saved_model, threads=options.threads)
        elif options.model:
            made = Embedder.of_experiment(
                options.model, options.checkpoint or None, threads=options.threads
            )
        else:
            raise ValueError("--saved_model or --model: name what embeds the queries")
        made.max_pixels = min(made.max_pixels, limits.pixels)
        return made

    return [Shelf(name, folder, open_model, images, metrics) for name, folder in named.items()]
