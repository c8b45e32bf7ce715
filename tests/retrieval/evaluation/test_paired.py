"""Reading and comparing evaluations that were written."""

import pytest

from retrieval.evaluation import paired


def test_what_cannot_be_compared_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"holds no …-eval\.json"):
        paired.load(tmp_path)
    with pytest.raises(ValueError, match="there is no such file or folder"):
        paired.load(tmp_path / "none")
    header = "id,product,relevant,rank,average_precision\n"
    for figures, table, said in (
        ("{", header, r"model-1-eval\.json: cannot be read"),
        ("{}", header, r"model-1-eval\.json: cannot be read: KeyError: 'num_queries'"),
        ('{"num_queries": 1, "recall@k": {}}', "id,rnk\nq,1\n", "KeyError: 'rank'"),
        ('{"num_queries": 1, "recall@k": {"1": 1}}', header + "q,p,1,x,1\n", "ValueError: .*'x'"),
        ('{"num_queries": 2, "recall@k": {"1": 1}}', header + "q,p,1,1,1\n", "holds 1 queries, "),
    ):
        (tmp_path / "model-1-eval.json").write_text(figures)
        (tmp_path / "model-1-queries.csv").write_text(table)
        with pytest.raises(ValueError, match=said):
            paired.load(tmp_path)


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
