# ruff: noqa: E402, F401 (imports are what this program is for)
"""Workers of a cluster for tests: forked from a process that has imported everything.

Reads lines of JSON, {"log": file, "folder": …, "environment": {…}, "arguments": [flags of train]},
or with "call": name of a function below. Prints the process's number, and writes its exit code to
<log>.code when it ends.
"""

import json
import os
import select
import signal
import sys
import traceback

import numpy as np

from trainer import quiet

quiet.import_tensorflow()

import tensorflow as tf
import toy
import toy_digest
import toy_global
import toy_memory

import trainer.loop
from trainer import cli, cluster, experiment, layers, meters

v1 = tf.compat.v1


def semantics():
    """Gathers and averages in a tiny graph; compares with one process's gradients."""
    group = cluster.from_environment(toy.config)
    count, rows, random = group.count, 2, np.random.RandomState(0)
    features, kernel = random.randn(rows * count, 3), random.randn(3, 4)
    labels, names = np.arange(rows * count) % 3, np.array([f"n{i}" for i in range(rows * count)])
    proxies, table = random.randn(3, 4), random.randn(1000, 2500)

    def loss_of(embeddings, labels, kernel, proxies):
        logits = tf.matmul(embeddings, proxies, transpose_b=True)
        each = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        order = tf.range(1.0, rows * count + 1)
        return tf.reduce_mean(each * order) + 0.1 * tf.nn.l2_loss(kernel)

    def tensors():
        return [tf.constant(x, tf.float32) for x in (kernel, proxies, table)]

    with tf.Graph().as_default(), v1.Session() as session:
        k, p, t = tensors()
        loss = loss_of(tf.matmul(tf.constant(features, tf.float32), k), labels, k, p)
        expected = session.run(tf.gradients(loss, [k, p]))
    config = toy.config.copy()
    config["model.batch_size"] = rows * count
    config["trainer.intra_op_threads"] = config["trainer.inter_op_threads"] = 2
    proto = group.start(config, ["/device:CPU:0"])
    own = slice(group.task * rows, (group.task + 1) * rows)
    with tf.Graph().as_default():
        k, p, t = tensors()
        outputs = {"embeddings": tf.matmul(tf.constant(features[own], tf.float32), k)}
        outputs |= {"labels": tf.constant(labels[own]), "names": tf.constant(names[own])}
        outputs = group.join(layers.ModelDict(outputs))
        loss = loss_of(outputs.embeddings, outputs.labels, k, p)
        gathered = [outputs.labels, outputs.names]
        values = [*tf.gradients(loss, [k, p]), t * float(group.task)]  # t: over several buckets
        means = group._exchanges.mean(values)
        with v1.Session(group.target, config=proto) as session:
            (*found, large), (found_labels, found_names) = session.run([means, gathered])
    np.testing.assert_array_equal(found_labels, labels)
    np.testing.assert_array_equal(found_names.astype(str), names)
    np.testing.assert_allclose(large, table.astype("f") * (count - 1) / 2, rtol=1e-5, atol=1e-6)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * np.abs(b).max() * count)
    print("equal")


def other_version():
    """Trains with another version of TensorFlow than the other workers."""
    real = experiment._version
    experiment._version = lambda name: "1.15.5" if name == "tensorflow" else real(name)
    cli.main()


def start(order):
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, signal.SIG_DFL)
        os.chdir(order["folder"])
        sys.path.append(order["folder"])
        os.environ.update(order["environment"])
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1), os.dup2(log, 2)
        sys.stdout, sys.stderr = open(1, "w"), open(2, "w")  # noqa: SIM115
        sys.argv = ["prototrain", "train", *order.get("arguments", ())]
        globals()[order["call"]]() if "call" in order else cli.main()
        code = 0
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def serve():
    logs = {}
    while True:
        if select.select([0], [], [], 0.02)[0]:
            line = sys.stdin.buffer.raw.readline()
            if not line:
                return
            order = json.loads(line)
            pid = start(order)
            logs[pid] = order["log"]
            os.write(1, f"{pid}\n".encode())
        while logs:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            log = logs.pop(pid)
            with open(f"{log}.tmp", "w") as file:
                file.write(str(os.waitstatus_to_exitcode(status)))
            os.rename(f"{log}.tmp", f"{log}.code")


if __name__ == "__main__":
    serve()
