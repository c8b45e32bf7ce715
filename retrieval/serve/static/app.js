// The search page: state, requests, drawing. Strings from the catalogue are set as text, never as HTML.

const $ = (id) => document.getElementById(id);
const LARGEST = 2048; // longer side of a large photo after it is scaled down for sending
const HEAVY = 4e6; // bytes above which a photo is scaled down
const QUERIES = 20; // kept at most
const DEFAULTS = { k: 20, threshold: null, group: false, category: "", catalogue: "" };

let info = null;
let state = { ...DEFAULTS };
let queries = []; // {file, address} of a photo, {id, address} of an item or {text}; crop: {x, y, w, h} or null
let current = null;
let answer = null; // the answer to the last search
let running = null; // AbortController of the search under way
let shown = -1; // number of the result in the large view
let keys = 0; // keys of queries in the history

// ------------------------------------------------------------------ small tools

function make(tag, properties = {}, ...children) {
  const { attributes, ...rest } = properties;
  const made = Object.assign(document.createElement(tag), rest);
  for (const [name, value] of Object.entries(attributes || {})) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function icon(path) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  svg.append(document.createElementNS("http://www.w3.org/2000/svg", "path"));
  svg.firstChild.setAttribute("d", path);
  return svg;
}
const UP = "M7 11v9H4v-9zM7 11l4-8c2 0 2 2 2 3l-1 4h7l-2 10H7";
const DOWN = "M17 13V4h3v9zM17 13l-4 8c-2 0-2-2-2-3l1-4H5L7 4h10";

function later(work, delay) {
  let timer;
  return () => { clearTimeout(timer); timer = setTimeout(work, delay); };
}

const sleep = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));
const bounded = (value, low, high) => Math.min(Math.max(value, low), high);

function imageOf(item, size) {
  const address = new URL(item.image, location.origin);
  address.searchParams.set("size", size);
  return address.href;
}

// ------------------------------------------------------------------ requests

class Trouble extends Error {}

async function ask(path, options = {}) {
  for (let tries = 1; ; tries++) {
    let response;
    try {
      response = await fetch(path, options);
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Trouble("The server cannot be reached. Check the connection.");
    }
    if (response.ok) return response.status === 204 ? null : response.json();
    const problem = await response.json().catch(() => ({}));
    if (response.status === 401) { await login(); continue; }
    if (response.status === 503 && tries < 4) {
      say("The server is busy. Trying again…");
      await sleep(Number(response.headers.get("Retry-After")) || 1);
      continue;
    }
    throw new Trouble(problem.detail || `The server answered ${response.status}.`);
  }
}

function login() {
  return new Promise((done) => {
    $("login").showModal();
    $("login").onclose = () => {
      const secure = location.protocol === "https:" ? "; Secure" : "";
      document.cookie =
        `prototrain_token=${encodeURIComponent($("token").value)}; SameSite=Strict; Path=/${secure}`;
      $("token").value = "";
      done();
    };
  });
}

const post = (values) => ({
  method: "POST",
  headers: { "Content-Type": "application/json" },
  body: JSON.stringify(values),
});

// The photo to send: the original, a part of it, or a smaller copy.
async function upload(query) {
  const { crop, file } = query;
  if (file && !crop && file.size <= HEAVY) return file;
  const image = new Image();
  image.src = query.address;
  try {
    await image.decode();
  } catch {
    if (file) return file; // the server's answer says what is wrong with it
    throw new Trouble("The image cannot be read.");
  }
  const { x, y, w, h } = crop || { x: 0, y: 0, w: 1, h: 1 };
  const [width, height] = [image.naturalWidth * w, image.naturalHeight * h];
  const scale = Math.min(1, LARGEST / Math.max(width, height));
  const canvas = make("canvas", {
    width: Math.max(1, Math.round(width * scale)), height: Math.max(1, Math.round(height * scale)),
  });
  const pen = canvas.getContext("2d");
  pen.fillStyle = "#fff"; // JPEG has no transparency
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(image, image.naturalWidth * x, image.naturalHeight * y, width, height,
    0, 0, canvas.width, canvas.height);
  return new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.95));
}

