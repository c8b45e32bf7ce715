"""The Dockerfile and the examples that run its image; `.ci/run` also runs the image's command.

tests/retrieval/serve/test_nginx.py runs the example of nginx.
"""

import fnmatch
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
import yaml
from absl import flags

from retrieval.serve import limits, main

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import served_image

ROOT = pathlib.Path(__file__).parent.parent
DOCKERFILE = (ROOT / "deploy/Dockerfile").read_text()
COMPOSE_FILE = (ROOT / "deploy/compose.yaml").read_text()
COMPOSE = yaml.safe_load(COMPOSE_FILE)
DEPLOYMENT, SERVICE = yaml.safe_load_all((ROOT / "deploy/kubernetes.yaml").read_text())
POD = DEPLOYMENT["spec"]["template"]["spec"]
PROBES = {"startup": "/readyz", "readiness": "/readyz", "liveness": "/healthz"}


def test_hadolint_finds_nothing():
    hadolint = shutil.which("hadolint", path=str(pathlib.Path(sys.executable).parent))
    if hadolint is None:
        pytest.skip("no hadolint: pip install '.[test]'")
    done = subprocess.run([hadolint, ROOT / "deploy/Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_image_runs_as_nobody_and_checks_its_health():
    assert "\nUSER 10001\n" in DOCKERFILE and "slim" in DOCKERFILE
    assert "/readyz" in " ".join(served_image.command("HEALTHCHECK"))


def test_what_is_copied_exists_and_is_not_ignored():
    kept = [
        line.removeprefix("!")
        for line in (ROOT / "deploy/Dockerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    copied = [
        word
        for line in DOCKERFILE.splitlines()
        if line.startswith("COPY")
        for word in line.split()[1:-1]
    ]
    assert sorted(copied) == sorted(kept)
    assert all((ROOT / name).exists() for name in copied)
    setup = (ROOT / "setup.cfg").read_text().split("[options.packages.find]")[1].split("[")[0]
    packages = [line.strip() for line in setup.splitlines() if line.strip().endswith("*")]
    assert all(any(fnmatch.fnmatch(name, pattern) for name in copied) for pattern in packages)


@pytest.mark.parametrize(
    "arguments",
    [
        served_image.command("CMD"),
        COMPOSE["services"]["search"]["command"],
        POD["containers"][0]["args"],
    ],
)
def test_the_commands_are_understood(arguments):
    options = flags.FlagValues()
    main.define_flags(options)
    program, verb, *fixed = served_image.command("ENTRYPOINT")
    assert (program, verb) == ("prototrain", "serve")
    assert options([program, *fixed, *arguments]) == [program]
    assert options.host == "0.0.0.0" and not options.open, "a token must be asked for"


def test_compose_is_as_its_specification_says():
    compose_spec = pytest.importorskip("compose_spec", reason="pip install '.[test]'")
    # As the program does it; the parser takes values only.
    filled = re.sub(r"\$\{\w+(?::-([^}]*)|[^}]*)\}", lambda found: found[1] or "x", COMPOSE_FILE)
    services = compose_spec.PyCompose.from_yaml(filled).service_names()
    assert sorted(services) == ["prometheus", "search"]
    with pytest.raises(ValueError, match="readonly"):
        compose_spec.PyCompose.from_yaml(filled.replace("read_only", "readonly"))


@pytest.mark.parametrize("resource", [DEPLOYMENT, SERVICE], ids=lambda found: found["kind"])
def test_kubernetes_takes_the_example(resource):
    kubernetes = pytest.importorskip("kubernetes_validate", reason="pip install '.[test]'")
    version = kubernetes.latest_version()
    kubernetes.validate(resource, version, strict=True)
    with pytest.raises(kubernetes.ValidationError, match="specs"):
        kubernetes.validate(resource | {"specs": {}}, version, strict=True)


def test_kubernetes_refers_to_what_there_is():
    (container,) = POD["containers"]
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    assert DEPLOYMENT["spec"]["selector"]["matchLabels"] == SERVICE["spec"]["selector"] == labels
    (port,) = container["ports"]
    assert f"--port={port['containerPort']}" in served_image.command("ENTRYPOINT")
    assert SERVICE["spec"]["ports"][0]["targetPort"] == port["name"]
    probes = {name: container[f"{name}Probe"]["httpGet"] for name in PROBES}
    assert {name: probe["path"] for name, probe in probes.items()} == PROBES
    assert set(PROBES.values()) <= set(limits.PUBLIC), "a probe carries no token"
    assert all(probe["port"] == port["name"] for probe in probes.values())
    assert {v["name"] for v in POD["volumes"]} == {v["name"] for v in container["volumeMounts"]}
    stop = float(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert POD["terminationGracePeriodSeconds"] > stop + limits.Limits().timeout


def test_compose_refers_to_what_there_is():
    search = COMPOSE["services"]["search"]
    assert (ROOT / "deploy" / search["build"]["context"] / search["build"]["dockerfile"]).exists()
    for config in COMPOSE["configs"].values():
        assert "content" in config or (ROOT / "deploy" / config["file"]).exists()
    scrape = yaml.safe_load((ROOT / "deploy/prometheus.yml").read_text())["scrape_configs"]
    targets = [target for one in scrape[0]["static_configs"] for target in one["targets"]]
    assert targets == ["search:8000"] and "--port=8000" in served_image.command("ENTRYPOINT")
