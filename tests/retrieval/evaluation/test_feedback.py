"""Judgments of live searches and the recall that they give."""

import threading

import pytest
from stores import run_program

from retrieval import eval as evaluator
from retrieval.evaluation import feedback


def vote(query, id, good, rank, model="m"):
    return {"query": query, "id": id, "good": good, "rank": rank, "model": model, "score": 0.5}


def test_what_was_appended_is_read_and_the_last_judgment_counts(tmp_path):
    path = tmp_path / "f.jsonl"
    for one in (
        vote("q", "a", True, 1),
        vote("q", "b\n\u2028é", True, 2),
        vote("q", "a", False, 1),
    ):
        feedback.append(path, one)
    first, second = feedback.read(path)
    assert (first["id"], first["good"]) == ("a", False) and second["id"] == "b\n\u2028é"
    assert "time" in first and path.stat().st_mode & 0o077 == 0


def test_threads_append_whole_lines(tmp_path):
    def work(name):
        for n in range(50):
            feedback.append(tmp_path / "f", vote(name * 200, str(n), True, 1))

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(feedback.read(tmp_path / "f")) == 200


def test_recall_by_hand():
    judged = [
        vote("one", "a", True, 1), vote("one", "b", False, 2),
        vote("two", "c", False, 1), vote("two", "d", True, 3),
        vote("three", "e", False, 1),
        vote("four", "f", True, 7),
        vote("one", "a", False, 1, "other"),
    ]  # fmt: skip
    mine, other = feedback.figures(judged, (1, 5, 10))
    assert mine["model"] == "m" and (mine["judgments"], mine["good"], mine["queries"]) == (6, 3, 4)
    assert [mine[f"recall@{k}"] for k in (1, 5, 10)] == [0.25, 0.5, 0.75]
    low, high = mine["interval95"]["recall@5"]
    assert 0 <= low <= 0.5 <= high <= 1
    assert other["recall@10"] == 0 and other["queries"] == 1


def test_the_program_prints_it(tmp_path, capsys):
    for rank in (1, 3):
        feedback.append(tmp_path / "f", vote(f"q{rank}", "a", True, rank))
    assert run_program(evaluator, f"--feedback={tmp_path}/f", "--ks=1,5") == 0
    out = capsys.readouterr().out
    assert "0.500" in out and "1.000" in out and "2 judgments of 2 queries" in out
    assert run_program(evaluator, f"--feedback={tmp_path}/none") == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "line", ["", "x", "[]", "{}", '{"query": "q", "id": "a", "good": 1, "rank": 1}',
             '{"query": "q", "id": "a", "good": true, "rank": 0}', "[" * 100_000]
)  # fmt: skip
def test_a_line_that_is_no_judgment_is_named(tmp_path, line):
    feedback.append(tmp_path / "f", vote("q", "a", True, 1))
    with open(tmp_path / "f", "a") as file:
        file.write(f"{line}\n")
    with pytest.raises(ValueError, match="line 2"):
        feedback.read(tmp_path / "f")


def test_an_empty_or_foreign_file_is_named(tmp_path):
    (tmp_path / "f").write_bytes(b"")
    with pytest.raises(ValueError, match="no judgments"):
        feedback.read(tmp_path / "f")
    (tmp_path / "f").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="line 1|text"):
        feedback.read(tmp_path / "f")