async function search() {
  running?.abort();
  const mine = (running = new AbortController());
  if (!current) return draw();
  answer = null;
  $("trouble").hidden = true;
  skeletons();
  say("Searching…");
  const parameters = new URLSearchParams({ k: state.k, facets: true });
  for (const name of ["category", "catalogue"]) if (state[name]) parameters.set(name, state[name]);
  if (state.threshold !== null) parameters.set("threshold", state.threshold);
  if (state.group) parameters.set("group_by", "product");
  try {
    let options;
    if (current.id !== undefined && !current.crop) {
      options = post({ id: current.id });
    } else if (current.text !== undefined) {
      options = post({ text: current.text });
    } else {
      const body = new FormData();
      body.append("image", await upload(current), "photo");
      options = { method: "POST", body };
    }
    const found = await ask(`/v1/search?${parameters}`, { ...options, signal: mine.signal });
    if (mine !== running) return;
    answer = found;
  } catch (error) {
    if (error.name === "AbortError" || mine !== running) return;
    if (!(error instanceof Trouble)) console.error(error);
    complain(error instanceof Trouble ? error.message : String(error));
  }
  draw();
}
const soon = later(search, 250);

async function vote(result, good, buttons) {
  try {
    const { id, rank, score } = result;
    await ask(`/v1/feedback?catalogue=${encodeURIComponent(state.catalogue)}`,
      post({ query: answer.query, id, good, rank, score }));
    buttons.forEach((button, n) => button.setAttribute("aria-pressed", String((n === 0) === good)));
    say("Recorded. Thank you.");
  } catch (error) {
    say(error.message);
  }
}

// ------------------------------------------------------------------ the address

function read() {
  const given = new URLSearchParams(location.search);
  const k = parseInt(given.get("k"), 10);
  const threshold = parseFloat(given.get("threshold"));
  state = {
    k: k >= 1 && k <= 100 ? k : DEFAULTS.k,
    threshold: Number.isFinite(threshold) ? threshold : null,
    group: given.get("group") === "product",
    category: given.get("category") || "",
    catalogue: given.get("catalogue") || "",
  };
  return { id: given.get("id"), text: given.get("text") };
}

function write(push) {
  const set = new URLSearchParams();
  for (const name of ["id", "text"]) if (current?.[name] !== undefined) set.set(name, current[name]);
  if (state.k !== DEFAULTS.k) set.set("k", state.k);
  if (state.threshold !== null) set.set("threshold", state.threshold);
  if (state.group) set.set("group", "product");
  for (const name of ["category", "catalogue"]) if (state[name]) set.set(name, state[name]);
  const text = set.toString();
  const key = { key: current?.key };
  history[push ? "pushState" : "replaceState"](key, "", text ? `/?${text}` : "/");
}

// ------------------------------------------------------------------ queries

function choose(query, restoring = false) {
  if (!queries.includes(query)) {
    query.key = ++keys;
    queries.unshift(query);
    for (const old of queries.splice(QUERIES)) if (old.file) URL.revokeObjectURL(old.address);
  }
  const leaves = current !== query && !restoring;
  current = query;
  if (leaves) state.category = "";
  write(leaves);
  search();
}

function addFiles(files) {
  const images = [...files].filter((file) => !file.type || file.type.startsWith("image/"));
  if (!images.length) {
    return complain("This is not an image file.");
  }
  const made = images.slice(0, QUERIES).map((file) => (
    { file, address: URL.createObjectURL(file), name: file.name || "Pasted photo", crop: null }));
  for (const one of made.slice(1)) queries.unshift(Object.assign(one, { key: ++keys }));
  choose(made[0]);
}

async function chooseItem(id, restoring = false) {
  const known = queries.find((query) => query.id === id && !query.crop);
  if (known) return choose(known, restoring);
  const parameters = state.catalogue ? `?catalogue=${encodeURIComponent(state.catalogue)}` : "";
  try {
    const item = await ask(`/v1/items/${encodeURIComponent(id)}${parameters}`);
    const address = item.image ? imageOf(item, 1024) : "";
    choose({ id, address, name: `Items like ${item.product || id}`, crop: null }, restoring);
  } catch (error) {
    complain(error.message);
  }
}

function chooseText(text, restoring = false) {
  const known = queries.find((query) => query.text === text);
  choose(known || { text, address: "", name: text, crop: null }, restoring);
}

