"""Makes tokens.json: tiny vocabularies, and the token ids of KerasHub's preprocessors for texts.

python -m venv oracle && oracle/bin/pip install keras-hub==0.32.0
oracle/bin/python tests/models/make_tokens.py
"""

import base64
import io
import json
import pathlib

import keras_hub
import numpy as np
import sentencepiece
from keras_hub.src.models.metaclip_2.metaclip_2_causal_lm_preprocessor import (
    MetaCLIP2CausalLMPreprocessor,
)
from keras_hub.src.tokenizers.byte_pair_tokenizer import bytes_to_unicode

PATH = pathlib.Path(__file__).with_name("tokens.json")
TEXTS = [
    "red dress with pockets",
    "  Red,  DRESS!! ",
    "größe 42 café",
    "it's a_b 3.5%",
    "",
    "x" * 40,
]
LENGTH = 12
SPECIAL = ["<|startoftext|>", "<|endoftext|>"]


def clip():
    letters = bytes_to_unicode()[1]
    merges = ["r e", "re d</w>", "d re", "s s</w>", "i t", "' s</w>", "p o", "c k"]
    words = [*letters, *(f"{c}</w>" for c in letters)]
    words += [pair.replace(" ", "") for pair in merges] + SPECIAL
    vocabulary = {word: n for n, word in enumerate(words)}
    tokenizer = keras_hub.models.CLIPTokenizer(vocabulary, merges)
    made = keras_hub.models.CLIPPreprocessor(tokenizer, sequence_length=LENGTH)
    return {"vocabulary": vocabulary, "merges": merges, "ids": ids(made)}


def pieces(**options):
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*TEXTS[:4], "dress pockets with red a b"] * 5), model_writer=out,
        normalization_rule_name="identity", hard_vocab_limit=False, **options,
    )  # fmt: skip
    return out.getvalue()


def siglip():
    proto = pieces(vocab_size=60, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    tokenizer = keras_hub.models.SigLIPTokenizer(proto)
    made = keras_hub.models.SigLIPPreprocessor(tokenizer, sequence_length=LENGTH)
    return {"proto": base64.b64encode(proto).decode(), "ids": ids(made)}


def metaclip():
    proto = pieces(vocab_size=60, model_type="bpe", unk_id=0, bos_id=1, eos_id=2, pad_id=-1)
    tokenizer = keras_hub.models.MetaCLIP2Tokenizer(proto)
    made = MetaCLIP2CausalLMPreprocessor(tokenizer, sequence_length=LENGTH, to_lower=False)
    return {"proto": base64.b64encode(proto).decode(), "ids": ids(made)}


def ids(preprocessor):
    found = preprocessor({"prompts": TEXTS, "images": None})
    return np.asarray(found["token_ids"]).tolist()


def main():
    found = {"texts": TEXTS, "length": LENGTH}
    for make in (clip, siglip, metaclip):
        found[make.__name__] = make()
    PATH.write_text(json.dumps(found, ensure_ascii=False) + "\n")
    print(PATH.stat().st_size)


if __name__ == "__main__":
    main()
