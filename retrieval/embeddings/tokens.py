"""Texts to the token ids of a text tower, with small libraries instead of TensorFlow.

`tokenizers` (Hugging Face's) and `sentencepiece` read the published vocabularies; this module adds
cleaning, start and end tokens, and padding. KerasHub's tokenizers give the same ids, but need
tensorflow-text.
"""

import json
import os
import re
import string
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

EXTRA = "pip install 'prototrain[text]'"
PIECES, JSON = "tokenizer.model", "tokenizer.json"  # name of the vocabulary in a SavedModel
# Names of vocabularies in published folders, in the order of search.
_PIECES = ("spiece.model", "sentencepiece.bpe.model", PIECES, "assets/tokenizer/vocabulary.spm")
_PAIRS = (
    ("vocab.json", "merges.txt"),
    ("assets/tokenizer/vocabulary.json", "assets/tokenizer/merges.txt"),
)
_PUNCTUATION = str.maketrans("", "", string.punctuation)
CLEANING = {
    "": lambda text: text,
    "lower": lambda text: text.lower(),
    # The cleaning with which SigLIP was trained.
    "canonicalize": lambda text: " ".join(text.lower().translate(_PUNCTUATION).split()),
}


class Rules(NamedTuple):
    """Rules for a text besides its vocabulary; JSON values.

    Attributes:
      length: L, length of every sequence.
      cleaning: one of `CLEANING`.
      start: id of the first token, None for none.
      end: id of the last token, which stays when a text is cut off.
      padding: id of the tokens after it.
      shift: added to ids of a SentencePiece model, whose unknown token is then 3 (MetaCLIP 2, like
        XLM-R).
    """

    length: int
    cleaning: str
    start: int | None
    end: int
    padding: int
    shift: int = 0


class Vocabulary:
    """The tokens of a file: `ids` of a text, and `id_of` a token.

    Args:
      path: a SentencePiece model (`.model`, `.spm`), or a tokenizer.json of Hugging Face.

    Raises:
      ValueError: the library is not installed, or the file is damaged.
    """

    def __init__(self, path: str) -> None:
        pieces = not path.endswith(".json")
        try:
            if pieces:
                import sentencepiece as library
            else:
                import tokenizers as library  # type: ignore[no-redef]
        except ImportError as error:
            raise ValueError(f"searching by text needs {error.name}: {EXTRA}") from None
        try:
            if pieces:
                found: Any = library.SentencePieceProcessor(model_file=path)
            else:
                found = library.Tokenizer.from_file(path)
                found.no_padding()
                found.no_truncation()
        except Exception as error:  # both libraries raise many kinds
            reason = " ".join(str(error).replace(path, "it").split()) or type(error).__name__
            raise ValueError(f"{path}: no vocabulary can be read from it: {reason}") from None
        self._pieces, self._found = pieces, found

    def ids(self, text: str) -> list[int]:
        """Token ids of a text, without start and end."""
        if self._pieces:
            return self._found.encode(text)
        return self._found.encode(text, add_special_tokens=False).ids

    def id_of(self, token: str) -> int | None:
        """The id of a token, None if there is none."""
        if not self._pieces:
            return self._found.token_to_id(token)
        found = self._found.piece_to_id(token)
        return found if self._found.id_to_piece(found) == token else None


def encode(vocabulary: Vocabulary, rules: Rules, texts: Sequence[str]) -> np.ndarray:
    """Returns int32 [N, L], the tokens of texts.

    Args:
      vocabulary: the tokens.
      rules: the other rules.
      texts: [N].
    """
    found = np.full((len(texts), rules.length), rules.padding, np.int32)
    start = [] if rules.start is None else [rules.start]
    for row, text in zip(found, texts, strict=True):
        text = text.encode(errors="replace").decode()  # bytes of an argument that is not UTF-8
        ids = vocabulary.ids(CLEANING[rules.cleaning](text))
        if rules.shift:
            ids = [n + rules.shift if n else 3 for n in ids]
        ids = [*start, *ids[: rules.length - len(start) - 1], rules.end]
        row[: len(ids)] = ids
    return found