function remove(query) {
  queries = queries.filter((one) => one !== query);
  if (query.file) URL.revokeObjectURL(query.address);
  if (query !== current) return drawQueries();
  current = null;
  if (queries.length) choose(queries[0]);
  else { answer = null; write(true); draw(); }
}

// ------------------------------------------------------------------ drawing

const say = (text) => { $("status").textContent = text; };

function complain(text) {
  $("trouble-text").textContent = text;
  $("trouble").hidden = false;
  $("welcome").hidden = true;
  say("");
}

function draw() {
  drawQueries();
  drawOptions();
  drawResults();
}

function drawQueries() {
  $("queries").hidden = queries.length < 2;
  $("queries").replaceChildren(...queries.map((query) => {
    const image = query.address ? make("img", { src: query.address, alt: "" }) : query.text ?? "?";
    const open = make("button", {
      type: "button", title: query.name, onclick: () => choose(query),
      attributes: { "aria-label": query.name, ...(query === current && { "aria-current": "true" }) },
    }, image);
    const away = make("button", {
      type: "button", className: "remove", textContent: "×", onclick: () => remove(query),
      attributes: { "aria-label": `Remove ${query.name}` },
    });
    return make("li", {}, open, away);
  }));
  $("query").hidden = !current;
  $("options").hidden = !current;
  $("welcome").hidden = Boolean(current) || !$("trouble").hidden;
  if (!current) return;
  $("stage").hidden = !current.address;
  $("crop-hint").hidden = !current.address;
  if (current.address && $("photo").src !== current.address) $("photo").src = current.address;
  $("caption").textContent = current.name;
  drawBox();
}

function drawBox() {
  const { x, y, w, h } = current.crop || { x: 0, y: 0, w: 1, h: 1 };
  $("box").classList.toggle("full", !current.crop);
  const place = { left: x, top: y, width: w, height: h };
  for (const [name, value] of Object.entries(place)) $("box").style[name] = `${100 * value}%`;
  $("whole").hidden = !current.crop;
}

function drawOptions() {
  $("k").value = state.k;
  $("k-value").textContent = state.k;
  const euclidean = info?.similarity === "euclidean";
  const low = euclidean ? -2 : info?.similarity === "dot" ? 0 : -1;
  const best = answer?.results[0]?.score ?? 1;
  Object.assign($("threshold"), {
    min: Math.min(low, state.threshold ?? low),
    max: euclidean ? 0 : Math.max(1, best, state.threshold ?? 1), step: 0.01,
  });
  $("threshold").value = state.threshold ?? $("threshold").min;
  $("threshold-value").textContent = state.threshold === null ? "any" : state.threshold.toFixed(2);
  $("group").checked = state.group;
  const facets = answer?.facets || [];
  $("facets").hidden = !facets.length && !state.category;
  if (!answer) return;
  if (state.category && !facets.some((facet) => facet.category === state.category)) {
    facets.push({ category: state.category, count: 0 });
  }
  const button = (name, text, count) => make("button", {
    type: "button", dir: "auto", textContent: count === null ? text : `${text} ${count}`,
    onclick: () => { state.category = name; write(true); search(); },
    attributes: { "aria-pressed": String(state.category === name) },
  });
  const total = facets.reduce((sum, facet) => sum + facet.count, 0);
  $("facet-list").replaceChildren(
    button("", "All", total), ...facets.map((one) => button(one.category, one.category, one.count)));
}

function skeletons() {
  $("results").setAttribute("aria-busy", "true");
  $("welcome").hidden = true;
  drawQueries();
  drawOptions();
  const bone = () => make("li", { className: "card skeleton", attributes: { "aria-hidden": "true" } },
    make("div", { className: "view" }),
    make("div", { className: "text" }, make("span"), make("span")));
  $("results").replaceChildren(...Array.from({ length: Math.min(state.k, 12) }, bone));
}

function drawResults() {
  $("results").setAttribute("aria-busy", "false");
  const results = answer?.results || [];
  $("results").replaceChildren(...results.map(card));
  if (!answer) return say("");
  if (results.length) return say(`${results.length} ${results.length === 1 ? "result" : "results"}`);
  const remedies = [];
  if (state.threshold !== null) remedies.push("lower the minimum score");
  if (state.category) remedies.push("search all categories");
  say(`Nothing found${remedies.length ? `: ${remedies.join(", or ")}` : ""}.`);
}

