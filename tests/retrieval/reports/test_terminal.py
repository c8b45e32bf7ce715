"""Tables on the terminal."""

import dataclasses

from retrieval.evaluation.backward import Rates
from retrieval.evaluation.figures import Source
from retrieval.evaluation.index_loss import IndexLoss
from retrieval.evaluation.paired import Comparison, Difference
from retrieval.evaluation.rerank import Reranked
from retrieval.evaluation.verdict import Verdict
from retrieval.reports import terminal


def rows(printed):
    """{first cell: other cells} of the tables in what was printed."""
    cells = [
        [cell.strip() for cell in line.strip("│┃").replace("┃", "│").split("│")]
        for line in printed.splitlines()
        if line[0:1] in "│┃" and line
    ]
    return {first: rest for first, *rest in cells}


def test_an_evaluation(circle, stored, capsys):
    from retrieval.evaluation.figures import evaluate

    result = stored(evaluate(*circle))
    recall = dict.fromkeys(result.figures.recall, 0.25)
    index = IndexLoss(
        factory="Flat", bytes_per_vector=8.0, tuned={}, recall=recall,
        lost={k: rate - 0.25 for k, rate in result.figures.recall.items()}, agreement=0.5, depth=4,
        ms_per_query=0.125, exact_ms_per_query=2.0, exact_bytes_per_vector=64,
    )  # fmt: skip
    gained = {
        "aqe": Reranked(recall=recall, map_at_r=0.75, seconds=2.0, gain=0.02, seconds_per_point=1),
        "k_reciprocal": Reranked(recall=recall, seconds=3.0, gain=-0.5, seconds_per_point=1),
    }
    source = Source(checkpoint="c", step=7, model="m")
    figures = dataclasses.replace(result.figures, source=source, index=index, rerank=gained)
    complete = dataclasses.replace(result, figures=figures)
    terminal.print_evaluation({"mine": complete, "raw pixels": result}, "out/e")
    printed = capsys.readouterr().out
    table = rows(printed)
    assert table[""] == ["recall@1", "recall@5", "recall@10", "recall@20", "MAP@R"]
    assert table["mine"] == table["raw pixels"]
    assert table["mine"] == ["0.500", "1.000", "1.000", "1.000", f"{result.figures.map_at_r:.3f}"]
    assert table["index Flat"] == ["0.250"] * 4 + [""]
    assert table["with aqe"] == ["0.250"] * 4 + ["0.750"]
    assert table["with k_reciprocal"] == ["0.250"] * 4 + [""]
    low, high = figures.intervals["map@r"]
    assert table["95% interval"][-1] == f"{low:.3f}-{high:.3f}"
    # Each interval is below its own row, not below the last baseline's.
    lines = [line for line in printed.splitlines() if line.startswith("│")]
    assert "mine" in lines[0] and "95%" in lines[1]
    assert "raw pixels" in lines[2] and "95%" in lines[3]
    assert "Retrieval at step 7" in printed and "6 queries against 4 catalogue items" in printed
    assert "finds 50.0% of the 4 nearest items and loses 0.250 of recall@1" in printed
    assert "k_reciprocal: 3 s for -50.00 points of recall@1" in printed
    assert "Wrote out/e-report.html" in printed


def test_a_comparison(capsys):
    found = Difference(a=0.25, b=0.5, difference=0.25, interval=(0.125, 0.375))
    result = Comparison(
        verdict="[b] is better.", outcome="better", name_a="[a]", name_b="[b]",
        a="a", b="b", num_queries=9, num_products=7, only_in_a=0, only_in_b=0,
        unlike="Other catalogues.", difference={"recall@1": found, "map@r": found},
        won=["q", "r"], lost=["s"],
        backward={"recall@1": Rates(old=0.5, new_on_old=0.4, new=0.5, share_of_gain=float("nan"))},
    )  # fmt: skip
    terminal.print_comparison(result)
    printed = capsys.readouterr()
    table = rows(printed.out)
    assert printed.out.startswith("[b] is better.\n") and "[b] against [a]" in printed.out
    assert table["MAP@R"] == ["0.250", "0.500", "+0.250", "+0.125 to +0.375"]
    assert table["recall@1"] == ["0.500", "0.400", "0.500", "no gain"]  # the second table's
    assert "9 queries of 7 products" in printed.out
    assert "right only in [b] for 2, only in [a] for 1." in printed.out
    assert printed.err == "warning: Other catalogues.\n"


def test_the_verdict_is_the_first_line_and_its_warning_red(circle, stored, capsys, monkeypatch):
    from retrieval.evaluation.figures import evaluate

    result = stored(evaluate(*circle))
    facts = {"outcome": "worse", "rate": 0.1, "num_queries": 6, "num_products": 3}
    verdict = Verdict(sentence="Finds [3] of " + "x" * 200, warning="Worse than pixels.", **facts)
    figures = dataclasses.replace(result.figures, verdict=verdict)
    for colored in (False, True):
        if colored:
            monkeypatch.setenv("FORCE_COLOR", "1")
        terminal.print_evaluation({"m": dataclasses.replace(result, figures=figures)}, "e")
        first, second = capsys.readouterr().out.splitlines()[:2]
        if colored:
            assert second == "\x1b[1;31mWorse than pixels.\x1b[0m" and "\x1b[31m" in first
        else:
            assert (first, second) == (verdict.sentence, "Worse than pixels.")