def find(folder: str) -> tuple[str, bytes]:
    """The vocabulary of a published folder: (its name in a SavedModel, the bytes of the file).

    Raises:
      ValueError: there is no vocabulary, or its library is not installed.
    """
    for name in _PIECES:
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            return PIECES, _read(path)
    path = os.path.join(folder, JSON)
    if os.path.isfile(path):
        content = _read(path)
        try:
            found = json.loads(content)
        except ValueError:
            raise ValueError(f"{path}: is no JSON") from None
        if isinstance(found, dict) and "model" in found:  # KerasHub's is another
            return JSON, content
    for words, merges in _PAIRS:
        paths = [os.path.join(folder, name) for name in (words, merges)]
        if all(map(os.path.isfile, paths)):
            return JSON, _byte_pairs(*paths).encode()
    wanted = ", ".join((*_PIECES[:2], JSON, *_PAIRS[0]))
    raise ValueError(f"{folder}: there is no vocabulary of texts: {wanted}")


def _read(path):
    with open(path, "rb") as file:
        return file.read()


def _byte_pairs(words, merges):
    """CLIP's tokenizer (Radford et al. 2021, arXiv 2103.00020) as a tokenizer.json."""
    try:
        import tokenizers
    except ImportError as error:
        raise ValueError(f"searching by text needs {error.name}: {EXTRA}") from None
    from tokenizers import Regex, models, normalizers, pre_tokenizers

    end = "<|endoftext|>"
    try:
        lines = _read(merges).decode().splitlines()
        pairs = [tuple(line.split()) for line in lines if line.strip() and "#version:" not in line]
        known = json.loads(_read(words))
        byte_pairs = models.BPE(known, pairs, end_of_word_suffix="</w>", unk_token=end)
    except Exception as error:  # the library raises many kinds
        raise ValueError(
            f"{words}: no vocabulary can be read from it and {os.path.basename(merges)}: {error}"
        ) from None
    made = tokenizers.Tokenizer(byte_pairs)
    made.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    made.add_special_tokens(["<|startoftext|>", end])
    return made.to_str()


def rules(vocabulary: Vocabulary, family: str, length: int, cleaning: str | None = None) -> Rules:
    """The rules of a family of networks.

    Args:
      vocabulary: the tokens.
      family: 'clip', 'metaclip' or 'siglip'.
      length: length of the tower's sequences.
      cleaning: one of `CLEANING`; None: the family's.

    Raises:
      ValueError: the vocabulary is of another family.
    """
    if family == "metaclip" and vocabulary.id_of("<pad>") is None:  # a SentencePiece model
        return Rules(length, cleaning or "", 0, 2, 1, shift=1)
    # (start, end, padding); SigLIP 2 has Gemma's, which also has </s>.
    known = {
        "clip": [("<|startoftext|>", "<|endoftext|>", "<|endoftext|>")],
        "metaclip": [("<s>", "</s>", "<pad>")],
        "siglip": [(None, "<eos>", "<pad>"), (None, "</s>", "</s>")],
    }[family]
    for tokens in known:
        ids = [token and vocabulary.id_of(token) for token in tokens]
        if None not in ids[1:] and (tokens[0] is None or ids[0] is not None):
            usual = {"<eos>": "lower", "</s>": "canonicalize"}.get(tokens[1], "")
            usual = usual if family == "siglip" else ""
            return Rules(length, usual if cleaning is None else cleaning, *ids)
    raise ValueError(f"its vocabulary has no token {known[0][1]!r}: it is of another network")


def is_text(argument: str) -> bool:
    """Whether an argument that is not a file looks like words: 'red dress', but not 'dres.jpg'."""
    from metriclearn.datasets import image_files

    words = argument.strip()
    if not words or "/" in words or os.sep in words:
        return False
    if words.lower().endswith(image_files.SUFFIXES):
        return False
    return bool(re.search(r"\s", words)) or "." not in words
