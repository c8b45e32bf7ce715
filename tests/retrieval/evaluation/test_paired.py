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
