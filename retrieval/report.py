"""The report: one HTML file that needs nothing else, with the figures and the pictures behind them.

It works offline, on a phone, in light and dark. All text from outside (ids, products, categories)
is escaped; control characters are shown as symbols.
"""

import base64
import csv
import html
import io
import os

import numpy as np

from retrieval import files

EACH = 12  # entries of every part of the gallery
SHOWN = 5  # results beside a query
THUMBNAIL = 96  # pixels
RERANKING = {
    "aqe": "Query expansion (aqe)",
    "dba": "Database augmentation (dba)",
    "k_reciprocal": "k-reciprocal",
}


def gallery(queries, catalogue, result, seed=0) -> dict:
    """Chooses what to show: lists of query rows (of catalogue rows for the hubs).

    worst: first relevant item farthest down. near: right item just missed the top. hits: a random
    choice of those that are right. hubs: [(catalogue row, times it was wrongly among the first
    ten)]. suspects: [(query row, product)], see `_suspects`.
    """
    ranking, rows = result.ranking, result.rows
    first = ranking.first
    random = np.random.default_rng(seed)
    right = (catalogue.products[rows] == queries.products[:, None]) & (rows >= 0)
    worst = np.argsort(-first, kind="stable")
    near = np.flatnonzero((first > 1) & (first <= 5))
    gap = result.scores[near, 0] - result.scores[near, np.minimum(first[near], rows.shape[1]) - 1]
    hits = np.flatnonzero(first == 1)
    wrong = rows[:, :10][(rows[:, :10] >= 0) & ~right[:, :10]]
    count = np.bincount(wrong, minlength=len(catalogue))
    hubs = np.argsort(-count, kind="stable")[:EACH]
    suspects = _suspects(queries, catalogue, result, right)
    return {
        "worst": [int(q) for q in worst[:EACH] if first[q] > 1],
        "near": near[np.argsort(gap, kind="stable")][:EACH].tolist(),
        "hits": np.sort(random.permutation(hits)[:EACH]).tolist(),
        "hubs": [(int(r), int(count[r])) for r in hubs if count[r] > 0],
        "suspects": [(int(q), str(catalogue.products[rows[q, 0]])) for q in suspects],
    }


def _suspects(queries, catalogue, result, right):
    """Queries, the surest first, whose label looks wrong: their own product is not among the first
    five, which instead show all pictures (up to five) of one other product, the first of them as
    near as right results usually are."""
    ranking, rows, best = result.ranking, result.rows, result.scores[:, 0]
    _, codes, count = np.unique(catalogue.products, return_inverse=True, return_counts=True)
    five = codes[rows[:, :5]]
    pictures = np.minimum(count[five[:, 0]], five.shape[1])
    same = (five == five[:, :1]).sum(1) >= pictures
    usual = np.median(best[right[:, 0]]) if right[:, 0].any() else np.inf
    found = np.flatnonzero(same & (ranking.first > 5) & (best >= usual) & (rows[:, 0] >= 0))
    return found[np.argsort(-best[found], kind="stable")]


def wanted(chosen, results, others=()) -> dict:
    """Rows of {'queries', 'catalogue'} whose pictures are needed."""
    result = next(iter(results.values()))
    rows = {*chosen["worst"], *chosen["near"], *chosen["hits"]}
    rows |= {q for q, _ in chosen["suspects"][:EACH]}
    items = {r for r, _ in chosen["hubs"]}
    items |= set(result.rows[sorted(rows), :SHOWN].ravel().tolist())
    for each in results.values():
        items |= set(each.rows[list(others), :SHOWN].ravel().tolist())
    return {"queries": rows | set(others), "catalogue": items - {-1}}


def files_of(paths) -> dict:
    """Pictures {id: uint8 image} of those of {id: path} that are image files."""
    from PIL import Image, UnidentifiedImageError

    found = {}
    for name, path in paths.items():
        if os.path.isfile(path):
            try:
                with Image.open(path) as image:
                    image.thumbnail((THUMBNAIL, THUMBNAIL))
                    found[name] = np.asarray(image.convert("RGB"))
            except (UnidentifiedImageError, OSError):
                continue
    return found


