"""Requests made up from the API's own description: no 5xx, and answers as described.

`PROTOTRAIN_FUZZ=10000 pytest tests/retrieval/serve/test_fuzz.py` sends about so many; 300 without.
"""

import os

import httpx
import hypothesis
import psutil
import pytest

COUNT = int(os.environ.get("PROTOTRAIN_FUZZ", "300"))


@pytest.fixture(scope="module")
def described(serving):
    schemathesis = pytest.importorskip("schemathesis", reason="pip install '.[test]'")
    return schemathesis.openapi.from_url(f"{serving[0]}/openapi.json")


def test_no_request_fails_and_memory_stays(described, serving):
    from schemathesis import GenerationMode, checks

    operations = [one.ok() for one in described.get_all_operations()]
    assert len(operations) > 8
    each, sent, refused = max(1, COUNT // len(operations) // 2), 0, set()
    before = psutil.Process().memory_info().rss
    for operation in operations:
        for mode in GenerationMode:

            @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
            @hypothesis.settings(
                max_examples=each,
                deadline=None,
                derandomize=True,
                suppress_health_check=list(hypothesis.HealthCheck),
                phases=[hypothesis.Phase.generate],
            )
            def send(case):
                nonlocal sent
                try:
                    answer = case.call(base_url=serving[0])
                except ValueError:  # a header or an address that the client cannot send
                    return
                sent += 1
                refused.add(answer.status_code)
                case.validate_response(
                    answer,
                    checks=[
                        checks.not_a_server_error,
                        checks.response_schema_conformance,
                        checks.content_type_conformance,
                    ],
                )

            try:
                send()
            except hypothesis.errors.Unsatisfiable:  # nothing to do wrong without parameters
                assert mode is GenerationMode.NEGATIVE and operation.method == "get"
    assert sent > COUNT // 2 and {200, 422} <= refused
    assert psutil.Process().memory_info().rss - before < 150 * 2**20
    assert httpx.get(f"{serving[0]}/readyz").status_code == 200
