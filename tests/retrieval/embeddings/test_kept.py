"""Embeddings of an evaluation, kept for the next."""

import dataclasses

import numpy as np
import pytest

from retrieval.embeddings import embedder, passes, store

pytestmark = pytest.mark.numeric
CHECKPOINT = "experiments/exp-tiny/checkpoint/model-3"


def test_embeddings_are_kept_while_everything_is_the_same(
    tiny_model, tiny_table, tmp_path, capsys, monkeypatch
):
    """Checkpoint, configuration, images, sources and code; a damaged file is made again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    names, ran = ("retrieval_query", "retrieval_index"), []
    run = embedder.Embedder.run_both
    monkeypatch.setattr(embedder.Embedder, "run_both", lambda *a: ran.append(1) or run(*a))

    def embedded():
        ran.clear()
        found = passes.embed_datasets(tiny_model, names, CHECKPOINT)
        return found, bool(ran)

    first, anew = embedded()
    assert anew
    again, anew = embedded()
    assert not anew and "unchanged, from" in capsys.readouterr().err
    for name in names:
        for field in dataclasses.fields(store.Embedded):
            a, b = (getattr(found[name], field.name) for found in (first, again))
            np.testing.assert_array_equal(a, b)
    # One of them changes at a time; each change is seen, also back again.
    (file,) = (tmp_path / "prototrain/evaluated").iterdir()
    whole = file.read_bytes()
    changed = dataclasses.replace(tiny_table, images=255 - tiny_table.images)
    with monkeypatch.context() as patch:
        patch.setattr(tiny_model, "table", lambda: changed)
        assert embedded()[1] and not embedded()[1]
    moved = dataclasses.replace(tiny_table, splits=["test"] * 8)
    with monkeypatch.context() as patch:
        patch.setattr(tiny_model, "table", lambda: moved)
        assert embedded()[1]
    with monkeypatch.context() as patch:  # as of a backbone's folder, at the same address
        patch.setattr(tiny_model, "sources", lambda: {"sha256": "0"}, raising=False)
        assert embedded()[1] and not embedded()[1]
        patch.setattr(tiny_model, "sources", lambda: {"sha256": "1"})
        assert embedded()[1]
    with monkeypatch.context() as patch:
        patch.setitem(tiny_model.config._values, "model.batch_size", 5)
        assert embedded()[1]
    with open(tiny_model.__file__, "a") as code:
        code.write("# edited\n")
    assert embedded()[1] and not embedded()[1]
    assert len(list(file.parent.iterdir())) == 1
    for damaged in (whole[:300], b"", b"x" * 50):
        file.write_bytes(damaged)
        assert embedded()[1]
