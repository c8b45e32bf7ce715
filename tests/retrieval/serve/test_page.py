"""The page in a real browser: upload, drop, paste, crop, filters, items, layout, accessibility."""

import base64
import io
import pathlib
import shutil

import httpx
import numpy as np
import pytest
from PIL import Image

from retrieval.evaluation import feedback

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="no browser: apt-get install chromium chromium-driver"
)
ARGUMENTS = [
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
    *("--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--hide-scrollbars"),
]


class Page:
    """The page in a browser, with short names for what a user does."""

    def __init__(self, driver, address):
        self.driver, self.address = driver, address

    def open(self, path="/"):
        self.driver.get(self.address + path)
        self.wait("return document.readyState === 'complete' && $('about').textContent")

    def run(self, code, *arguments):
        short = "const $ = (id) => document.getElementById(id); "
        return self.driver.execute_script(short + code, *arguments)

    def wait(self, code):
        """Waits until a script returns something true."""
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, 30, 0.05).until(lambda _: self.run(code))

    def settled(self):
        """Waits for the answer; returns the products shown."""
        self.wait(
            "return $('results').getAttribute('aria-busy') === 'false' || !$('trouble').hidden"
        )
        return self.run(
            "return [...document.querySelectorAll('.card strong')].map((e) => e.textContent)"
        )

    def click(self, selector, n=0):
        from selenium.webdriver.common.by import By

        element = self.driver.find_elements(By.CSS_SELECTOR, selector)[n]
        self.run("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def upload(self, *paths):
        self.run("$('results').removeAttribute('aria-busy')")
        self.driver.find_element("id", "file").send_keys("\n".join(map(str, paths)))
        return self.settled()

    def give(self, event, data):
        """Drops or pastes a file, as the browser would tell the page."""
        self.run("$('results').removeAttribute('aria-busy')")
        self.run(
            """const bytes = Uint8Array.from(atob(arguments[1]), (c) => c.charCodeAt(0));
            const all = new DataTransfer();
            all.items.add(new File([bytes], "given.png", { type: "image/png" }));
            const options = { bubbles: true, cancelable: true };
            window.dispatchEvent(arguments[0] === "drop"
              ? new DragEvent("drop", { ...options, dataTransfer: all })
              : new ClipboardEvent("paste", { ...options, clipboardData: all }));""",
            event,
            base64.b64encode(data).decode(),
        )
        return self.settled()

    def screen(self, width, height, dark=False):
        command = self.driver.execute_cdp_cmd
        sides = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        command("Emulation.setDeviceMetricsOverride", sides)
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        command("Emulation.setEmulatedMedia", {"features": [theme]})

    def shot(self):
        """uint8 [height, width, 3]: what the screen shows."""
        data = self.driver.get_screenshot_as_png()
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))

    def errors(self):
        """What the console has shown since this was asked last."""
        return [line for line in self.driver.get_log("browser") if line["level"] == "SEVERE"]


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    selenium = pytest.importorskip("selenium.webdriver", reason="pip install '.[test]'")
    options = selenium.ChromeOptions()
    options.binary_location = BROWSER
    for argument in (*ARGUMENTS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = selenium.ChromeService(DRIVER)
    made = selenium.Chrome(options=options, service=service)
    yield made
    made.quit()


@pytest.fixture
def page(driver, serving):
    made = Page(driver, serving[0])
    made.screen(1200, 900)
    made.open()
    made.errors()
    yield made
    assert made.errors() == []


@pytest.fixture
def file(shop):
    """The path of an image of the shop, by product."""
    return lambda product, n=0: shop[0] / f"images/{product}-{n}.png"


def test_a_photo_is_uploaded_dropped_and_pasted(page, file, photo):
    assert page.run("return !$('welcome').hidden && $('query').hidden")
    assert page.upload(file(5))[:2] == ["p5", "p5"]
    assert page.run("return $('welcome').hidden && $('photo').naturalWidth === 96")
    assert page.give("drop", photo(7))[0] == "p7"
    assert page.give("paste", photo(2))[0] == "p2"
    assert len(page.run("return [...document.querySelectorAll('#queries li')]")) == 3
    assert page.run("return $('status').textContent") == "20 results"


def test_several_photos_are_switched_between(page, file):
    assert page.upload(file(1), file(2), file(4))[0] == "p1"
    names = page.run(
        "return [...document.querySelectorAll('#queries button:not(.remove)')].map((b) => b.title)"
    )
    assert sorted(names) == ["1-0.png", "2-0.png", "4-0.png"] and names[0] == "1-0.png"
    page.run("$('results').removeAttribute('aria-busy')")
    page.click("#queries button:not(.remove)", names.index("4-0.png"))
    assert page.settled()[0] == "p4"
    page.click("#queries .remove", 0)
    page.wait("return document.querySelectorAll('#queries li').length === 2")
    page.driver.back()  # to the photo before
    assert page.run("return location.search") == ""


def test_a_part_of_a_photo_is_searched(page, file, tmp_path):
    """Two products side by side: the box says which one is meant."""
    both = Image.new("RGB", (192, 96))
    both.paste(Image.open(file(4)), (0, 0))
    both.paste(Image.open(file(9)), (96, 0))
    both.save(tmp_path / "both.png")
    from selenium.webdriver import ActionChains, Keys

    page.upload(tmp_path / "both.png")
    width = page.run("return $('stage').getBoundingClientRect().width")
    drag = ActionChains(page.driver, duration=50)
    corners = page.driver.find_elements("css selector", ".corner")
    for corner, by, expected in ((3, -width / 2, "p4"), (0, width / 2, "p9")):
        if page.run("return !$('whole').hidden"):
            page.click("#whole")
            page.settled()
        page.run("$('results').removeAttribute('aria-busy')")
        drag.drag_and_drop_by_offset(corners[corner], int(by), 0).perform()
        assert page.settled()[0] == expected
    box = page.run("return $('box').style.left")
    page.run("$('results').removeAttribute('aria-busy')")
    page.driver.find_element("id", "box").send_keys(Keys.ARROW_LEFT)
    assert page.run("return parseFloat($('box').style.left)") < float(box.strip("%"))
    page.settled()
    page.click("#whole")
    page.settled()
    assert page.run("return $('box').classList.contains('full')")
    page.run("$('results').removeAttribute('aria-busy')")
    stage = page.driver.find_element("id", "stage")
    drag.move_to_element_with_offset(stage, -40, -15).click_and_hold().move_by_offset(60, 30)
    drag.release().perform()  # a new box
    page.settled()
    left, crop = page.run(
        "return [parseFloat($('box').style.left), parseFloat($('box').style.width)]"
    )
    assert 0 < left < 50 and abs(crop - 100 * 60 / width) < 3


def test_an_item_is_searched_and_its_address_shared(page, file):
    page.upload(file(5))
    page.click(".more", 1)
    page.wait("return location.search.startsWith('?id=') && $('caption').textContent")
    page.wait("return document.querySelector('.card strong')")
    assert page.settled()[0] == "p5"
    address = page.run("return location.search")
    page.click("#facet-list button", 2)
    page.settled()
    shared = page.run("return location.pathname + location.search")
    assert address in shared and "category=" in shared
    category = shared.split("category=")[1]
    page.open(shared)
    page.wait("return document.querySelector('.card .category')")
    kinds = page.run("return [...document.querySelectorAll('.card .category')]"
                     ".map((e) => e.textContent)")  # fmt: skip
    assert set(kinds) == {category}
    assert page.run("return location.pathname + location.search") == shared
    page.driver.back()
    page.open("/?id=nothing")
    page.wait("return !$('trouble').hidden")
    assert "no item has the id" in page.run("return $('trouble-text').textContent")
    assert [line for line in page.errors() if "404" not in line["message"]] == []


def test_filters(page, file):
    page.upload(file(4))
    labels = page.run("return [...document.querySelectorAll('#facet-list button')]"
                      ".map((b) => b.textContent)")  # fmt: skip
    assert labels[0] == "All 24" and sorted(labels[1:]) == ["even 12", "odd 12"]
    change = """const e = $(arguments[0]); e.value = arguments[1];
                e.dispatchEvent(new Event("input"));
                $('results').removeAttribute('aria-busy');"""
    page.run(change, "k", 3)
    assert len(page.settled()) == 3 and "k=3" in page.run("return location.search")
    page.run("$('results').removeAttribute('aria-busy')")
    page.click("#group")
    products = page.settled()
    assert len(set(products)) == 3 and "group=product" in page.run("return location.search")
    page.run(change, "threshold", 1)
    assert page.settled() in ([], ["p4"])
    page.run(change, "threshold", 0.99)
    page.settled()
    page.open(page.run("return location.search"))
    assert page.run("return [$('k').value, $('group').checked, $('threshold').value]") == [
        "3", True, "0.99",
    ]  # fmt: skip


def test_nothing_found_and_what_is_no_image_are_said(page, file, tmp_path):
    page.open("/?threshold=1.5")
    assert page.upload(file(4)) == []
    assert page.run("return $('status').textContent").startswith("Nothing found: lower the minimum")
    (tmp_path / "a.png").write_text("no image")
    page.upload(tmp_path / "a.png")
    page.wait("return !$('trouble').hidden")
    assert "not a JPEG" in page.run("return $('trouble-text').textContent")
    assert page.run("return document.activeElement") is not None
    assert [line for line in page.errors() if "422" not in line["message"]] == []


def test_while_the_answer_is_on_its_way(page, file):
    page.run(
        """const real = window.fetch; window.go = null;
        window.fetch = (...all) => new Promise((done) => {
          window.go = () => done(real(...all)); });"""
    )
    page.driver.find_element("id", "file").send_keys(str(file(1)))
    page.wait("return Boolean(window.go)")
    assert page.run("return document.querySelectorAll('.skeleton').length") == 12
    assert page.run("return $('results').getAttribute('aria-busy')") == "true"
    page.run("window.go()")
    assert page.settled()[0] == "p1"
    page.run("window.fetch = () => Promise.reject(new TypeError('no network'))")
    page.driver.find_element("id", "file").send_keys(str(file(2)))
    page.wait("return !$('trouble').hidden")
    assert "cannot be reached" in page.run("return $('trouble-text').textContent")


def test_a_large_view_beside_the_query(page, file):
    from selenium.webdriver import Keys

    page.upload(file(6))
    page.click(".view", 1)
    assert page.run("return $('large').open && $('large-title').textContent") == "p6"
    page.wait("return $('large-item').complete && $('large-item').naturalWidth > 0")
    boxes = page.run("""return ['large-query', 'large-item'].map((id) => {
        const r = $(id).getBoundingClientRect(); return [r.left, r.right, r.top]; })""")
    assert boxes[0][1] <= boxes[1][0] and boxes[0][2] == boxes[1][2]
    first = page.run("return $('large-caption').textContent")
    page.driver.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    assert page.run("return $('large-caption').textContent") != first
    page.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    page.wait("return !$('large').open")


def test_a_judgment_is_recorded(page, file, feedback_file):
    page.upload(file(8))
    page.click(".card:nth-child(1) .tools button", 1)
    page.wait("return document.querySelector('[aria-label=\"Right: p8\"][aria-pressed=true]')")
    page.click(".card:nth-child(2) .tools button", 2)
    page.wait("return document.querySelectorAll('.tools [aria-pressed=true]').length === 2")
    query = [line for line in feedback.read(feedback_file) if line["product"] == "p8"]
    assert sorted(line["good"] for line in query) == [False, True]


def test_names_are_shown_as_text(page, file, nasty):
    page.open("/?k=100")
    page.upload(file(3))
    names = page.run("return [...document.querySelectorAll('.card .id')].map((e) => e.textContent)")
    assert nasty in names and page.run("return document.querySelectorAll('#results b').length") == 0


LAYOUTS = [(360, 780), (768, 1024), (1200, 900), (3840, 2160)]


@pytest.mark.parametrize("direction", ["ltr", "rtl"])
def test_everything_fits_at_every_width_and_in_both_directions(page, file, direction):
    page.upload(file(3))
    page.run("document.dir = arguments[0]", direction)
    for width, height in LAYOUTS:
        page.screen(width, height)
        assert page.run("return document.documentElement.scrollWidth") <= width
        cards = page.run("""return [...document.querySelectorAll('.card')].map((e) => {
            const r = e.getBoundingClientRect(); return [r.left, r.right, r.top, r.bottom]; })""")
        for n, (left, right, top, bottom) in enumerate(cards):
            assert 0 <= left < right <= width
            for other in cards[n + 1 :]:
                apart = (
                    right <= other[0] or other[1] <= left or bottom <= other[2] or other[3] <= top
                )
                assert apart, f"cards overlap at {width}"
        clipped = page.run("""return [...document.querySelectorAll('.card .text *, #panel button')]
            .filter((e) => e.scrollWidth > e.clientWidth + 1 && e.clientWidth).length""")
        assert clipped == 0, f"text is cut at {width}"
    page.run("document.dir = ''")


@pytest.mark.parametrize("dark", [False, True])
def test_light_and_dark_are_drawn(page, file, dark):
    """The screen's corner is the background; the photos of the cards are in it, in proportion."""
    page.screen(1200, 900, dark)
    page.upload(file(3))
    page.wait("return [...document.images].every((i) => i.complete || i.loading === 'lazy')"
              " && document.querySelector('.card img').complete")  # fmt: skip
    screen = page.shot()
    assert screen.shape == (900, 1200, 3)
    background = screen[880:, :10].mean()
    assert background < 40 if dark else background > 240
    left, top, width, height = page.run(
        "const r = document.querySelector('.card img').getBoundingClientRect();"
        "return [r.left, r.top, r.width, r.height]"
    )
    drawn = screen[int(top) : int(top + height), int(left) : int(left + width)]
    with Image.open(file(3)) as image:
        expected = np.asarray(image.convert("RGB").resize((8, 8), Image.Resampling.BOX), float)
    found = np.asarray(Image.fromarray(drawn).resize((8, 8), Image.Resampling.BOX), float)
    assert abs(found - expected).mean() < 16  # JPEG, and a pixel of shift


def test_axe_finds_nothing_serious(page, file):
    axe = pytest.importorskip("axe_core_python", reason="pip install '.[test]'")
    code = (pathlib.Path(axe.__file__).parent / "axe.min.js").read_text()

    def problems(what):
        page.run(code)
        found = page.driver.execute_async_script(
            "axe.run().then((r) => arguments[0](r.violations.map((v) => "
            "[v.impact, v.id, v.nodes[0].html])))"
        )
        return [(what, *one) for one in found if one[0] in ("serious", "critical")]

    assert problems("start") == []
    page.upload(file(3), file(4))
    for dark in (False, True):
        page.screen(1200, 900, dark)
        assert problems(f"results, dark={dark}") == []
    page.click(".view", 0)
    assert problems("large view") == []
    page.run("$('large').close()")


def test_the_keyboard_is_enough(page, file):
    """Every control can be reached by Tab, in the order of the page."""
    from selenium.webdriver import ActionChains, Keys

    page.upload(file(3))
    page.run("document.activeElement.blur(); scrollTo(0, 0)")
    seen = []
    for _ in range(30):
        ActionChains(page.driver).send_keys(Keys.TAB).perform()
        seen.append(
            page.run("const e = document.activeElement; return e.id || e.className || e.tagName")
        )
    wanted = ["skip", "home", "file", "box", "SUMMARY", "k", "threshold", "group", "view", "more"]
    places = [seen.index(name) for name in wanted]
    assert places == sorted(places)


def test_nothing_comes_from_elsewhere(page, file):
    page.upload(file(3))
    origins = page.run("return performance.getEntriesByType('resource')"
                       ".map((e) => new URL(e.name).origin)")  # fmt: skip
    assert set(origins) - {"null"} == {page.address}


def test_a_token_is_asked_for_once(driver, start, shop, file):
    with start(f"shop={shop[0]}/i", token="sésame") as (address, _):
        page = Page(driver, address)
        page.screen(1200, 900)
        driver.get(address)
        for given in ("wrong", "sésame"):
            page.wait("return $('login').open")
            driver.find_element("id", "token").send_keys(given)
            page.click("#login .primary")
            page.wait("return !$('login').open || $('token').value === ''")
        page.wait("return $('about').textContent")
        assert page.upload(file(5))[0] == "p5"
        page.wait("return document.querySelector('.card img').naturalWidth > 0")
        assert httpx.get(f"{address}/v1/info").status_code == 401
        page.errors()
        driver.delete_all_cookies()


def test_words_are_searched_where_the_model_takes_them(driver, page, worded, start):
    assert page.run("return $('words').hidden")
    with start(f"{worded}/i") as (address, _):
        page = Page(driver, address)
        page.open()
        assert page.run("return !$('words').hidden")
        driver.find_element("id", "text").send_keys(" blue red blue ")
        page.run("$('results').removeAttribute('aria-busy')")
        page.click("#words button")
        assert page.settled()[0] == "blue"
        assert page.run("return $('caption').textContent") == "blue red blue"
        page.open("/?text=green")
        assert page.settled()[0] == "green"
        assert page.errors() == []
