"""What Prometheus reads, of one process and of several."""

import subprocess
import sys

from prometheus_client.parser import text_string_to_metric_families

from retrieval.serve import metrics


def test_two_servers_in_a_process_count_apart():
    first, second = metrics.Metrics(), metrics.Metrics()
    first.refusals.labels("queue").inc()
    assert b'reason="queue"' in first.page() and b'reason="queue"' not in second.page()
    assert list(text_string_to_metric_families(first.page().decode()))


def test_processes_count_together(tmp_path):
    code = (
        "from retrieval.serve import metrics\nm = metrics.Metrics()\n"
        "m.refusals.labels('queue').inc(2)\nm.queue.set(3)\nprint(m.page().decode())"
    )
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={"PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "PYTHONPATH": ":".join(sys.path)},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    assert 'prototrain_refusals_total{reason="queue"} 4.0' in done.stdout
