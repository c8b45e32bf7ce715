"""ProductTable: checked columns, selection, splits by product, queries and catalogue."""

import numpy as np
import pytest

from metriclearn.datasets import (
    ProductTable,
    parse_conditions,
    queries_and_catalogue,
    select_where,
    split_by_product,
    whole_catalogue,
)


def table(**columns):
    base = {"products": ["b", "a", "b", "c"], "ids": ["1", "2", "3", "4"]}
    return ProductTable(**(base | columns))


def test_columns_default_and_labels_are_ranks():
    t = table(extra={"face": list("wxyz")})
    assert t.paths.tolist() == [""] * 4
    assert t.labels.tolist() == [1, 0, 1, 2] and t.labels.dtype == np.int64
    assert t.column("face").tolist() == list("wxyz")
    assert ProductTable(products=["a"], paths=["x.jpg"]).ids.tolist() == ["x.jpg"]


def test_select_and_where_keep_all_columns_in_step():
    t = table(
        splits=["train", "val", "test", "test"],
        boxes=np.arange(16).reshape(4, 4),
        images=np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1),
        extra={"face": list("wxyz")},
    )
    picked = t.select([3, 0])
    assert picked.ids.tolist() == ["4", "1"]
    assert picked.boxes[0].tolist() == [12, 13, 14, 15]
    assert picked.images.ravel().tolist() == [3, 0]
    assert t.where(split=("train", "test"), face=["w", "z"]).ids.tolist() == ["1", "4"]
    assert len(t.where(product="nothing")) == 0
    assert len(t.select(np.zeros(4, bool))) == 0


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"ids": ["1", "2", "1", "4"]}, "the id '1' occurs twice .rows 0 and 2."),
        ({"products": ["a", "", "b", "c"]}, "row 1 .'2'.: the product is empty"),
        ({"splits": ["train", "tset", "val", ""]}, "'tset' is not one of .*did you mean 'test'"),
        ({"roles": ["querry", "", "", ""]}, "did you mean 'query'"),
        ({"categories": ["x"]}, "'categories' has shape"),
        ({"boxes": np.zeros((4, 3))}, "boxes must be"),
        ({"images": np.zeros((4, 2, 2, 1))}, "images must be uint8"),
    ],
)
def test_bad_columns_are_named(columns, message):
    with pytest.raises(ValueError, match=message):
        table(**columns)


def test_unknown_column_suggests_the_near_one():
    with pytest.raises(ValueError, match="no column 'splits_'.*did you mean 'split'"):
        table().where(splits_="test")


def test_split_by_product_depends_on_names_alone():
    products = np.asarray([f"p{i}" for i in range(50)] * 3)
    split = split_by_product(products)
    order = np.random.default_rng(0).permutation(150)
    assert (split_by_product(products[order]) == split[order]).all()
    assert {s: len(set(products[split == s])) for s in ("train", "val", "test")} == {
        "train": 35,
        "val": 5,
        "test": 10,
    }
    assert (split_by_product(products, salt="other") != split).any()
    assert sorted(split_by_product(["a", "b", "c"])) == ["test", "train", "val"]
    with pytest.raises(ValueError, match="2 products cannot be split"):
        split_by_product(["a", "b"])


def test_queries_and_catalogue():
    roles = ["query", "catalogue", "", "train"]
    t = table(splits=["test", "catalogue", "val", "train"], roles=roles)
    queries, catalogue = queries_and_catalogue(t, "test")
    assert (queries.ids.tolist(), catalogue.ids.tolist()) == (["1"], ["2"])
    queries, catalogue = queries_and_catalogue(t, "val")  # no role: all of the split
    assert (queries.ids.tolist(), catalogue.ids.tolist()) == (["3"], ["2"])
    alone = table(splits=["test"] * 4)
    queries, catalogue = queries_and_catalogue(alone)
    assert queries.ids.tolist() == catalogue.ids.tolist() == ["1", "2", "3", "4"]
    with pytest.raises(ValueError, match="no image in split 'train'"):
        queries_and_catalogue(alone, "train")


