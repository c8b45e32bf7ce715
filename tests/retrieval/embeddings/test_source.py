"""The flags that `embed` and `build` share; their programs' tests cover what they do."""

import types

import pytest
from absl import flags

from metriclearn.datasets import ProductTable
from retrieval.embeddings import source


@pytest.mark.parametrize(
    ("given", "size"),
    [("", None), ("--image_size=64", (64, 64)), ("--image_size=64,32", (64, 32))],
)
def test_the_image_size_is_one_or_two_numbers(given, size):
    values = flags.FlagValues()
    source.define_flags(values)
    values(["program", *filter(None, [given])])
    assert source._size(values.image_size) == size


@pytest.mark.parametrize("given", ["0", "a", "1,2,3"])
def test_another_image_size_is_refused(given):
    with pytest.raises(ValueError, match=f"--image_size={given}: takes one or two whole numbers"):
        source._size(given.split(","))


def test_the_catalogue_of_a_model_is_that_of_its_table():
    assert source.catalogue_of(types.SimpleNamespace()) is None
    rows = ProductTable(products=list("abc"), ids=list("123"), roles=["query", "", ""])
    model = types.SimpleNamespace(table=lambda: rows)
    assert source.catalogue_of(model).ids.tolist() == ["2", "3"]
    assert source.catalogue_of(model, "product=a").ids.tolist() == ["1"]
    with pytest.raises(ValueError, match="--where=product=x: product=x: no row has this product"):
        source.catalogue_of(model, "product=x")
