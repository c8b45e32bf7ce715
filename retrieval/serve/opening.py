"""The catalogues that the program's flags name, opened."""

import os

from retrieval.catalogue.opened import is_milvus
from retrieval.serve.served import Shelf
from retrieval.serve.thumbnails import Thumbnails


def shelves(indices: list[str], images: Thumbnails, metrics, threads: int = 0,
            alone: int | None = None) -> list[Shelf]:  # fmt: skip
    """Opens indexes.

    Args:
      indices: folders or addresses of Milvus, or name=folder; without a name, that of the folder.
      images: the items' images.
      metrics: of the server.
      threads, alone: of TensorFlow, see `Shelf`.

    Raises:
      ValueError: a name twice, or what `Shelf` raises.
    """
    named: dict[str, str] = {}
    for text in indices:
        name, found, folder = text.rpartition("=")
        folder = os.path.expanduser(folder)
        if is_milvus(folder):
            name = name or folder.rpartition("#")[2].partition("@")[0].rpartition("/")[2]
        name = name if found else name or os.path.basename(os.path.abspath(folder))
        if name in named:
            raise ValueError(f"--index: two are called {name!r}; name them: a={folder},b=…")
        named[name] = folder
    return [Shelf(name, folder, images, metrics, threads, alone) for name, folder in named.items()]
