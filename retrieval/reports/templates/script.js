"use strict";
// Interaction with a page: enlarge images, sort tables, show more, filter, set a threshold, hover.
// Text from the data becomes text nodes and properties only, never markup.
(() => {
const one = (selector, root = document) => root.querySelector(selector);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};
const stored = one("#data");
const {images = [], items = [], queries: asked = [], rejection} =
  stored ? JSON.parse(stored.textContent) : {};
for (const image of all("img[data-image]"))
  Object.assign(image, {src: images[image.dataset.image]});

// ---- an image with its text, like the macro `figure`
const MARKS = {right: "✓ ", wrong: "✗ "};
const end = text => text.length > 26 ? "…" + text.slice(-26) : text;
function figure([id, product, , image], kind, note) {
  const shown = [];
  if (image >= 0) {
    const picture = make("img", {alt: product, src: images[image]});
    shown.push(make("button", {className: "zoom", type: "button", ariaLabel: "Enlarge " + product},
      picture));
  } else if (images.length) shown.push(make("em", {textContent: "?"}));
  const small = make("small", {textContent: (MARKS[kind] || "") + note});
  const name = make("span", {className: "id", textContent: end(id)});
  const text = make("figcaption", {}, make("span", {className: "name", textContent: product}),
    small, name);
  return make("figure", {className: kind, title: id}, ...shown, text);
}

// ---- the large view: a modal dialog keeps the focus inside and makes the page behind it inert
const stage = make("div", {className: "stage"});
const told = make("p", {className: "told", ariaLive: "polite"});
const button = (label, text, act) =>
  make("button", {type: "button", ariaLabel: label, textContent: text, onclick: act});
const keys = make("div", {className: "keys"}, button("Previous image", "←", () => go(-1)), told,
  button("Next image", "→", () => go(1)), button("Close", "✕", () => box.close()));
const box = make("dialog", {className: "box", ariaLabel: "Large image"}, keys, stage);
document.body.append(box);
let around = [], at = 0;
const ROLES = {query: "Query", missed: "Should have been found", right: "Result, relevant",
  wrong: "Result, not relevant", found: "Result"};

function panel(shown) {
  const picture = one("img", shown), kind = shown.classList[0];
  const text = all("figcaption .name, figcaption small", shown).map(e => e.textContent.trim());
  return make("div", {className: "panel " + kind},
    picture ? make("img", {alt: picture.alt, src: picture.src}) : make("em", {textContent: "?"}),
    make("b", {textContent: ROLES[kind] || ""}), make("span", {textContent: text.join(" · ")}),
    make("span", {className: "id", textContent: shown.title}));
}

function go(step) {
  at = (at + step + around.length) % around.length;
  const current = around[at], row = current.closest(".row");
  const query = row && one("figure.query", row);
  const truth = query && (one("figure.missed", row) || one("figure.right", row));
  stage.replaceChildren(...[...new Set([query, current, truth])].filter(Boolean).map(panel));
  told.textContent = `${at + 1} of ${around.length}`;
}

document.addEventListener("click", event => {
  const pressed = event.target.closest(".zoom");
  if (event.target === box) box.close();
  if (!pressed) return;
  const scope = pressed.closest("section") || document;
  around = all("figure", scope).filter(each => one(".zoom", each) && each.offsetParent);
  at = around.indexOf(pressed.closest("figure"));
  go(0);
  box.showModal();
  box.addEventListener("close", () => pressed.focus(), {once: true});
});
box.addEventListener("keydown", event => {
  const step = {ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1}[event.key];
  if (step) go(step);
  else if (event.key === "Escape") box.close();
  else if (event.key === "Tab") {  // the browser's own buttons would be next
    const stops = all("button", box), turn = event.shiftKey ? -1 : 1;
    const next = stops.indexOf(document.activeElement) + turn;
    stops[(next + stops.length) % stops.length].focus();
  } else return;
  event.preventDefault();
});

// ---- galleries: the first rows, then more on request
for (const gallery of all(".gallery")) {
  const hidden = all(".row", gallery).slice(4);
  if (!hidden.length) continue;
  for (const row of hidden) row.hidden = true;
  const show = button(`Show ${hidden.length} more rows`, `Show ${hidden.length} more`, () => {
    for (const row of hidden) row.hidden = false;
    show.remove();
  });
  show.className = "more";
  gallery.append(show);
}

// ---- tables: a click on a heading sorts
const number = text => parseFloat(text.replace(/[,\s]/g, ""));
function order(a, b) {
  const [x, y] = [number(a), number(b)];
  return isNaN(x) || isNaN(y) ? a.localeCompare(b, undefined, {numeric: true}) : x - y;
}
for (const table of all("table.sortable")) {
  const heads = all("thead th", table);
  heads.forEach((head, column) => {
    if (!head.textContent.trim()) return;
    const press = make("button", {type: "button", className: "sort", onclick: () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const each of heads) each.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const text = row => row.cells[column].textContent.trim();
      const rows = all("tbody tr", table).sort((a, b) => order(text(a), text(b)) * (up ? 1 : -1));
      table.tBodies[0].append(...rows);
    }}, ...head.childNodes);
    head.append(press);
  });
}

