"""What TF_CONFIG says, and how it is refused."""

import json

import pytest

from trainer import tf_config


def test_tf_config_in_the_forms_that_schedulers_write():
    jobs = {"chief": ["c:1"], "worker": ["a:1", "b:1"]}
    task = {"type": "worker", "index": "1"}  # Kubeflow writes numbers, some wrappers text
    text = json.dumps({"cluster": jobs, "task": task, "environment": "cloud"})
    assert tf_config.read(text) == (["c:1", "a:1", "b:1"], 2)
    assert tf_config.read(text_of(["a:1"])) == ([], 0)
    assert tf_config.read("") == tf_config.read("{}") == ([], 0)


def text_of(cluster=("a:1", "b:1"), kind="worker", index=0, **jobs):
    jobs = {"worker": cluster, **jobs} if cluster else jobs
    return json.dumps({"cluster": jobs, "task": {"type": kind, "index": index}})


MALFORMED = [
    ("{", "Expecting property name"),
    ("[]", "it is not a JSON object"),
    ('{"cluster": {"worker": ["a:1", "b:1"]}}', "'task' must have a type and an index"),
    ('{"cluster": ["a:1"], "task": 1}', "must give each job a list of addresses"),
    (text_of("a:1"), "must give each job a list of addresses"),
    (text_of(["a:1", "b"]), "'b' is not host:port"),
    (text_of(["a:1", 5]), "5 is not host:port"),
    (text_of(["a:1", "http://b:1"]), "'http://b:1' is not host:port"),
    (text_of(["a:1", "b:99999"]), "'b:99999' is not host:port"),
    (text_of(["a:1", "a:1"]), "have the same address"),
    (text_of(index=2), "it has no worker 2"),
    (text_of(index=1.5), "it has no worker 1.5"),
    (text_of(kind="chief"), "it has no chief 0"),
    (text_of(chief=["c:1", "d:1"]), "it has two chiefs"),
    (text_of(ps=["c:1"]), "the job 'ps' is not supported"),
]


@pytest.mark.parametrize("text, message", MALFORMED)
def test_what_is_malformed_is_said_in_words(text, message):
    with pytest.raises(ValueError, match=message):
        tf_config.read(text)
    assert tf_config.read(tf_config.EXAMPLE) == (["a:2222", "b:2222"], 0)
