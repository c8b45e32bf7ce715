"""Draws docs/serving.png, the search page, and docs/report.png, an evaluation's report.

    python -m benchmarks.page_image --index=shop-index
    python -m benchmarks.page_image --report=experiments/exp-ranker/analysis/model-0-report.html

Index and report are those of docs/tutorial.md, over examples/shop. It needs chromium and
chromedriver.
"""

import argparse
import contextlib
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time

from PIL import Image

from retrieval.client import Client

ROOT = pathlib.Path(__file__).parent.parent
PHOTO = ROOT / "examples/shop/photos/Bravo-Orange-Juice-test-1.jpg"


@contextlib.contextmanager
def browser(width, height):
    """A browser with a window of that size, in pixels."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(argument)
    driver = webdriver.Chrome(
        options=options, service=webdriver.ChromeService(shutil.which("chromedriver"))
    )
    try:
        sides = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", sides)
        yield driver
    finally:
        driver.quit()


def save(driver, target):
    """Saves what the browser shows, with at most 128 colors."""
    time.sleep(1)
    driver.save_screenshot(str(target))
    with Image.open(target) as image:
        image.convert("RGB").quantize(128).save(target, optimize=True)
    print(f"{target}: {os.path.getsize(target)} bytes")


def draw_page(index, target):
    """The search page of an index, with the answer to a photo."""
    from selenium.webdriver.support.ui import WebDriverWait

    with tempfile.TemporaryDirectory(prefix="page-image-") as folder:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        serve = ["retrieval.serve.main", f"--index={index}", f"--port={port}"]
        serve += [f"--feedback={folder}/feedback.jsonl"]
        server = subprocess.Popen([sys.executable, "-m", *serve])
        try:
            with Client(f"http://127.0.0.1:{port}") as client:
                while not client.ready():
                    time.sleep(0.1)
            with browser(1200, 760) as driver:
                driver.get(f"http://127.0.0.1:{port}")
                driver.find_element("id", "file").send_keys(str(PHOTO))
                done = "return document.querySelector('.card img')?.complete"
                WebDriverWait(driver, 30).until(lambda _: driver.execute_script(done))
                save(driver, target)
        finally:
            server.terminate()
            server.wait()


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--index", help="of the search page")
    arguments.add_argument("--report", help="HTML file of an evaluation")
    options = arguments.parse_args()
    if options.index:
        draw_page(options.index, ROOT / "docs/serving.png")
    if options.report:
        with browser(1000, 700) as driver:
            driver.get(pathlib.Path(options.report).resolve().as_uri())
            save(driver, ROOT / "docs/report.png")


if __name__ == "__main__":
    main()