// ---- explore: filter the listed queries
const form = one("#filters");
if (form) {
  const STEP = 12;
  let most = STEP;
  const list = one("#found"), more = one("#more");
  const options = values => [...new Set(values)].filter(Boolean).sort(
    (a, b) => a.localeCompare(b, undefined, {numeric: true})).map(
    value => make("option", {value, textContent: value}));
  form.category.append(...options(asked.map(query => query[2])));
  form.category.parentElement.hidden = form.category.length < 2;
  one("#products").append(...options(asked.map(query => query[1])));
  const score = query => query[5].length ? query[5][0][1] : NaN;
  const state = query => query[5].length && query[5][0][2] ? "right" : "wrong";
  const fits = query =>
    (!form.category.value || query[2] === form.category.value) &&
    query[1].toLowerCase().includes(form.product.value.trim().toLowerCase()) &&
    ["", state(query), query[4] ? "" : "none"].includes(form.state.value) &&
    !(score(query) < parseFloat(form.low.value)) && !(score(query) > parseFloat(form.high.value));
  const ORDERS = {
    low: (a, b) => score(a) - score(b), high: (a, b) => score(b) - score(a),
    rank: (a, b) => b[4] - a[4],
  };
  function line(query) {
    const [, , , , rank, results, answer] = query;
    const note = rank ? `query; relevant item at rank ${rank}` : "query; no relevant item";
    const row = make("div", {className: "row"}, figure(query, "query", note));
    for (const [item, near, right] of results)
      row.append(figure(items[item], right ? "right" : "wrong", near.toFixed(3)));
    if (answer) row.append(
      figure(items[answer[0]], "missed", `relevant, rank ${rank}: ${answer[1].toFixed(3)}`));
    return row;
  }
  const draw = () => {
    const chosen = asked.filter(fits);
    if (ORDERS[form.order.value]) chosen.sort(ORDERS[form.order.value]);
    list.replaceChildren(...chosen.slice(0, most).map(line));
    more.hidden = chosen.length <= most;
    one("#count").textContent = `${chosen.length} of ${asked.length}`;
  };
  const again = () => { most = STEP; draw(); };
  form.addEventListener("input", again);
  form.addEventListener("submit", event => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(again));
  more.addEventListener("click", () => { most += STEP; draw(); });
  draw();
}

// ---- no match below a score
const slider = one("#below");
if (slider) {
  const share = value => `${(100 * value).toFixed(1)}%`;
  const tell = () => {
    const i = +slider.value, none = rejection.shown[i] === rejection.shown[0];
    one("#threshold").textContent = slider.ariaValueText = `${rejection.scores[i]}`;
    for (const cell of all("[data-share]"))
      cell.textContent = none && cell.dataset.share === "rejected_precision" ? "none" :
        share(rejection[cell.dataset.share][i]);
  };
  slider.addEventListener("input", tell);
  const keep = one("#keep");
  if (keep) keep.addEventListener("click", () => { slider.value = rejection.keeps; tell(); });
  tell();
}

// ---- the map: the point nearest to the pointer, or the arrow keys
const map = one("#plane svg");
if (map) {
  const tip = one("#tip"), points = all("[data-at]", map);
  let current = -1;
  const show = n => {
    current = n;
    for (const point of all(".on", map)) point.classList.remove("on");
    tip.hidden = n < 0;
    if (n < 0) return;
    const point = points[n], [kind, place] = point.dataset.at.split(" ");
    const [entry, role] = kind === "q" ? [asked[place], "query"] : [items[place], "found"];
    point.classList.add("on");
    tip.replaceChildren(figure(entry, role, kind === "q" ? "query" : "catalogue item"));
    const [dot, frame] = [point, tip.parentElement].map(each => each.getBoundingClientRect());
    const left = Math.min(dot.x - frame.x + 14, frame.width - tip.offsetWidth);
    const top = Math.min(dot.y - frame.y + 14, frame.height - tip.offsetHeight);
    Object.assign(tip.style, {left: `${Math.max(0, left)}px`, top: `${Math.max(0, top)}px`});
  };
  const follow = event => {
    const near = points.map(point => {
      const {x, y, width} = point.getBoundingClientRect();
      return Math.hypot(event.clientX - x - width / 2, event.clientY - y - width / 2);
    });
    const n = near.indexOf(Math.min(...near));
    show(near[n] < 30 ? n : -1);
  };
  map.addEventListener("pointermove", follow);
  map.addEventListener("pointerdown", follow);
  map.addEventListener("pointerleave", event => { if (event.pointerType === "mouse") show(-1); });
  map.addEventListener("keydown", event => {
    const step = {ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1}[event.key];
    if (!step && event.key !== "Escape") return;
    event.preventDefault();
    show(step ? (current + step + points.length) % points.length : -1);
  });
}
})();
