"""Runs what the Dockerfile's last lines run, in this environment, which has what it installs.

    python tests/served_image.py

The server must start, pass the health check, answer the client, show the page, and drain.
"""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).parent.parent
PORT = 8765


def command(name):
    """The arguments of the Dockerfile's ENTRYPOINT, CMD or HEALTHCHECK."""
    text = (ROOT / "deploy/Dockerfile").read_text().replace("\\\n", "")
    return json.loads(re.search(rf"^{name} [^[]*(\[.*\])$", text, re.M)[1])


def build(folder):
    """An index of four gray images that carries a model of one matrix."""
    import tensorflow as tf
    from PIL import Image

    from retrieval.catalogue import index
    from retrieval.embeddings import store
    from retrieval.embeddings.embedder import Embedder

    def graph(session):
        images = tf.compat.v1.placeholder(tf.uint8, [None, 8, 8, 1], "image")
        return {"image": images}, tf.reshape(tf.cast(images, tf.float32), [-1, 64]) - 127.0

    source = {"checkpoint_sha256": "w"}
    with Embedder.of_graph(graph, size=(8, 8), channels=1, source=source) as embedder:
        paths = [f"{folder}/{n}.png" for n in range(4)]
        for n, path in enumerate(paths):
            pixels = np.random.default_rng(n).integers(0, 256, (8, 8)).astype(np.uint8)
            Image.fromarray(pixels).save(path)
        names = np.array(list("abcd"))
        found = store.Embedded(embedder.embed(paths), names, names, names, paths=np.array(paths))
        os.makedirs(f"{folder}/store")
        manifest = store.begin(f"{folder}/store", source)
        store.append(f"{folder}/store", manifest, found, 1)
        store.finish(f"{folder}/store", manifest)
        index.build(f"{folder}/store", f"{folder}/index", "Flat", save_model=embedder.save)
    return paths


def main():
    from retrieval.client import Client

    with tempfile.TemporaryDirectory() as folder:
        paths = build(folder)
        name, *arguments = [*command("ENTRYPOINT"), *command("CMD")]
        program = os.path.join(os.path.dirname(sys.executable), name)
        place = {"--port=8000": f"--port={PORT}", "--index=/index": f"--index={folder}/index"}
        process = subprocess.Popen(
            [program, *(place.get(argument, argument) for argument in arguments)],
            cwd=folder,
            env=os.environ | {"PROTOTRAIN_TOKEN": "secret"},
        )
        try:
            with Client(f"http://127.0.0.1:{PORT}", token="secret") as client:
                while not client.ready():
                    assert process.poll() is None, "the server has ended"
                    time.sleep(0.1)
                assert client.search(paths[2], k=1).results[0].id == "c"
                assert b"Search by photo" in client._http.get("/").content
                assert client._http.get("/static/app.js").status_code == 200
            check = command("HEALTHCHECK")[1:]
            check = [text.replace(":8000", f":{PORT}") for text in check]
            assert subprocess.run([sys.executable, *check]).returncode == 0
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
            assert (
                subprocess.run([sys.executable, *check], stderr=subprocess.DEVNULL).returncode != 0
            )
        finally:
            process.kill()
    print("the image's command serves")


if __name__ == "__main__":
    main()
