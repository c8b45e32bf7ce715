"""A small search to report, and a browser to look at pages."""

import dataclasses
import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from retrieval.embeddings import store
from retrieval.evaluation.figures import Files


@pytest.fixture
def circle():
    """Queries at angles on a circle, and a catalogue of four products, one image each."""
    turn = np.radians([0, 90, 180, 270])
    points = np.stack([np.cos(turn), np.sin(turn)], 1).astype(np.float32)
    products = np.array([*"abcd"])
    catalogue = store.Embedded(points, np.array([*"1234"]), products, np.full(4, ""))
    turn = np.radians([1, 2, 89, 130, 181, 200])
    points = np.stack([np.cos(turn), np.sin(turn)], 1).astype(np.float32)
    labels = np.array(["a", "d", "b", "b", "a", "a"])
    queries = store.Embedded(points, np.array([f"q{n}" for n in range(6)]), labels, np.full(6, ""))
    return queries, catalogue


@pytest.fixture
def stored():
    """Completes an evaluation as one of files."""

    def complete(result):
        source = Files(queries="q.npy", catalogue=None, made_by=[])
        return dataclasses.replace(
            result, figures=dataclasses.replace(result.figures, source=source)
        )

    return complete


LOOK = """<!doctype html><body><script>
const found = {};
for (const width of [390, 1280]) {
  const frame = document.createElement('iframe');
  frame.width = width; frame.height = 800; frame.src = 'PAGE';
  frame.onload = () => {
    const page = frame.contentDocument, root = page.documentElement;
    const right = Math.max(...[...page.querySelectorAll('h1,figure,.card,svg,p,li')].map(
      element => element.getBoundingClientRect().right));
    found[width] = {wide: Math.max(root.scrollWidth, right), text: root.textContent,
      titles: [...page.querySelectorAll('body > section > h2')].map(h => h.textContent),
      dead: [...page.querySelectorAll('nav a')].filter(
        a => !page.getElementById(a.getAttribute('href').slice(1))).length};
    if (Object.keys(found).length == 2) document.body.textContent = JSON.stringify(found);
  };
  document.body.append(frame);
}
</script>"""


USE = """<!doctype html><body><iframe width=WIDTH height=800 src="PAGE"></iframe><script>
const frame = document.querySelector('iframe');
const wait = () => new Promise(done => setTimeout(done, 50));
frame.onload = async () => {
  const view = frame.contentWindow, page = frame.contentDocument;
  const all = (selector, root = page) => [...root.querySelectorAll(selector)];
  const one = (selector, root = page) => root.querySelector(selector);
  const press = (key, more = {}) => (page.activeElement || page.body).dispatchEvent(
    new view.KeyboardEvent('keydown', {key, bubbles: true, cancelable: true, ...more}));
  const seen = {errors: []};
  view.onerror = message => seen.errors.push(message);
  try {
    view.focus();
    await (async () => { STEPS })();
  } catch (error) { seen.errors.push(String(error)); }
  document.body.textContent = JSON.stringify(seen);
};
</script>"""


@pytest.fixture
def browser(tmp_path):
    """Shows a page of our own in a browser, and returns the JSON that its script leaves behind."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip("no Chromium on this machine: the page was not looked at in a browser")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    flags += ["--allow-file-access-from-files", "--virtual-time-budget=20000"]

    def show(text):
        (tmp_path / "look.html").write_text(text)
        seen = subprocess.run(
            [program, *flags, "--dump-dom", f"file://{tmp_path}/look.html"],
            capture_output=True, text=True, timeout=120, check=True,
        ).stdout  # fmt: skip
        return json.loads(html.unescape(re.search(r"<body>(.*)</body>", seen, re.DOTALL)[1]))

    return show


@pytest.fixture
def looks(browser):
    """Shows a page in a browser on a phone and on a desktop, and returns {width: what was seen}."""
    return lambda path: browser(LOOK.replace("PAGE", f"file://{path}"))


@pytest.fixture
def uses(browser):
    """Uses a page at a width in a browser.

    The steps, JavaScript, write to `seen`; they have `page`, `view` (its window), `one`, `all`,
    `press(key)` and `await wait()`.
    """

    def use(path, width, steps):
        text = USE.replace("PAGE", f"file://{path}").replace("WIDTH", str(width))
        return browser(text.replace("STEPS", steps))

    return use
