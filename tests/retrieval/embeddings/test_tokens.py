"""Texts to token ids, against those of KerasHub's tokenizers."""

import base64
import json
import pathlib
import sys

import numpy as np
import pytest

from retrieval.embeddings import tokens

ORACLE = json.loads((pathlib.Path(__file__).parents[2] / "models" / "tokens.json").read_text())


def laid(folder, family):
    """A published folder with the family's vocabulary."""
    made = ORACLE[family]
    if family == "clip":
        (folder / "vocab.json").write_text(json.dumps(made["vocabulary"]))
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *made["merges"]]))
    else:
        name = {"siglip": "spiece.model", "metaclip": "sentencepiece.bpe.model"}[family]
        (folder / name).write_bytes(base64.b64decode(made["proto"]))
    return folder


def vocabulary(folder):
    name, content = tokens.find(str(folder))
    (folder / f"saved-{name}").write_bytes(content)
    return tokens.Vocabulary(str(folder / f"saved-{name}"))


@pytest.mark.parametrize("family", ("clip", "siglip", "metaclip"))
def test_ids_are_those_of_kerashub(family, tmp_path):
    read = vocabulary(laid(tmp_path, family))
    rules = tokens.rules(read, family, ORACLE["length"])
    found = tokens.encode(read, rules, ORACLE["texts"])
    assert found.dtype == np.int32
    for row, expected in zip(found.tolist(), ORACLE[family]["ids"], strict=True):
        if family == "clip":  # what comes after the end is not seen, and KerasHub pads with 0
            end = row.index(rules.end) + 1
            row, expected = row[:end], expected[:end]
        assert row == expected


def test_a_tokenizer_json_is_read_without_its_own_padding(tmp_path):
    import tokenizers

    words = tokenizers.models.WordLevel({"<eos>": 0, "<pad>": 1, "red": 2, "?": 3}, "?")
    made = tokenizers.Tokenizer(words)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.enable_padding(length=9)
    made.save(str(tmp_path / "tokenizer.json"))
    read = vocabulary(tmp_path)
    rules = tokens.rules(read, "siglip", 4)
    assert rules == tokens.Rules(4, "lower", None, 0, 1)
    found = tokens.encode(read, rules, ["RED red", "red " * 9, "red \udcff"])
    assert found.tolist() == [[2, 2, 0, 1], [2, 2, 2, 0], [2, 3, 0, 1]]


def test_what_is_no_vocabulary_is_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="there is no vocabulary of texts: spiece.model"):
        tokens.find(str(tmp_path))
    # KerasHub's file of this name holds no vocabulary.
    (tmp_path / "tokenizer.json").write_text('{"class_name": "CLIPTokenizer"}')
    with pytest.raises(ValueError, match="there is no vocabulary of texts"):
        tokens.find(str(tmp_path))
    (tmp_path / "spiece.model").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="spiece.model: no vocabulary can be read from it"):
        tokens.Vocabulary(str(tmp_path / "spiece.model"))
    for name, content in (
        ("vocab.json", '{"a": 0'),
        ("merges.txt", "a b"),
        ("tokenizer.json", "5"),
    ):
        (tmp_path / name).write_text(content)
    (tmp_path / "spiece.model").rename(tmp_path / "other")
    with pytest.raises(
        ValueError, match="vocab.json: no vocabulary .* it and merges.txt"
    ) as caught:
        tokens.find(str(tmp_path))
    assert "\n" not in str(caught.value)
    (tmp_path / "other").rename(tmp_path / "spiece.model")
    read = vocabulary(laid(tmp_path, "siglip"))
    with pytest.raises(ValueError, match="has no token '<|endoftext|>': it is of another network"):
        tokens.rules(read, "clip", 4)
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(ValueError, match=r"needs sentencepiece: pip install 'prototrain\[text\]'"):
        tokens.Vocabulary(str(tmp_path / "spiece.model"))


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        *(("red dress with pockets", True), ("dress", True), ("size 4.5 shoes", True)),
        *(("dress.jpg", False), ("my red dress.PNG", False), ("dress.jgp", False)),
        *(("photos/dress", False), ("photos/", False), ("*.jpg", False), ("", False), (" ", False)),
    ],
)
def test_arguments_that_read_like_text(argument, text):
    assert tokens.is_text(argument) == text
