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
