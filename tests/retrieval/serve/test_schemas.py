"""Errors as RFC 9457 problem JSON."""

import json

from retrieval.serve import schemas


def test_a_problem_says_what_and_when_to_try_again():
    answer = schemas.problem(schemas.Refused(503, "queue", "too many", retry_after=2))
    assert json.loads(answer.body) == {
        "title": "Service Unavailable",
        "status": 503,
        "detail": "too many",
    }
    assert answer.headers["retry-after"] == "2" and answer.media_type == schemas.PROBLEM
    assert "retry-after" not in schemas.problem(schemas.Refused(404, "id", "none")).headers


def test_any_text_can_be_part_of_a_problem():
    answer = schemas.problem(schemas.Refused(404, "id", "no \ud800 <b>\n"))
    assert json.loads(answer.body)["detail"] == "no \ud800 <b>\n" and b"\n" not in answer.body
