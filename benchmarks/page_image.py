"""Draws docs/serving.png: the search page over the shop of examples/shop.

    python -m benchmarks.page_image --index=shop-index

The index is the one that docs/tutorial.md builds. It needs chromium and chromedriver.
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
PHOTO = ROOT / "examples/shop/photos/Bravo-Orange-Juice-test-1.jpg"


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
    arguments.add_argument("--index", required=True)
    arguments.add_argument("--output", default=str(ROOT / "docs/serving.png"))
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="page-image-") as folder:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        serve = ["retrieval.serve.main", f"--index={options.index}", f"--port={port}"]
        serve += [f"--feedback={folder}/feedback.jsonl"]
        server = subprocess.Popen([sys.executable, "-m", *serve])
        try:
            with Client(f"http://127.0.0.1:{port}") as client:
                while not client.ready():
                    time.sleep(0.1)
            shot(f"http://127.0.0.1:{port}", PHOTO, options.output)
        finally:
            server.terminate()
            server.wait()
    print(f"{options.output}: {os.path.getsize(options.output)} bytes")


if __name__ == "__main__":
    main()
