"""`TextEmbedder`: texts to embeddings that can be compared with those of images.

    embedder = TextEmbedder.load("model")                    # of an index
    vectors = embedder.embed(["red dress with pockets"])     # float32 [1, D]

Its model is a text tower that was trained together with the image tower (CLIP, SigLIP). It is a
SavedModel in the folder `text` of the images' model, with the vocabulary.
"""

import os
import shutil
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from metriclearn.datasets import manifest
from retrieval.embeddings import tokens
from retrieval.embeddings.embedder import NOTE, session_of
from retrieval.embeddings.store import Embedded
from trainer import files, quiet
from trainer.config import UserError

FOLDER = "text"  # folder in the SavedModel of the images
BATCH = 64  # texts per batch


class TextEmbedder:
    """Turns texts into embeddings. Safe to use from several threads.

    Attributes:
      dimensions: D, the length of an embedding.
    """

    dimensions: int

    def __init__(self, session, note: dict, vocabulary: tokens.Vocabulary) -> None:
        """Internal; use `load`."""
        self._session, self._vocabulary = session, vocabulary
        self._rules = tokens.Rules(**note["rules"])
        names = note["tensors"]
        self._run = session.make_callable(names["embeddings"], [names["tokens"]])
        self.dimensions = note["features"]

    @classmethod
    def load(cls, folder: str | os.PathLike, threads: int = 0) -> "TextEmbedder":
        """Loads the text tower of a saved model.

        Args:
          folder: the SavedModel of the images, such as that of an index.
          threads: number of TensorFlow's threads, 0 for all cores.

        Raises:
          ValueError: the model has no text tower, or has a head that was trained only on images;
            the files are damaged; or a library for the vocabulary is not installed.
        """
        missing = why_not(folder)
        if missing:
            raise ValueError(missing)
        folder = os.path.join(folder, FOLDER)
        keys = {"rules", "tensors", "features", "vocabulary"}
        note = files.known_keys(os.path.join(folder, NOTE), keys, "a model that embeds texts")
        name = os.path.basename(note["vocabulary"])
        vocabulary = tokens.Vocabulary(os.path.join(folder, "assets", name))
        try:
            made = cls(session_of(folder, threads), note, vocabulary)
            with quiet.filtered_stderr(lambda lines: ()):  # a oneDNN message about integers
                made.embed([""])  # fails now if it is damaged
        except Exception as error:  # TensorFlow raises many kinds for damaged files
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"{folder}: the model cannot be loaded: {reason}") from error
        return made

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Returns the embeddings float32 [N, D] of texts [N], of length 1."""
        ids = tokens.encode(self._vocabulary, self._rules, texts)
        parts = [self._run(ids[n : n + BATCH]) for n in range(0, len(ids), BATCH)]
        return np.concatenate([np.zeros((0, self.dimensions), np.float32), *parts])

    def close(self) -> None:
        """Frees the session."""
        self._session.close()

    def __enter__(self) -> "TextEmbedder":
        return self

    def __exit__(self, *error) -> None:
        self.close()


def read_queries(path: str) -> tuple[list[str], list[str], list[str]]:
    """Reads a CSV of the columns text and label.

    Args:
      path: the file; a text may occur several times, with different labels.

    Returns:
      (texts [N], labels [N], ids [N]).

    Raises:
      ValueError: the file cannot be read, a column is missing, or a cell is empty.
    """
    rows = manifest.csv_rows(path)
    _, header = next(rows, (1, []))
    missing = [name for name in ("text", "label") if name not in header]
    if missing:
        raise ValueError(f"{path}: has no column {missing[0]!r}: give a header, text,label")
    found: dict[str, tuple[str, str]] = {}
    for line, cells in rows:
        row = dict(zip(header, cells, strict=False))
        text, label = row.get("text", ""), row.get("label", "")
        if not text or not label:
            raise ValueError(f"{path}:{line}: {'label' if text else 'text'} is empty")
        # Ids must differ from those of catalogue items: equal ids mean the same image.
        name = f"text: {text}"
        found[f"{name} (line {line})" if name in found else name] = text, label
    if not found:
        raise ValueError(f"{path}: has a header but no row")
    texts, labels = zip(*found.values(), strict=True)
    return list(texts), list(labels), list(found)


def embed_queries(path: str, embedder: TextEmbedder) -> Embedded:
    """The texts of a CSV as queries; see `read_queries`."""
    texts, labels, ids = read_queries(path)
    empty = np.full(len(texts), "")
    return Embedded(embedder.embed(texts), np.array(ids), np.array(labels), empty)


def why_not(folder: str | os.PathLike) -> str:
    """Why a SavedModel cannot be searched by text, one line; '' if it can."""
    if os.path.isdir(os.path.join(folder, FOLDER)):
        return ""
    path, note = os.path.join(folder, NOTE), {}
    if os.path.exists(path):  # third-party SavedModels have none
        note = files.known_keys(path, set(), "a model that embeds images")
    return note.get("no_texts") or "the model has no text tower: search by image"


class Saved(NamedTuple):
    """The text tower of a SavedModel of images; see `trainer.export.text_tower`."""

    folder: str

    def save(self, folder: str) -> None:
        """Copies it to a folder that does not exist yet."""
        shutil.copytree(self.folder, folder)


def of_saved_model(folder: str | os.PathLike) -> Saved:
    """The text tower of a SavedModel of images.

    Raises:
      UserError: there is none.
      ValueError: it is damaged.
    """
    from models.backbones import saved_model  # imports TensorFlow

    if reason := why_not(folder):
        raise UserError(reason)
    saved_model.noted(os.path.join(folder, FOLDER))
    return Saved(os.path.join(folder, FOLDER))
