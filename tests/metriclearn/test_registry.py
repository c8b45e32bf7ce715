import pytest

from metriclearn.registry import did_you_mean, resolve

TABLE = {"euclidean": 1, "cosine": 2}


def test_a_name_gives_its_entry_and_an_object_itself():
    assert resolve("cosine", TABLE, "distance") == 2
    assert resolve(len, TABLE, "distance") is len


def test_an_unknown_name_suggests_the_nearest():
    message = r"unknown distance 'cosin' \(did you mean 'cosine'\?\): use one of cosine, euclidean"
    with pytest.raises(ValueError, match=message):
        resolve("cosin", TABLE, "distance")
    with pytest.raises(ValueError, match="unknown distance 'x': use one of"):
        resolve("x", TABLE, "distance")


def test_hints_only_where_something_is_near():
    assert did_you_mean("consine", TABLE) == " (did you mean 'cosine'?)"
    assert did_you_mean("consine", TABLE, cutoff=0.99) == ""
    assert did_you_mean(12, [13, "ab"]) == ""