def text(value) -> str:
    """Text as HTML: escaped, control characters made visible."""
    visible = "".join(chr(0x2400 + ord(c)) if ord(c) < 32 else c for c in str(value))
    return html.escape(visible, quote=True)


def write(path, *, figures, curves, histogram, gallery, queries, catalogue, result, images):
    """Writes the report; arguments as `retrieval.eval.write` gathers them."""
    show = _Gallery(queries, catalogue, result, *images)
    name = figures.get("model") or figures.get("queries") or ""
    step = f", step {figures['step']}" if "step" in figures else ""
    parts = [
        f"<h1>Retrieval report</h1><p class=sub>{text(name)}{step}</p>",
        _summary(figures),
        section("Recall at k", _curves(curves)),
        section("Similarity", _histogram(histogram)),
        section("Categories", _categories(figures)),
        section("After the model", _after(figures)),
        section("Confusion", _confusion(queries, catalogue, result)),
        section("Confusion of categories", _category_confusion(queries, catalogue, result)),
        show.section("Worst misses", "The right item stands farthest down.", gallery["worst"]),
        show.section("Near misses", "The right item is among the first five.", gallery["near"]),
        show.section("Random hits", "The first item is right.", gallery["hits"]),
        show.hubs(gallery["hubs"]),
        show.suspects(gallery["suspects"]),
    ]
    with files.published(path, "w") as out:
        out.write(page(f"Retrieval report {name}", parts))


def page(title, parts) -> str:
    """A whole HTML page from its parts, which are HTML already."""
    body = "\n".join(part for part in parts if part)
    return _PAGE.replace("{title}", text(title)).replace("{body}", body)


def cell(images, name, product, kind, note):
    """One picture (a question mark where `images` lacks it) with its product and a note."""
    picture = images.get(str(name))
    shown = f'<img alt="" src="{_data_url(picture)}">' if picture is not None else "<em>?</em>"
    return (
        f'<figure class={kind} title="{text(name)}">{shown}'
        f"<figcaption>{text(product)}<br><small>{note}</small></figcaption></figure>"
    )


def section(title, body):
    """A titled part of the page, or nothing where the body is empty."""
    return f"<section><h2>{title}</h2>{body}</section>" if body else ""


def _summary(figures):
    interval = figures["interval95"]
    names = [(f"recall@{k}", v) for k, v in figures["recall@k"].items()]
    names += [("map@r", figures["map@r"]), ("mrr", figures["mrr"])]
    cards = "".join(
        f"<div class=card><b>{name.replace('map@r', 'MAP@R').replace('mrr', 'MRR')}</b>"
        f"<span class=big>{value:.3f}</span>"
        f"<small>{interval[name][0]:.3f} to {interval[name][1]:.3f}</small></div>"
        for name, value in names
    )
    ks = list(figures["recall@k"])
    rows = [("This embedding", figures)]
    rows += [
        (title, figures[key])
        for title, key in (("Raw pixels", "raw_pixels"), ("Colour histogram", "color_histogram"))
        if key in figures
    ]
    header = "".join(f"<th>recall@{k}</th>" for k in ks)
    table = "".join(
        f"<tr><th>{title}</th>"
        + "".join(f"<td>{f['recall@k'][k]:.3f}</td>" for k in ks)
        + f"<td>{f['map@r']:.3f}</td><td>{f['r_precision']:.3f}</td>"
        + f"<td>{f['median_rank']:.0f}</td></tr>"
        for title, f in rows
    )
    tied, shelf = figures["ties"], figures["product_level"]
    first = ks[0]
    facts = [
        f"{figures['num_queries']} queries against {figures['num_catalogue']} catalogue items "
        f"({shelf['num_catalogue_products']} products).",
        f"{figures['num_unanswerable']} queries have no relevant item and are left out of every "
        f"rate; {figures['num_self_excluded']} queries are in the catalogue themselves and were "
        "left out of their own results.",
        f"Ranks are exact; float64 decided {figures['num_decided_in_float64']} queries. "
        f"{tied['num_queries_with_ties']} queries have ties: recall@{first} is "
        f"{tied['worst'][first]:.3f} at worst, {tied['expected'][first]:.3f} expected, "
        f"{tied['best'][first]:.3f} at best.",
        f"Counting each product once on the shelf, recall@{first} is "
        f"{shelf['recall@k'][first]:.3f}; averaged over products instead of queries, "
        f"{shelf['macro_recall@k'][first]:.3f}.",
        "Intervals: 95%, bootstrap over products.",
    ]
    listed = "".join(f"<li>{fact}</li>" for fact in facts)
    return (
        f"<section><div class=cards>{cards}</div><div class=scroll><table><tr><th></th>{header}"
        f"<th>MAP@R</th><th>R-precision</th><th>median rank</th></tr>{table}</table></div>"
        f"<ul>{listed}</ul></section>"
    )


