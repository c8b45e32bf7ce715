"""The machine and the versions that figures were measured with."""

import importlib.metadata
import os
import pathlib
import platform
import re
import subprocess

from benchmarks import peer

# Processor flags that decide which kernels run, as the kernel spells them.
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8")
PACKAGES = ("tensorflow", "numpy", "faiss-cpu", "numkong", "keras")
PEERS = ("torch", "pytorch-metric-learning")


def described():
    """{'processor', 'make', 'flags', 'cores', 'memory_gib', 'gpus', 'system', 'versions'}."""
    cpu = _cpu()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": cpu.get("model name", platform.machine()),
        "make": {"AuthenticAMD": "AMD", "GenuineIntel": "Intel"}.get(
            cpu.get("vendor_id"), cpu.get("vendor_id", "unknown")
        ),
        "flags": [flag for flag in FLAGS if flag in cpu.get("flags", "").split()],
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory, 1),
        "gpus": _gpus(),
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "versions": {name: _version(name) for name in PACKAGES} | _peer_versions(),
    }


def in_words(machine):
    """One line: processor, cores, flags, memory, GPUs."""
    parts = [machine["processor"], f"{machine['cores']} cores"]
    if machine.get("flags"):
        parts.append(" ".join(machine["flags"]))
    if machine.get("memory_gib"):
        parts.append(f"{machine['memory_gib']:.0f} GiB")
    return ", ".join([*parts, *machine.get("gpus", [])])


def _cpu():
    """The first processor's lines in /proc/cpuinfo."""
    try:
        first = pathlib.Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    return dict(re.split(r"\s*:\s?", line, maxsplit=1) for line in first.splitlines())


def _gpus():
    """Names and memory of the GPUs, as the driver tells them; [] without a driver."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return []


def _version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _peer_versions():
    interpreter = peer.installed(("torch",))
    if not interpreter:
        return dict.fromkeys(PEERS)
    code = f"import importlib.metadata as m; print(*map(m.version, {PEERS!r}))"
    done = subprocess.run([interpreter, "-c", code], capture_output=True, text=True)
    return dict(zip(PEERS, done.stdout.split() or [None] * len(PEERS), strict=True))
