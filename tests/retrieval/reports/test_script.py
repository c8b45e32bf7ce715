"""What a reader can do with the report, in a browser."""

import dataclasses
import json
import re

import numpy as np
import pytest
from PIL import Image

from retrieval.embeddings import store
from retrieval.evaluation import suite
from retrieval.evaluation.figures import Files
from retrieval.reports import outputs, page

PRODUCTS = 9


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """The report of photos of awkward products in two categories; two have no answer."""
    folder = tmp_path_factory.mktemp("shop")
    random = np.random.default_rng(3)
    truth = random.normal(size=(PRODUCTS, 6))

    def items(name, labels, noise):
        ids = np.array([f"<b>{name}{n}</b>.png" for n in range(len(labels))])
        paths = np.array([str(folder / f"{name}{n}.png") for n in range(len(labels))])
        for path, label in zip(paths, labels, strict=True):
            Image.new("RGB", (60, 30), (25 * int(label), 90, 200)).save(path)
        products = np.array([f"p{label} & <i>" for label in labels])
        categories = np.where(labels % 2, "odd", "even")
        points = truth[labels] + noise * random.normal(size=(len(labels), 6))
        images = np.full((len(labels), 4, 4, 3), 1, np.uint8) * (25 * labels)[:, None, None, None]
        features = points + random.normal(size=points.shape)
        return store.Embedded(
            points.astype(np.float32), ids, products, categories, images.astype(np.uint8), paths,
            features=features.astype(np.float32),
        )  # fmt: skip

    queries = items("q", np.arange(60) % PRODUCTS, 0.9)
    queries.products[:2] = "nowhere"
    catalogue = items("c", np.repeat(np.arange(PRODUCTS), 2), 0.1)
    results = suite.evaluate(queries, catalogue, title="this model", with_baselines=True)
    results["this model"] = _stored(results["this model"])

    def images(which, ids):
        return page.images_at(page.own_files(queries if which == "queries" else catalogue, ids))

    outputs.write(str(folder / "e"), results, queries, catalogue, images)
    return folder / "e-report.html", results["this model"].figures


def _stored(result):
    figures = dataclasses.replace(
        result.figures, source=Files(queries="q", catalogue="c", made_by=[])
    )
    return dataclasses.replace(result, figures=figures)


LARGE = """
const first = one('#found .zoom');
const opener = one('#worst-misses .zoom') || first;
opener.focus(); opener.click();
const box = one('dialog');
const texts = () => all('.panel b', box).map(e => e.textContent);
seen.open = box.open; seen.modal = box.matches(':modal'); seen.label = box.ariaLabel;
seen.inside = box.contains(page.activeElement);
seen.first = texts(); seen.told = one('.told', box).textContent;
press('ArrowRight'); seen.second = texts(); seen.after = one('.told', box).textContent;
seen.id = all('.panel .id', box).map(e => e.textContent);
press('ArrowLeft'); seen.back = one('.told', box).textContent;
seen.stops = [];
for (let n = 0; n < 4; n++) { press('Tab'); seen.stops.push(page.activeElement.ariaLabel); }
press('Tab', {shiftKey: true}); seen.shift = page.activeElement.ariaLabel;
const picture = one('.panel img', box);
seen.fit = view.getComputedStyle(picture).objectFit;
seen.natural = [picture.naturalWidth, picture.naturalHeight];
seen.boxWide = box.getBoundingClientRect().right;
press('Escape'); await wait();
seen.closed = !box.open; seen.focus = page.activeElement === opener;
seen.images = page.images.length && [...page.images].every(i => i.complete && i.naturalWidth > 0);
const heads = all('table.rates thead th');
seen.heads = heads.map(h => h.textContent.trim());
seen.right = Math.max(...heads.map(h => h.getBoundingClientRect().right));
seen.top = one('.verdict').getBoundingClientRect().top < one('nav').getBoundingClientRect().top;
"""


def test_an_image_is_enlarged_beside_query_and_truth_on_a_phone(shop, uses):
    path, figures = shop
    seen = uses(path, 360, LARGE)
    assert seen["errors"] == []
    assert seen["open"] and seen["modal"] and seen["inside"] and seen["label"] == "Large image"
    assert seen["first"][0] == "Query" and len(seen["first"]) == 2
    count = int(seen["told"].removeprefix("1 of "))
    assert count > 5 and seen["after"] == f"2 of {count}" and seen["back"] == seen["told"]
    assert seen["second"][:2] == ["Query", "Result, not relevant"] and len(seen["second"]) == 3
    assert seen["second"][2] in ("Result, relevant", "Should have been found")
    assert all(re.fullmatch(r"<b>[qc]\d+</b>\.png", name) for name in seen["id"])
    keys = ["Previous image", "Next image", "Close"]
    assert set(seen["stops"]) == set(keys) and seen["stops"][0] == seen["stops"][3]
    assert seen["shift"] == seen["stops"][2]  # one back of the fourth
    assert seen["fit"] == "contain" and seen["natural"] == [60, 30] and seen["boxWide"] <= 360
    assert seen["closed"] and seen["focus"] and seen["images"]
    # Every baseline is on the screen, none behind its edge.
    assert seen["heads"][1:] == [
        "This embedding", "Raw pixels", "Color histogram", "Frozen backbone",
        "Frozen backbone with color",
    ]  # fmt: skip
    assert seen["right"] <= 360 and seen["top"]