def _after(figures):
    """What the approximate index loses and what re-ranking gains, each with its cost."""
    ks, parts = list(figures["recall@k"]), []
    heads = "".join(f"<th>recall@{k}</th>" for k in ks)

    def cells(found):
        return "".join(
            f"<td>{rate:.3f} <small>{rate - figures['recall@k'][k]:+.3f}</small></td>"
            for k, rate in found["recall@k"].items()
        )

    exact = "".join(f"<td>{figures['recall@k'][k]:.3f}</td>" for k in ks)
    if "index" in figures:
        found = figures["index"]
        effort = f", effort {found['tuned']['effort']}" if found["tuned"]["effort"] else ""
        parts.append(
            f"<p>The index {text(found['factory'])}{effort} finds "
            f"{100 * found['tuned']['recall']:.1f}% of the nearest items that exact search finds; "
            "the small figures are the difference in recall.</p><div class=scroll><table>"
            f"<tr><th></th>{heads}<th>ms a query</th><th>bytes a vector</th><th>MiB</th></tr>"
            f"<tr><th>Exact</th>{exact}<td>{found['exact_ms_per_query']:.2f}</td>"
            f"<td>{found['exact_bytes_per_vector']:.0f}</td>"
            f"<td>{_mebibytes(found['exact_bytes_per_vector'], figures)}</td></tr>"
            f"<tr><th>{text(found['factory'])}</th>{cells(found)}"
            f"<td>{found['ms_per_query']:.2f}</td><td>{found['bytes_per_vector']:.0f}</td>"
            f"<td>{_mebibytes(found['bytes_per_vector'], figures)}</td></tr></table></div>"
        )
    if "rerank" in figures:
        rows = []
        for method, found in figures["rerank"].items():
            rate = found.get("map@r")
            shown = f"{rate:.3f} <small>{rate - figures['map@r']:+.3f}</small>" if rate else ""
            cost = found["seconds_per_point"]
            rows.append(
                f"<tr><th>{text(RERANKING[method])}</th>{cells(found)}<td>{shown}</td>"
                f"<td>{found['seconds']:.2f}</td>"
                f"<td>{f'{cost:.2f}' if np.isfinite(cost) else 'nothing gained'}</td></tr>"
            )
        parts.append(
            "<p>Re-ranking: recall and what it gains (small), the seconds that it takes for all "
            f"queries, and those for each point (0.01) gained of recall@{ks[0]}.</p>"
            "<div class=scroll><table>"
            f"<tr><th></th>{heads}<th>MAP@R</th><th>seconds</th><th>a point</th></tr>"
            f"<tr><th>Without</th>{exact}<td>{figures['map@r']:.3f}</td><td></td><td></td></tr>"
            f"{''.join(rows)}</table></div>"
        )
    return "".join(parts)


def _mebibytes(bytes_per_vector, figures):
    return f"{bytes_per_vector * figures['num_catalogue'] / 2**20:.1f}"


def write_figures(path, figures):
    """Every number of the evaluation as a line `figure,value`, nested names joined by dots."""
    with files.published(path, "w") as out:
        table = csv.writer(out)
        table.writerow(["figure", "value"])
        table.writerows(_flat(files.plain(figures)))


