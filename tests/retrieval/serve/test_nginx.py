"""`deploy/nginx.conf` before a running server, where nginx is installed."""

import os
import pathlib
import shutil
import socket
import subprocess
import time

import httpx
import pytest

from retrieval import client

NGINX = shutil.which("nginx", path=os.pathsep.join([os.environ["PATH"], "/usr/sbin"]))
CONFIGURATION = pathlib.Path(__file__).parents[3] / "deploy/nginx.conf"
MAIN = """
daemon off; {user} pid pid; error_log stderr;
events {{ }}
http {{
    access_log access.log; client_body_temp_path body; proxy_temp_path proxy;
    fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;
    {given}
}}
"""


@pytest.fixture
def proxy(serving, tmp_path):
    """The address of nginx before the server; it lets 5 searches pass in a minute."""
    if NGINX is None:
        pytest.skip("no nginx: apt-get install nginx-light")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    given = CONFIGURATION.read_text()
    for old, new in (
        ("127.0.0.1:8000", serving[0].removeprefix("http://")),
        ("listen 80;", f"listen 127.0.0.1:{port};"),
        ("rate=20r/s", "rate=1r/m"),
        ("burst=40", "burst=4"),
    ):
        assert given.count(old) == 1, old
        given = given.replace(old, new)
    # Its workers must reach the temporary folder.
    user = "user root;" if os.getuid() == 0 else ""
    (tmp_path / "nginx.conf").write_text(MAIN.format(user=user, given=given))
    command = [NGINX, "-e", "stderr", "-p", str(tmp_path), "-c", "nginx.conf"]
    with subprocess.Popen(command) as process:
        try:
            address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 60
            while not client.Client(address).ready() and time.monotonic() < deadline:
                assert process.poll() is None, "nginx has ended"
                time.sleep(0.02)
            yield address
        finally:
            process.terminate()


def test_the_example_of_nginx_serves_and_refuses_as_the_server_does(proxy, photo, tmp_path):
    with client.Client(proxy, retries=0) as search:
        large = photo(3) + bytes(9 * 2**20)  # the end of a PNG file may be followed by anything
        for image in (photo(3), large):
            assert search.search(image, k=1).results[0].product == "p3"
        assert search.image("images/3-0.png").startswith(b"\xff\xd8\xff"), "an id with a slash"
        with pytest.raises(client.ServeError, match="10 MiB") as error:
            search.search(large + bytes(2 * 2**20))
        assert error.value.status == 413
        for _ in range(3):
            search.search(id="images/3-0.png")
        with pytest.raises(client.ServeError, match="Too many") as error:
            search.search(id="images/3-0.png")
        assert (error.value.status, error.value.retry_after) == (503, 1)
    page = httpx.get(proxy)
    assert (
        page.status_code == 200 and "default-src 'none'" in page.headers["content-security-policy"]
    )
    assert (tmp_path / "access.log").read_text().count("POST /v1/search") == 7
