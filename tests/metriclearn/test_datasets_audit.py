"""The duplicate audit: what it finds, what it does not, and its report."""

import re
import shutil
import tracemalloc

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageEnhance

from metriclearn.datasets import ProductTable, audit, manifest


def photo(seed):
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (7, 7, 3), np.uint8))
    return small.resize((120, 90), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Ten different photos, an exact copy, three near copies, two flat images, a link."""
    folder = tmp_path_factory.mktemp("photos")
    rows = ["path,label,split,role"]
    exif = Image.Exif()
    for i in range(10):
        exif[ExifTags.Base.Orientation] = 6 if i == 9 else 1
        photo(i).save(folder / f"{i}.jpg", quality=95, exif=exif)
        rows.append(f"{i}.jpg,p{i},train,train")
    shutil.copy(folder / "0.jpg", folder / "copy.jpg")
    photo(1).save(folder / "recompressed.jpg", quality=50)
    photo(2).resize((60, 45)).save(folder / "smaller.png")
    ImageEnhance.Brightness(photo(3)).enhance(0.85).save(folder / "<b>darker.jpg", quality=95)
    Image.new("RGB", (40, 40), (200, 200, 200)).save(folder / "grey1.png")
    Image.new("RGB", (50, 40), (90, 90, 90)).save(folder / "grey2.png")
    (folder / "link.jpg").symlink_to(folder / "4.jpg")
    rows += [
        "copy.jpg,p0,test,query",
        "recompressed.jpg,other,train,train",
        "smaller.png,p2,test,catalogue",
        '<b>darker.jpg,"<script>alert(1)</script>",test,query',
        "grey1.png,g1,train,train",
        "grey2.png,g2,train,train",
        "link.jpg,p4,val,",
    ]
    path = folder / "manifest.csv"
    path.write_text("\n".join(rows) + "\n")
    return manifest.load(path)


def names(table, groups):
    return {tuple(sorted(table.ids[list(group.rows)].tolist())): group for group in groups}


def test_finds_exact_and_near_duplicates_and_nothing_else(table):
    found = names(table, audit.find_duplicates(table))
    assert set(found) == {
        ("0.jpg", "copy.jpg"),
        ("1.jpg", "recompressed.jpg"),
        ("2.jpg", "smaller.png"),
        ("3.jpg", "<b>darker.jpg"),
        ("4.jpg", "link.jpg"),
    }
    group = found["0.jpg", "copy.jpg"]
    assert group.exact and group.leaks and not group.conflicts
    assert group.parts == ("test query", "train")
    assert group.findings == ("test images are trained on",)
    group = found["1.jpg", "recompressed.jpg"]
    assert not group.exact and not group.leaks and group.products == ("other", "p1")
    assert found["2.jpg", "smaller.png"].parts == ("test catalogue", "train")
    assert found["2.jpg", "smaller.png"].findings == ("catalogue images are trained on",)
    exact = names(table, audit.find_duplicates(table, max_bits=-1))
    assert set(exact) == {("0.jpg", "copy.jpg"), ("4.jpg", "link.jpg")}


def test_worst_groups_come_first(table):
    groups = audit.find_duplicates(table)
    assert [g.leaks for g in groups] == [True] * 4 + [False]
    assert groups[0].conflicts


def test_summary_counts_what_parts_share(table):
    text = "\n".join(audit.summary(table, audit.find_duplicates(table)))
    assert "5 groups of duplicates (2 exact), 5 superfluous images" in text
    assert "  test catalogue + train: 1 (catalogue images are trained on)" in text
    assert "  test query + train: 2 (test images are trained on)" in text
    assert "  train + val: 1 (validation images are trained on)" in text
    assert "1 files are in the table with several ids" in text
    assert "1 products are in both test catalogue and train" in text
    assert audit.shared_products(table)["test query", "train"] == 1


def test_pairs_do_not_depend_on_the_blocks():
    pixels = np.random.default_rng(0).normal(120, 40, (30, 32, 32)).astype(np.float32)
    pixels[20:] = pixels[:10] + 1
    pairs = [
        sorted(map(tuple, np.concatenate([*audit.near_pairs(pixels, block=b)]).tolist()))
        for b in (4, 30)
    ]
    assert pairs[0] == pairs[1] == [(i, i + 20) for i in range(10)]


TRAIN, VAL = "images are trained on", "images are validated on"
TEST = "queries are in the catalogue"


@pytest.mark.parametrize(
    ("one", "other", "meaning"),
    [
        (("train", "train"), ("test", "query"), f"test {TRAIN}"),
        (("train", "query"), ("test", "query"), f"test {TRAIN}"),
        (("train", "catalogue"), ("test", ""), f"test {TRAIN}"),
        (("", "train"), ("test", ""), f"test {TRAIN}"),
        (("train", ""), ("val", ""), f"validation {TRAIN}"),
        (("train", ""), ("test", "catalogue"), f"catalogue {TRAIN}"),
        (("train", ""), ("catalogue", ""), f"catalogue {TRAIN}"),
        (("val", "query"), ("test", "query"), f"test {VAL}"),
        (("val", ""), ("test", "catalogue"), f"test {VAL}"),
        (("test", "query"), ("test", "catalogue"), TEST),
        (("test", "query"), ("catalogue", "catalogue"), TEST),
        (("test", ""), ("catalogue", ""), TEST),
        (("val", ""), ("val", "catalogue"), TEST),
        (("", "query"), ("", "catalogue"), TEST),
        (("train", ""), ("train", "query"), ""),
        (("test", "query"), ("test", "query"), ""),
        (("test", "catalogue"), ("catalogue", ""), ""),
        (("", ""), ("", ""), ""),
    ],
)
def test_every_pair_of_splits_and_roles_means_something(one, other, meaning):
    assert audit.finding(one, other) == audit.finding(other, one) == meaning
    images = np.zeros((2, 8, 8, 1), np.uint8)
    splits, roles = zip(one, other, strict=True)
    table = ProductTable(
        products=["a", "a"], ids=["x", "y"], splits=splits, roles=roles, images=images
    )
    (group,) = audit.find_duplicates(table)
    assert group.leaks == bool(meaning) and group.findings == ((meaning,) if meaning else ())


@pytest.mark.parametrize("change", (0, 1), ids=("identical", "nearly identical"))
def test_thousands_of_the_same_image_take_little_memory(change):
    rng = np.random.default_rng(0)
    images = np.repeat(rng.integers(1, 255, (1, 32, 32, 1), np.uint8), 2000, axis=0)
    images += (change * rng.integers(0, 2, images.shape)).astype(np.uint8)
    count = np.arange(2000)
    table = ProductTable(products=["a"] * 2000, ids=[str(i) for i in count], images=images)
    audit.find_duplicates(table.select([0, 1]))  # TensorFlow is loaded
    tracemalloc.start()
    (group,) = audit.find_duplicates(table)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert group.rows == tuple(count) and group.exact != bool(change)
    assert peak < 400 << 20


def test_hash_ignores_brightness_and_contrast():
    pixels = np.random.default_rng(0).normal(120, 40, (5, 32, 32))
    bits = audit.perceptual_hash(pixels)
    assert bits.shape == (5, 64) and set(np.unique(bits)) == {-1, 1}
    assert (audit.perceptual_hash(0.5 * pixels + 7)[:, 1:] == bits[:, 1:]).all()
    assert (audit.perceptual_hash(-pixels)[:, 1:] != bits[:, 1:]).mean() > 0.95


def test_pixels_in_memory():
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 1), np.uint8)
    images[3] = images[1]
    table = ProductTable(
        products=list("abcb"), ids=list("wxyz"), images=images, splits=["train"] * 3 + ["test"]
    )
    (group,) = audit.find_duplicates(table)
    assert group.rows == (1, 3) and group.exact and group.leaks
    assert "data:image/jpeg;base64," in audit.report(table, [group])


def test_command_writes_a_self_contained_escaped_report(table, tmp_path, capsys):
    source = table.paths[0].replace("0.jpg", "manifest.csv")
    target = tmp_path / "out.html"
    assert audit.main(["manifest", source, f"--report={target}"]) == 0
    assert "5 groups of duplicates" in capsys.readouterr().out
    page = target.read_text()
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page and "&lt;b&gt;darker" in page
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    assert len(sources) == 10 and all(s.startswith("data:image/jpeg;base64,") for s in sources)
    assert [p.name for p in tmp_path.iterdir()] == ["out.html"]


def test_faults_are_one_line(tmp_path, capsys):
    assert audit.main(["manifest", str(tmp_path / "none.csv")]) == 1
    assert audit.main(["foldr"]) == 1
    assert audit.main([]) == 1
    assert audit.main(["folder", "x", "--max_bit=3"]) == 1
    first, second, third, fourth = capsys.readouterr().err.splitlines()
    assert "none.csv: cannot read the manifest" in first and "did you mean 'folder'" in second
    assert "give a dataset and its folder" in third
    assert "max_bit" in fourth and "Did you mean: max_bits" in fourth


def test_help_lists_the_flags(capsys):
    assert audit.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert "manifest photos/manifest.csv" in out and "--report" in out and "--max_bits" in out


def test_copies_name_an_image_that_cannot_be_read_with_reason_and_remedy(tmp_path):
    paths = [tmp_path / f"{i}.jpg" for i in range(3)]
    for i, path in enumerate(paths):
        photo(i).save(path)
    paths[1].write_bytes(paths[1].read_bytes()[:900])
    table = ProductTable(products=["a"] * 3, paths=[str(path) for path in paths])
    with pytest.raises(ValueError, match=r"1\.jpg: .*truncated.*; repair it, or set") as caught:
        audit.copies_of(table)
    assert "\n" not in str(caught.value)