def _flat(value, name=""):
    """Yields (dotted name, value); what JSON writes as null is left empty."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, "" if value is None else value


def _curves(curves):
    """Recall over k, k on a logarithmic axis, one line an embedding."""
    width, height, left, bottom = 640, 260, 40, 30
    top_k = max(max(ks) for ks, _ in curves.values())

    def at(k, rate):
        x = left + (width - left - 10) * np.log(k) / max(np.log(top_k), 1e-9)
        return f"{x:.1f},{10 + (height - bottom - 10) * (1 - rate):.1f}"

    lines = []
    for rate in (0, 0.25, 0.5, 0.75, 1):
        y = at(1, rate).split(",")[1]
        lines.append(f'<line class=grid x1={left} x2={width - 10} y1="{y}" y2="{y}"/>')
        lines.append(f'<text x="{left - 6}" y="{y}" dy=4 text-anchor=end>{rate:g}</text>')
    for k in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000):
        if k <= top_k:
            x = at(k, 0).split(",")[0]
            anchor = "end" if k == top_k else "middle"  # the last would be cut off
            lines.append(f'<text x="{x}" y="{height - 10}" text-anchor={anchor}>{k}</text>')
    legend = []
    for n, (title, (ks, rates)) in enumerate(curves.items()):
        points = " ".join(at(k, rate) for k, rate in zip(ks, rates, strict=True))
        lines.append(f'<polyline class=c{n} points="{points}"/>')
        legend.append(f"<span class=key><i class=k{n}></i>{text(title)}</span>")
    return (
        f'<div>{"".join(legend)}</div><svg viewBox="0 0 {width} {height}" role=img '
        f'aria-label="recall over k">{"".join(lines)}</svg>'
    )


def _histogram(histogram):
    width, height = 640, 200
    bars = []
    for n, kind in enumerate(("different_product", "same_product")):
        counts = np.array(histogram[kind], float)
        shares = counts / max(1, counts.sum())
        peak = max(
            max(np.array(histogram[other], float) / max(1, sum(histogram[other])))
            for other in ("same_product", "different_product")
        )
        step = width / len(shares)
        bars += [
            f'<rect class=h{n} x="{i * step:.1f}" y="{170 - 160 * s / max(peak, 1e-9):.1f}" '
            f'width="{step:.1f}" height="{160 * s / max(peak, 1e-9):.1f}"/>'
            for i, s in enumerate(shares)
            if s > 0
        ]
    edges = histogram["edges"]
    middle = (edges[0] + edges[-1]) / 2
    labels = "".join(
        f'<text x="{x}" y="190" text-anchor={anchor}>{value:.2f}</text>'
        for x, anchor, value in (
            *((0, "start", edges[0]), (width / 2, "middle", middle)),
            (width, "end", edges[-1]),
        )
    )
    return (
        f"<p>{text(histogram['unit'])} between two pictures of "
        "<span class=key><i class=k0></i>one product</span> "
        "<span class=key><i class=k2></i>different products</span></p>"
        f'<svg viewBox="0 0 {width} {height}" role=img aria-label="similarity histogram">'
        f"{''.join(bars)}{labels}</svg>"
    )


def _categories(figures):
    if not figures["per_category"]:
        return ""
    k = next(iter(figures["recall@k"]))
    rows = []
    ordered = sorted(figures["per_category"].items(), key=lambda item: item[1]["recall@k"][k])
    for name, f in ordered:
        rate = f["recall@k"][k]
        if not np.isfinite(rate):
            continue
        interval = f.get(f"recall@{k}_interval95")
        shown = f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else "too few products"
        rows.append(
            f"<tr><th>{text(name) or 'none'}</th><td>{f['num_queries']}</td>"
            f"<td class=wide><div class=bar><i style='width:{100 * rate:.1f}%'></i></div></td>"
            f"<td>{rate:.3f}</td><td class=dim>{shown}</td></tr>"
        )
    return (
        f"<div class=scroll><table><tr><th>category</th><th>queries</th><th></th>"
        f"<th>recall@{k}</th><th>95%</th></tr>{''.join(rows)}</table></div>"
    )


def _confusion(queries, catalogue, result, shown=15):
    """Which products are mistaken for which, most often first."""
    best = result.rows[:, 0]
    wrong = (best >= 0) & result.ranking.answerable & (result.ranking.first > 1)
    wrong &= catalogue.products[best] != queries.products
    pairs = np.stack([queries.products[wrong], catalogue.products[best[wrong]]], 1)
    if not len(pairs):
        return ""
    names, count = np.unique(pairs, axis=0, return_counts=True)
    order = np.argsort(-count, kind="stable")[:shown]
    rows = "".join(
        f"<tr><td>{text(a)}</td><td>{text(b)}</td><td>{n}</td></tr>"
        for (a, b), n in zip(names[order], count[order], strict=True)
    )
    return (
        "<div class=scroll><table><tr><th>product</th><th>mistaken for</th><th>queries</th></tr>"
        f"{rows}</table></div>"
    )


def category_confusion(queries, catalogue, result, shown=12):
    """(names [C], counts [C, C]): queries of a category (row) whose first result is of another
    (column). The most frequent `shown` categories; all others are one, named '…'."""
    best = result.rows[:, 0]
    there = (best >= 0) & result.ranking.answerable
    pair = [queries.categories[there], catalogue.categories[best[there]]]
    names, count = np.unique(np.concatenate(pair), return_counts=True)
    kept = np.sort(names[np.argsort(-count, kind="stable")[:shown]])
    codes = [np.searchsorted(kept, part).clip(max=max(0, len(kept) - 1)) for part in pair]
    codes = [np.where(kept[c] == part, c, len(kept)) for c, part in zip(codes, pair, strict=True)]
    size = len(kept) + (len(names) > len(kept))
    counts = np.bincount(codes[0] * size + codes[1], minlength=size * size).reshape(size, size)
    return [*kept.tolist(), *["…"] * (size - len(kept))], counts


def _category_confusion(queries, catalogue, result):
    if not (queries.categories != "").any() or not (catalogue.categories != "").any():
        return ""
    names, counts = category_confusion(queries, catalogue, result)
    head = "".join(f"<th><span>{text(name) or 'none'}</span></th>" for name in names)
    rows = []
    for name, row in zip(names, counts, strict=True):
        total = max(1, row.sum())
        cells = "".join(
            f'<td style="--share:{100 * n / total:.0f}%">{n if n else ""}</td>' for n in row
        )
        rows.append(f"<tr><th>{text(name) or 'none'}</th>{cells}</tr>")
    return (
        "<p>Queries by their category (rows) and that of their first result (columns).</p>"
        f"<div class=scroll><table class=matrix><tr><th></th>{head}</tr>{''.join(rows)}"
        "</table></div>"
    )


class _Gallery:
    def __init__(self, queries, catalogue, result, query_images, item_images):
        self.queries, self.catalogue, self.result = queries, catalogue, result
        self.query_images, self.item_images = query_images, item_images

    def section(self, title, note, rows):
        return section(title, f"<p>{note}</p>" + "".join(map(self.query, rows))) if rows else ""

    def query(self, q):
        first, products = int(self.result.ranking.first[q]), self.queries.products
        cells = [
            cell(self.query_images, self.queries.ids[q], products[q], "query", f"rank {first}")
        ]
        for r, score in zip(self.result.rows[q, :SHOWN], self.result.scores[q], strict=False):
            if r >= 0:
                right = "right" if self.catalogue.products[r] == products[q] else "wrong"
                cells.append(self.item(r, right, f"{score:.3f}"))
        return f"<div class=row>{''.join(cells)}</div>"

    def item(self, r, kind, note):
        catalogue = self.catalogue
        return cell(self.item_images, catalogue.ids[r], catalogue.products[r], kind, note)

    def hubs(self, hubs):
        cells = "".join(self.item(r, "wrong", f"{n} times") for r, n in hubs)
        note = "<p>Catalogue items that were most often wrongly among the first ten.</p>"
        return section("Hubs", f"{note}<div class=row>{cells}</div>") if hubs else ""

    def suspects(self, suspects):
        note = (
            f"<p>{len(suspects)} queries that look like another product: as near to it as right "
            "results usually are, with their own product not among the first five. The CSV beside "
            "this report lists them to be corrected.</p>"
        )
        rows = "".join(self.query(q) for q, _ in suspects[:EACH])
        return section("Suspected wrong labels", note + rows) if suspects else ""


def _data_url(image):
    from PIL import Image

    image = np.asarray(image)
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    kind = "PNG" if max(picture.size) <= 48 else "JPEG"
    out = io.BytesIO()
    picture.save(out, kind, quality=80)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(out.getvalue()).decode()}"


def write_csv(path, queries, catalogue, result):
    """One line a query: where its first relevant item stands, and what was found instead."""
    ranking = result.ranking
    with files.published(path, "w") as out:
        table = csv.writer(out)
        header = "id product category relevant rank average_precision found found_product score"
        table.writerow(header.split())
        for q in range(len(queries)):
            row = [queries.ids[q], queries.products[q], queries.categories[q], ranking.relevant[q]]
            if ranking.relevant[q]:
                row += [ranking.first[q], f"{ranking.average_precision[q]:.6f}"]
            else:
                row += ["", ""]
            r = result.rows[q, 0]
            if r >= 0:
                row += [catalogue.ids[r], catalogue.products[r], f"{result.scores[q, 0]:.6f}"]
            table.writerow(row)


def write_suspects(path, chosen, queries, catalogue):
    """Queries that look mislabelled; fill in `corrected_product` and apply it to the data."""
    with files.published(path, "w") as out:
        table = csv.writer(out)
        table.writerow(["id", "product", "suggested_product", "corrected_product"])
        for q, product in chosen["suspects"]:
            table.writerow([queries.ids[q], queries.products[q], product, ""])


_PAGE = """<!doctype html>
<html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width,initial-scale=1">
<title>{title}</title>
<style>
:root{--bg:#fbfbfa;--fg:#22272b;--dim:#68737c;--line:#dde1e4;--card:#fff;--right:#2e8b57;
--wrong:#c0392b;--a:#2563a8;--b:#b8860b;--c:#8a95a0}
@media(prefers-color-scheme:dark){:root{--bg:#15181b;--fg:#e3e7ea;--dim:#95a0a9;--line:#32393f;
--card:#1e2327;--right:#4cc38a;--wrong:#ef6a5b;--a:#6cb0f5;--b:#e3b341;--c:#75818b}}
*{box-sizing:border-box}
body{background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,sans-serif;margin:0 auto;
padding:1rem;max-width:62rem}
h1{margin:.3em 0 0}h2{margin:0 0 .6rem;font-size:1.15rem}.sub,.dim,small{color:var(--dim)}
section{border-top:1px solid var(--line);padding:1.1rem 0}
.cards{display:flex;flex-wrap:wrap;gap:.6rem;margin-bottom:1rem}
.card{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:.5rem .8rem;
display:flex;flex-direction:column;min-width:8rem}
.big{font-size:1.6rem;font-variant-numeric:tabular-nums}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.2rem .7rem .2rem 0;text-align:left;white-space:nowrap}
.wide{min-width:10rem;width:40%}.bar{background:var(--line);height:.7rem;border-radius:3px}
.bar i{display:block;height:100%;background:var(--a);border-radius:3px}
.matrix th span{writing-mode:vertical-rl;display:inline-block}
.matrix td{background:color-mix(in srgb,var(--a) var(--share),transparent);text-align:center;
min-width:2.4rem;padding:.2rem}.matrix tr:first-child th{vertical-align:bottom;text-align:center}
svg{width:100%;height:auto;max-width:44rem}svg text{fill:var(--dim);font-size:11px}
.grid{stroke:var(--line)}polyline{fill:none;stroke-width:2}
.c0{stroke:var(--a)}.c1{stroke:var(--b)}.c2{stroke:var(--c)}
.key{margin-right:1rem}.key i{display:inline-block;width:.8em;height:.8em;margin-right:.3em}
.k0{background:var(--a)}.k1{background:var(--b)}.k2{background:var(--c)}
.h0{fill:var(--c);opacity:.75}.h1{fill:var(--a);opacity:.65}
.row{display:flex;flex-wrap:wrap;gap:.5rem;margin-bottom:.9rem}
figure{margin:0;width:6.2rem;border:3px solid var(--line);border-radius:6px;padding:2px;
background:var(--card);overflow:hidden}
figure img,figure em{display:block;width:100%;aspect-ratio:1;object-fit:contain;background:#fff;
image-rendering:auto}
figure em{color:#999;text-align:center;font-size:2rem}
figure.right{border-color:var(--right)}figure.wrong{border-color:var(--wrong)}
figcaption{font-size:.75rem;line-height:1.25;overflow-wrap:anywhere}
</style>
{body}
</html>
"""
