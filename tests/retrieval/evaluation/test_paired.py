"""Reading and comparing evaluations that were written."""

import os

import pytest

from retrieval.evaluation import paired
from retrieval.reports import outputs
from trainer import files, filesets


def test_what_cannot_be_compared_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"holds no …-eval\.json"):
        paired.load(tmp_path)
    with pytest.raises(ValueError, match="there is no such file or folder"):
        paired.load(tmp_path / "none")
    header = "id,product,relevant,rank,average_precision\n"
    for figures, table, said in (
        ({}, header, r"model-1-eval\.json: cannot be read: KeyError: 'num_queries'"),
        ({"num_queries": 1, "recall@k": {}}, "id,rnk\nq,1\n", "KeyError: 'rank'"),
        ({"num_queries": 1, "recall@k": {"1": 1}}, header + "q,p,1,x,1\n", "ValueError: .*'x'"),
        ({"num_queries": 2, "recall@k": {"1": 1}}, header + "q,p,1,1,1\n", "holds 1 queries, "),
    ):
        (tmp_path / "model-1-queries.csv").write_text(table)
        (tmp_path / "model-1-top_retrieved.json").write_text("[]")
        outputs.write_figures(tmp_path / "model-1", figures)
        with pytest.raises(ValueError, match=said):
            paired.load(tmp_path)


@pytest.mark.parametrize("name", ["eval.json", *paired.LISTS])
def test_files_that_do_not_belong_together_are_refused(tmp_path, name):
    for other in paired.LISTS:
        (tmp_path / f"model-1-{other}").write_text("")
    outputs.write_figures(tmp_path / "model-1", {"num_queries": 0})
    with open(tmp_path / f"model-1-{name}", "a") as file:
        file.write("," if name == "eval.json" else "\n")
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        paired.load(tmp_path)
    (tmp_path / f"model-1-{name}").unlink()
    with pytest.raises(ValueError):
        paired.load(tmp_path)


def test_an_evaluation_whose_writer_was_killed_arrives(tmp_path):
    with filesets.together(tmp_path / "model-1") as staged:
        for name in paired.LISTS:
            (tmp_path / f"{staged}-{name}").write_text("id,rank\n")
        outputs.write_figures(staged, {"num_queries": 0})
    names = sorted(os.listdir(tmp_path))
    ready = tmp_path / ".model-1.ready"
    files.claim(ready, filesets._KIND)
    os.rename(tmp_path / "model-1-eval.json", ready / "model-1-eval.json")
    with pytest.raises(ValueError, match="cannot be read"):  # figures without recall
        paired.load(tmp_path)
    assert sorted(os.listdir(tmp_path)) == names


@pytest.mark.parametrize(
    ("a", "b", "names"),
    [
        ("runs/exp-a/analysis/model-9-eval.json", "runs/exp-b/analysis/model-3-eval.json",
         ("exp-a", "exp-b")),
        ("exp/analysis/model-9-eval.json", "exp/analysis/model-12-eval.json",
         ("exp model-9", "exp model-12")),
        ("s0/exp/analysis/model-9-eval.json", "s1/exp/analysis/model-9-eval.json",
         ("exp s0", "exp s1")),
        ("out/old/embeddings-eval.json", "out/new_on_old/embeddings-eval.json",
         ("old", "new_on_old")),
        ("exp/analysis/m-1-eval.json", "exp/analysis/m-1-eval.json", ("A", "B")),
    ],
)  # fmt: skip
def test_evaluations_are_named_by_what_differs(a, b, names):
    assert paired.names_of(a, b) == names
