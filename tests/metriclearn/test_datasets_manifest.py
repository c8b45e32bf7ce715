"""The CSV manifest: what it reads, and that every fault is named with file and line."""

import pytest
from PIL import Image

from metriclearn.datasets import manifest

FILES = ("a.jpg", "b.png", "sub/c.jpg", "d.jpeg", "e.jpg", "f.jpg")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in FILES:
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    return tmp_path


def write(folder, text):
    path = folder / "manifest.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_all_columns(folder):
    path = write(
        folder,
        "\ufeffpath,label,category,split,role,domain,x1,y1,x2,y2,colour\n"
        'a.jpg,"shoe, red",shoes,train,train,shop,0,1,3,4,red\n'
        "\n"
        "b.png,hat,hats,test,query,consumer,,,,,blue\n"
        "sub/c.jpg,hat,hats,catalogue,catalogue,shop,1,1,2,2,\n",
    )
    table = manifest.load(path)
    assert table.ids.tolist() == ["a.jpg", "b.png", "sub/c.jpg"]
    assert table.paths[2] == str(folder / "sub" / "c.jpg")
    assert table.products.tolist() == ["shoe, red", "hat", "hat"]
    assert table.categories.tolist() == ["shoes", "hats", "hats"]
    assert table.splits.tolist() == ["train", "test", "catalogue"]
    assert table.roles.tolist() == ["train", "query", "catalogue"]
    assert table.domains.tolist() == ["shop", "consumer", "shop"]
    assert table.boxes.tolist() == [[0, 1, 3, 4], [0, 0, 0, 0], [1, 1, 2, 2]]
    assert table.column("colour").tolist() == ["red", "blue", ""]


def test_two_columns_are_enough_and_split_by_product(folder):
    rows = [f"{name},p{i % 3}" for i, name in enumerate(FILES)]
    table = manifest.load(write(folder, "path,label\n" + "\n".join(rows) + "\n"))
    shuffled = manifest.load(write(folder, "path,label\n" + "\n".join(rows[::-1]) + "\n"))
    of = dict(zip(table.products, table.splits, strict=True))
    assert sorted(of.values()) == ["test", "train", "val"]
    assert of == dict(zip(shuffled.products, shuffled.splits, strict=True))
    assert set(table.roles) == {""} and table.boxes is None


def test_root_and_catalogue_without_split(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("lists")
    text = "path,label,role\na.jpg,p,\nb.png,q,\nd.jpeg,r,\ne.jpg,p,catalogue\n"
    table = manifest.load(write(elsewhere, text), root=folder)
    assert table.splits[3] == "catalogue" and set(table.splits[:3]) == {"train", "val", "test"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the manifest is empty"),
        ("path,label\n", "has a header but no row"),
        ("path,lable\na.jpg,x\n", ":1: no column 'label' .did you mean 'lable'"),
        ("path,label,label\n", ":1: the column 'label' occurs twice"),
        ("path,label,\n", ":1: a column has no name"),
        ("path,label,catagory\na.jpg,x,y\n", ":1: unknown column 'catagory' .* 'category'"),
        ("path,label,x1,y1\n", ":1: a box needs all four"),
        ("path,label\na.jpg\n", ":2: 1 cells, the header has 2"),
        ("path,label\na.jpg,x,y\n", ":2: 3 cells"),
        ("path,label\na.jpg,x\n\nb.png, \n", ":4: the label is empty"),
        ("path,label\n,x\n", ":2: the path is empty"),
        ('path,label\n"a\nb\x1b.jpg",x\n', r":2: no such file: .*a\\nb\\x1b\.jpg"),
        ("path,label\nnone.jpg,x\n", ":2: no such file: .*none.jpg"),
        ("path,label\nsub,x\n", ":2: sub is not an image"),
        ("path,label\na.jpg,x\nsub/../a.jpg,y\n", ":3: .* already occurs on line 2"),
        ("path,label,split\na.jpg,x,tran\n", ":2: split 'tran' .*did you mean 'train'"),
        ("path,label,split\na.jpg,x,\n", ":2: the split is empty"),
        ("path,label,role\na.jpg,x,gallery\n", ":2: role 'gallery' is not one of"),
        ("path,label,x1,y1,x2,y2\na.jpg,x,1,1,one,4\n", ":2: the box .* four whole numbers"),
        ("path,label,x1,y1,x2,y2\na.jpg,x,3,1,3,4\n", ":2: the box 3,1,3,4 must have"),
        ('path,label\na.jpg,"x\nb.png,y\n', ":2: not valid CSV"),
        ("path,label\na.jpg,x\n", "1 product cannot be split"),
    ],
)
def test_faults_name_file_and_line(folder, text, message):
    path = write(folder, text)
    with pytest.raises(ValueError, match=message) as error:
        manifest.load(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value).rstrip()


def test_unreadable_manifests(folder):
    with pytest.raises(ValueError, match="cannot read the manifest: No such file"):
        manifest.load(folder / "none.csv")
    path = write(folder, "")
    path.write_bytes("path,label\na.jpg,caf\xe9\n".encode("latin-1"))
    with pytest.raises(ValueError, match="not UTF-8"):
        manifest.load(path)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_separators_are_recognized(folder, separator):
    rows = [("path", "label", "category"), ("a.jpg", '"x,y;z"', " k "), ("b.png", "w", "")]
    text = "\n".join(separator.join(row) for row in rows) + "\n"
    table = manifest.load(write(folder, text), fractions=None)
    assert table.products.tolist() == ["x,y;z", "w"] and table.categories.tolist() == ["k", ""]
    assert set(table.splits) == {""}


def test_rows_and_cells_are_read_alike_however_they_were_written(folder):
    text = 'path,label\r\n ./a.jpg , x \r\n"b.png","y"\r\n , \r\n\r\n'
    table = manifest.load(write(folder, text), fractions=None)
    assert table.ids.tolist() == ["a.jpg", "b.png"] and table.products.tolist() == ["x", "y"]


def test_foreign_columns_are_mapped(folder):
    path = write(folder, "file;sku;label\na.jpg;p1;Red shoe\nb.png;p2;Hat\n")
    table = manifest.load(path, fractions=None, columns="path=file,label=sku")
    assert table.products.tolist() == ["p1", "p2"] and table.ids.tolist() == ["a.jpg", "b.png"]
    assert table.column("original label").tolist() == ["Red shoe", "Hat"]
    with pytest.raises(ValueError, match="no column 'fil' .did you mean 'file'"):
        manifest.load(path, columns={"path": "fil"})
    with pytest.raises(ValueError, match="columns: 'lable' is not one of .*did you mean 'label'"):
        manifest.load(path, columns="lable=sku")


def test_text_after_a_quote_is_an_error(folder):
    with pytest.raises(ValueError, match=":2: not valid CSV"):
        manifest.load(write(folder, 'path,label\n"a.jpg"x,y\n'))