def test_columns_are_text_however_they_are_given():
    arrays = np.array(["b", "a"]), np.array(["b", "a"], object), np.array([b"b", b"a"])
    for products in (["b", "a"], ("b", "a"), [b"b", b"a"], *arrays, arrays[0][:, None]):
        t = ProductTable(products=products, ids=[7, 8], categories=np.array([[1], [1]]))
        assert t.products.tolist() == ["b", "a"] and t.ids.tolist() == ["7", "8"]
        assert t.categories.tolist() == ["1", "1"] and t.labels.tolist() == [1, 0]
        assert t.categories[0] is t.categories[1] and type(t.products[0]) is str
    for column in (np.zeros((2, 2), "U1"), [["x", "y"], ["z", "w"]], [[["x"]], [["y"]]]):
        with pytest.raises(ValueError, match="column 'categories' has shape"):
            ProductTable(products=["a", "b"], ids=["1", "2"], categories=column)


def test_selected_rows_are_checked():
    assert table().select([-1]).ids.tolist() == ["4"]
    with pytest.raises(ValueError, match="the id '2' occurs twice"):
        table().select([0, 1, 1])
    with pytest.raises(IndexError):
        table().select([4])
    t = ProductTable(products=["a", "b"], paths=["x", "y"])
    picked = t.select([1])
    assert picked.ids is picked.paths and picked.ids.tolist() == ["y"]
    assert t.where(path="y", product=["b", "c"]).ids.tolist() == ["y"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("role=query", {"role": ["query"]}),
        ("role=query,split=val|test", {"role": ["query"], "split": ["val", "test"]}),
        ("category=Fruit, fresh|Veg, role=x", {"category": ["Fruit, fresh", "Veg"], "role": ["x"]}),
        ("product=a\\,b=c,role=", {"product": ["a,b=c"], "role": [""]}),
        ("product=a\\|b\\\\", {"product": ["a|b\\"]}),
    ],
)
def test_conditions(text, expected):
    assert parse_conditions(text) == expected


def test_conditions_select_rows_and_name_what_is_wrong():
    t = table(categories=["Fruit, fresh", "Veg", "Veg", ""])
    assert select_where(t, "category=Fruit, fresh|Veg,product=b").ids.tolist() == ["1", "3"]
    assert select_where(t, "") is t
    for text, message in (
        ("category=Vegg", "category=Vegg: no row has this category .did you mean 'Veg'"),
        ("categry=Veg", "no column 'categry'.*did you mean 'category'"),
        ("Veg", "'Veg' is not column=value"),
        ("category=Veg,category=x", "'category' has two conditions"),
    ):
        with pytest.raises(ValueError, match=message):
            select_where(t, text)


def test_the_whole_catalogue_is_of_all_splits():
    products, splits = list("abcd"), ["train", "val", "test", "catalogue"]
    t = ProductTable(products=products, ids=products, splits=splits, roles=["catalogue", *[""] * 3])
    assert whole_catalogue(t).ids.tolist() == ["a", "d"]
    t = ProductTable(products=products, ids=products, roles=["query", "train", "", "query"])
    assert whole_catalogue(t).ids.tolist() == ["b", "c"]
    with pytest.raises(ValueError, match="every image has the role query"):
        whole_catalogue(t.where(role="query"))


def test_a_digest_tells_tables_apart_but_not_where_their_files_are():
    same = table(paths=["x", "y", "z", "w"]).digest()
    assert same == table().digest() and len(same) == 16
    others = [table(products=["b", "a", "b", "b"]), table(ids=["1", "2", "4", "3"])]
    others += [table(splits=["train", "train", "test", "test"]), table().select([0, 1, 2])]
    assert len({same, *(other.digest() for other in others)}) == 5