function share(score) {
  const { similarity } = answer.index;
  if (similarity === "euclidean") return 1 / (1 - score);
  const best = similarity === "dot" ? Math.max(answer.results[0].score, 1e-9) : 1;
  return bounded(score / best, 0, 1);
}

function card(result, n) {
  const name = result.product || result.id;
  const view = make("button", {
    type: "button", className: "view", onclick: () => open(n),
    attributes: { "aria-label": `${name}: large view` },
  }, "no image");
  if (result.image) {
    const image = make("img", { loading: "lazy", alt: "", src: imageOf(result, 256) });
    image.onerror = () => image.replaceWith("image missing");
    view.replaceChildren(image);
  }
  const bar = make("span");
  bar.style.inlineSize = `${100 * share(result.score)}%`;
  const text = make("div", { className: "text" },
    make("strong", { textContent: name, dir: "auto" }),
    make("span", { className: "id", textContent: result.id, dir: "auto" }),
    make("span", { className: "category", textContent: result.category, dir: "auto" }),
    make("div", { className: "score" },
      make("span", { className: "bar", attributes: { "aria-hidden": "true" } }, bar),
      make("span", { textContent: result.score.toFixed(3), title: "Score; larger is nearer" })));
  const tools = make("div", { className: "tools" }, make("button", {
    type: "button", className: "more", textContent: "More like this",
    onclick: () => chooseItem(result.id), attributes: { "aria-label": `More like ${name}` },
  }));
  if (info?.feedback) {
    const votes = [[true, UP, "Right"], [false, DOWN, "Wrong"]].map(([good, path, word]) =>
      make("button", {
        type: "button", title: word, onclick: () => vote(result, good, votes),
        attributes: { "aria-pressed": "false", "aria-label": `${word}: ${name}` },
      }, icon(path)));
    tools.append(...votes);
  }
  text.append(tools);
  return make("li", { className: "card" }, view, text);
}

function open(n) {
  const result = answer.results[n];
  shown = n;
  $("large-title").textContent = result.product || result.id;
  $("large-caption").textContent = [result.id, result.category, result.score.toFixed(3)]
    .filter(Boolean).join(" · ");
  $("large-query").hidden = !current.address;
  if (current.address) $("large-query").src = current.address;
  $("large-item").hidden = !result.image;
  if (result.image) $("large-item").src = imageOf(result, 1024);
  $("large-item").alt = result.product || result.id;
  $("previous").disabled = n === 0;
  $("next").disabled = n === answer.results.length - 1;
  if (!$("large").open) $("large").showModal();
}

function step(by) {
  if (answer?.results[shown + by]) open(shown + by);
}

// ------------------------------------------------------------------ the crop box

const LEAST = 0.05; // side of a box

function setCrop(crop) {
  const whole = crop && crop.w > 0.98 && crop.h > 0.98;
  current.crop = whole ? null : crop;
  drawBox();
}

function startDrag(event) {
  if (!current || event.button) return;
  event.preventDefault();
  $("box").focus({ preventScroll: true });
  const frame = $("stage").getBoundingClientRect();
  const at = (e) => ({
    x: bounded((e.clientX - frame.left) / frame.width, 0, 1),
    y: bounded((e.clientY - frame.top) / frame.height, 0, 1),
  });
  const start = at(event);
  const before = current.crop;
  const box = before || { x: 0, y: 0, w: 1, h: 1 };
  const corner = event.target.closest(".corner");
  const moves = !corner && before && event.target.closest("#box");
  // The fixed point: the opposite corner, or the start of a new box.
  const fixed = corner
    ? { x: box.x + (1 - corner.dataset.x) * box.w, y: box.y + (1 - corner.dataset.y) * box.h } : start;
  // Keeps the offset between the pointer and the corner.
  const grip = corner
    ? { x: box.x + corner.dataset.x * box.w - start.x, y: box.y + corner.dataset.y * box.h - start.y }
    : { x: 0, y: 0 };
  const move = (e) => {
    const pointer = at(e);
    const now = { x: bounded(pointer.x + grip.x, 0, 1), y: bounded(pointer.y + grip.y, 0, 1) };
    if (moves) {
      return setCrop({ ...box, x: bounded(box.x + now.x - start.x, 0, 1 - box.w),
        y: bounded(box.y + now.y - start.y, 0, 1 - box.h) });
    }
    const [w, h] = [Math.abs(now.x - fixed.x), Math.abs(now.y - fixed.y)];
    if (w < LEAST || h < LEAST) return undefined;
    return setCrop({ x: Math.min(now.x, fixed.x), y: Math.min(now.y, fixed.y), w, h });
  };
  const end = () => {
    removeEventListener("pointermove", move);
    removeEventListener("pointerup", end);
    removeEventListener("pointercancel", end);
    if (JSON.stringify(current.crop) !== JSON.stringify(before)) search();
  };
  addEventListener("pointermove", move);
  addEventListener("pointerup", end);
  addEventListener("pointercancel", end);
}

