"""Draws docs/serving.png: the search page over the glyphs that models.simple was trained on.

    prototrain train --model=models.simple && python -m benchmarks.page_image

It needs chromium and chromedriver. Unseen characters in nine typefaces are written as PNG files and
become the catalogue; the photo is one of them in a tenth typeface.
"""

import argparse
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
CHARACTERS = 60


def write(folder, size=192):
    """Writes images/PRODUCT/FACE.png; returns one image that is not among them."""
    from metriclearn.datasets import glyphs

    table = glyphs.load().where(split="test")
    products = list(dict.fromkeys(table.products.tolist()))[:CHARACTERS]
    query = None
    for product, pixels in zip(table.products.tolist(), table.images, strict=True):
        if product not in products:
            continue
        drawn = Image.fromarray(pixels.reshape(pixels.shape[:2]))
        drawn = drawn.resize((size, size), Image.Resampling.BICUBIC)
        place = folder / "images" / product.replace("/", "_")
        place.mkdir(parents=True, exist_ok=True)
        path = place / f"{len(list(place.iterdir()))}.png"
        drawn.save(path)
        if product == products[7] and query is None:
            query = path.rename(folder / "photo.png")
    return query


def shot(address, photo, target):
    """Uploads a photo and saves what the browser shows, at most 256 colors."""
    from selenium import webdriver
    from selenium.webdriver.support.ui import WebDriverWait

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(argument)
    driver = webdriver.Chrome(
        options=options, service=webdriver.ChromeService(shutil.which("chromedriver"))
    )
    try:
        sides = {"width": 1200, "height": 760, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", sides)
        driver.get(address)
        driver.find_element("id", "file").send_keys(str(photo))
        done = "return document.querySelector('.card img')?.complete"
        WebDriverWait(driver, 30).until(lambda _: driver.execute_script(done))
        time.sleep(1)
        driver.save_screenshot(str(target))
    finally:
        driver.quit()
    with Image.open(target) as image:
        image.convert("RGB").quantize(128).save(target, optimize=True)


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--output", default=str(ROOT / "docs/serving.png"))
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="page-image-") as text:
        folder = pathlib.Path(text)
        photo = write(folder)
        run = [sys.executable, "-m"]
        build = ["retrieval.build", "--model=models.simple", f"--folder={folder}/images"]
        subprocess.run([*run, *build, f"--output={folder}/index"], check=True)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        serve = ["retrieval.serve.main", f"--index={folder}/index", f"--port={port}"]
        serve += [f"--feedback={folder}/feedback.jsonl"]
        server = subprocess.Popen([*run, *serve])
        try:
            with Client(f"http://127.0.0.1:{port}") as client:
                while not client.ready():
                    time.sleep(0.1)
            shot(f"http://127.0.0.1:{port}", photo, options.output)
        finally:
            server.terminate()
            server.wait()
    print(f"{options.output}: {os.path.getsize(options.output)} bytes")


if __name__ == "__main__":
    main()