EXPLORE = """
const form = one('#filters');
const set = (name, value) => {
  form[name].value = value; form.dispatchEvent(new view.Event('input', {bubbles: true}));
};
const rows = () => all('#found .row');
const count = () => one('#count').textContent;
const firsts = () => rows().map(r => all('figure', r)[1]);
const scores = () => firsts().map(f => parseFloat(f.querySelector('small').textContent.slice(2)));
seen.all = [count(), rows().length];
one('#more').click(); seen.more = rows().length;
set('state', 'wrong'); seen.wrong = [count(), firsts().map(f => f.className)];
set('state', 'right'); seen.right = [count(), firsts().map(f => f.className)];
set('state', 'none'); seen.none = [count(), rows().map(r => one('.name', r).textContent)];
set('state', ''); set('product', 'P3 &');
seen.product = rows().map(r => one('.name', r).textContent); seen.few = one('#more').hidden;
set('product', ''); set('category', 'odd'); seen.odd = count();
set('category', ''); set('order', 'low'); seen.low = scores();
set('low', '0.9'); seen.bounded = scores();
form.reset(); await wait(); await wait(); seen.reset = count();
const table = one('#confusion table'), heads = all('thead th', table);
const column = n => all('tbody tr', table).map(r => r.cells[n].textContent.trim());
heads[0].querySelector('button').click();
seen.names = column(0); seen.sorted = heads[0].getAttribute('aria-sort');
heads[2].querySelector('button').click(); heads[2].querySelector('button').click();
seen.counts = column(2).map(parseFloat);
seen.mark = [heads[0].getAttribute('aria-sort'), heads[2].getAttribute('aria-sort')];
const gallery = all('.gallery').find(g => one('.more', g));
const shown = () => all('.row', gallery).filter(r => r.offsetParent).length;
seen.rows = [shown()]; one('.more', gallery).click(); seen.rows.push(shown());
seen.rows.push(all('.row', gallery).length);
"""


def test_queries_are_filtered_tables_sorted_and_rows_shown(shop, uses):
    path, figures = shop
    seen = uses(path, 1200, EXPLORE)
    assert seen["errors"] == []
    assert seen["all"] == ["60 of 60", 12] and seen["more"] == 24
    right = round(figures.recall[1] * (figures.num_queries - figures.num_unanswerable))
    assert seen["right"] == [f"{right} of 60", ["right"] * 12]
    assert seen["wrong"][0] == f"{60 - right} of 60" and set(seen["wrong"][1]) == {"wrong"}
    assert seen["none"] == ["2 of 60", ["nowhere"] * 2]
    assert set(seen["product"]) == {"p3 & <i>"} and seen["few"]
    assert seen["odd"] == f"{figures.per_category['odd'].num_queries} of 60"
    assert seen["low"] == sorted(seen["low"]) and min(seen["bounded"]) >= 0.9
    assert seen["reset"] == "60 of 60"
    assert seen["names"] == sorted(seen["names"]) and seen["sorted"] == "ascending"
    assert seen["counts"] == sorted(seen["counts"], reverse=True)
    assert seen["mark"] == [None, "descending"]
    assert seen["rows"][0] == 4 < seen["rows"][1] == seen["rows"][2]


REJECT = """
const slider = one('#below');
const told = () => Object.fromEntries(
  all('[data-share]').map(e => [e.dataset.share, e.textContent]));
seen.start = [+slider.value, one('#threshold').textContent, told()];
slider.value = 0; slider.dispatchEvent(new view.Event('input')); seen.zero = told();
slider.value = 7; slider.dispatchEvent(new view.Event('input'));
seen.seven = [one('#threshold').textContent, told()];
one('#keep').click(); seen.kept = +slider.value;
const point = all('#plane [data-at]').at(-1), {x, y, width} = point.getBoundingClientRect();
const at = (dx, dy) => one('#plane svg').dispatchEvent(new view.PointerEvent('pointermove',
  {clientX: x + width / 2 + dx, clientY: y + width / 2 + dy, bubbles: true, pointerType: 'mouse'}));
seen.hidden = one('#tip').hidden;
at(0, 0); seen.tip = one('#tip').textContent; seen.image = one('#tip img').naturalWidth;
const tip = one('#tip').getBoundingClientRect(), plane = one('#plane').getBoundingClientRect();
seen.inside = tip.left >= plane.left && tip.right <= plane.right + 1;
seen.on = point.classList.contains('on'); seen.points = all('#plane [data-at]').length;
one('#plane svg').focus(); press('ArrowRight'); seen.next = one('#tip').textContent;
press('Escape'); seen.gone = one('#tip').hidden;
"""


def test_the_slider_and_the_map(shop, uses):
    path, figures = shop
    seen = uses(path, 400, REJECT)
    assert seen["errors"] == []
    found = figures.rejection

    def right(told, i):
        assert len(told) == 5
        for name, text in told.items():
            if (i, name) == (0, "rejected_precision"):
                assert text == "none"
            else:  # the two languages round a five differently
                rate = 100 * getattr(found, name)[i]
                assert text.endswith("%") and abs(float(text[:-1]) - rate) < 0.051

    assert found.keeps and seen["start"][:2] == [found.keeps, f"{found.scores[found.keeps]}"]
    right(seen["start"][2], found.keeps)
    right(seen["zero"], 0)
    assert seen["seven"][0] == f"{found.scores[7]}" and seen["kept"] == found.keeps
    right(seen["seven"][1], 7)
    assert seen["hidden"] and seen["on"] and seen["inside"] and seen["image"] == 60
    assert "catalogue item" in seen["tip"] and "<b>c" in seen["tip"]
    assert "query" in seen["next"] and seen["gone"]  # the last point is followed by the first
    data = json.loads(re.search(r"id=data>(.*?)</script>", path.read_text())[1])
    assert seen["points"] == len(data["queries"]) + len(data["items"])
    assert len(data["images"]) == seen["points"]  # each is in the file once