function keyCrop(event) {
  const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (!step || !current) return;
  event.preventDefault();
  const { x, y, w, h } = current.crop || { x: 0.1, y: 0.1, w: 0.8, h: 0.8 };
  const [dx, dy] = step.map((side) => side * 0.03);
  if (event.shiftKey) setCrop({ x, y, w: bounded(w + dx, LEAST, 1 - x), h: bounded(h + dy, LEAST, 1 - y) });
  else setCrop({ x: bounded(x + dx, 0, 1 - w), y: bounded(y + dy, 0, 1 - h), w, h });
  soon();
}

// ------------------------------------------------------------------ start

function listen() {
  for (const id of ["file", "camera"]) {
    $(id).onchange = (event) => { addFiles(event.target.files); event.target.value = ""; };
  }
  $("words").onsubmit = (event) => {
    event.preventDefault();
    if ($("text").value.trim()) chooseText($("text").value.trim());
  };
  let depth = 0;
  const over = (by) => { depth = by ? depth + by : 0; document.body.classList.toggle("over", depth > 0); };
  addEventListener("dragenter", () => over(1));
  addEventListener("dragleave", () => over(-1));
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => { event.preventDefault(); over(0); addFiles(event.dataTransfer.files); });
  addEventListener("paste", (event) => { if (event.clipboardData.files.length) addFiles(event.clipboardData.files); });
  addEventListener("popstate", restore);
  $("stage").addEventListener("pointerdown", startDrag);
  $("box").addEventListener("keydown", keyCrop);
  $("whole").onclick = () => { setCrop(null); search(); };
  $("again").onclick = () => { $("trouble").hidden = true; search(); };
  $("options").open = matchMedia("(min-width: 52rem)").matches;
  $("options").onsubmit = (event) => event.preventDefault();
  $("k").oninput = () => { state.k = Number($("k").value); $("k-value").textContent = state.k; write(); soon(); };
  $("threshold").oninput = () => {
    const value = Number($("threshold").value);
    state.threshold = value <= Number($("threshold").min) ? null : value;
    $("threshold-value").textContent = state.threshold === null ? "any" : value.toFixed(2);
    write();
    soon();
  };
  $("group").onchange = () => { state.group = $("group").checked; write(); search(); };
  $("catalogue").onchange = () => {
    Object.assign(state, { catalogue: $("catalogue").value, category: "" });
    if (current?.id !== undefined) { queries = queries.filter((query) => query.id === undefined); [current] = queries; }
    write(true);
    describe().then(search);
  };
  $("previous").onclick = () => step(-1);
  $("next").onclick = () => step(1);
  $("large").onkeydown = (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by) step(document.dir === "rtl" ? -by : by);
  };
  $("large-more").onclick = () => { $("large").close(); chooseItem(answer.results[shown].id); };
}

async function describe() {
  info = await ask(`/v1/info?catalogue=${encodeURIComponent(state.catalogue)}`);
  $("about").textContent = `${info.items.toLocaleString()} items`;
  $("words").hidden = !info.text;
  $("catalogues").hidden = info.catalogues.length < 2;
  $("catalogue").replaceChildren(...info.catalogues.map((name) => make("option", {
    value: name, textContent: name, selected: name === info.catalogue })));
}

async function restore() {
  const { id, text } = read();
  try {
    await describe();
  } catch (error) {
    return complain(error.message);
  }
  if (id !== null) return chooseItem(id, true);
  if (text) return chooseText(text, true);
  current = queries.find((query) => query.key === history.state?.key) || null;
  answer = null;
  return search();
}

listen();
restore();
