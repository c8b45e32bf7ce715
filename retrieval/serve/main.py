"""A search page over a catalogue, and its API.

    python -m retrieval.serve.main --index=INDEX [--port=8000] [--host=127.0.0.1] [--feedback=FILE]

answers on http://127.0.0.1:8000/ with a page that takes photos and shows what the catalogue has;
/openapi.json describes the API. A new version of the index is taken within 2 seconds, without a
failed request; SIGHUP looks for one at once. SIGTERM and Ctrl-C answer what was begun, then end.

Everyone who reaches the address can search. Beyond this computer give --token, or --open if that is
what you want.
"""

import functools
import os
import signal
import sys

from absl import flags

from trainer import commandline, program
from trainer import config as trainer_config
from trainer.config import UserError

MIB = 2**20
# Images per call of the model, on a CPU and on a GPU. On a CPU each core embeds a batch of its own:
# several cores on one batch wait for each other after every layer.
BATCHES = (2, 32)


def main(options, *_):
    """The program."""
    for module in ("fastapi", "httptools", "uvicorn", "python_multipart", "prometheus_client"):
        with trainer_config.optional("pip install 'prototrain[serve]'"):
            __import__(module)
    from retrieval.evaluation import feedback
    from retrieval.serve import memory, processes

    if not options.index:
        raise UserError("--index=INDEX: name the folder of an index, or several")
    token = options.token or os.environ.get("PROTOTRAIN_TOKEN", "")
    loopback = options.host in ("localhost", "127.0.0.1", "::1")
    if not (loopback or token or options.open):
        raise UserError(
            f"--host={options.host}: others could search: give --token (or PROTOTRAIN_TOKEN in the "
            "environment), or --open to let everyone"
        )
    if options.feedback:
        feedback.append(options.feedback)  # fails now rather than at the first judgment
    sock = processes.inherited()
    if sock is None:
        sock = processes.bound(options.host, options.port)
        gpus = _gpus()
        workers = options.workers or max(1, len(gpus))
        if workers > 1:
            return processes.supervise(workers, sock, gpus)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until it can be obeyed
    memory.one_heap()
    with trainer_config.user_errors():
        searcher = _searcher(options, token, () if not loopback or token or options.open else None)
    from retrieval.serve import app

    served = [shelf.current for shelf in searcher.shelves.values()]
    count = sum(one.catalogue.manifest["count"] for one in served)
    host, port = sock.getsockname()[:2]
    host = f"[{host}]" if ":" in host else host
    print(f"{count:,} items at http://{host}:{port}/ (Ctrl-C ends)", file=sys.stderr, flush=True)
    made = app.create(searcher, options.feedback or "")
    memory.release()
    processes.serve(made, sock, options.timeout)
    return 0


def _searcher(options, token, hosts):
    from retrieval.ranking import counting
    from retrieval.serve import limits, metrics, opening, searcher, thumbnails

    gpu = bool(_gpus())
    batch = options.max_batch or BATCHES[gpu]
    limit = limits.Limits(
        body=round(options.max_body * MIB),
        pixels=options.max_pixels,
        queue=options.max_queue,
        timeout=options.timeout,
        batch=batch,
        wait=options.max_wait / 1000,
        token=token,
        hosts=limits.LOOPBACK if hosts is None else hosts,
    )
    figures = metrics.Metrics()
    images = thumbnails.Thumbnails(options.image_root, limit.pixels)
    # On a CPU, the threads of the server are those of TensorFlow.
    each, alone = (options.threads if gpu else 1), None
    # The weights never change: oneDNN may keep kernels in the order that it wants.
    os.environ.setdefault("TF_ONEDNN_ASSUME_FROZEN_WEIGHTS", "1")
    if not gpu and (options.threads or counting.cores()) > 1:
        # By default all models of a process have the threads of the first.
        os.environ["TF_OVERRIDE_GLOBAL_THREADPOOL"] = "1"
        alone = options.threads
    shelves = opening.shelves(options.index, images, figures, each, alone)
    return searcher.Searcher(shelves, limit, figures, options.threads, gpu)


def _gpus():
    """The GPUs as CUDA_VISIBLE_DEVICES names them, without TensorFlow, which would take them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in map(str.strip, named.split(",")) if name not in ("", "-1")]
    known = "/proc/driver/nvidia/gpus"
    return list(map(str, range(len(os.listdir(known))))) if os.path.isdir(known) else []


def define_flags(values):
    text, path, number, decimal, many, flag = commandline.definers(
        values, "string", "path", "integer", "float", "list", "bool"
    )
    many("index", [], "Folder of an index; several as name=folder,name=folder.")
    number("port", 8000, "Port to listen on (0: any free one).", lower_bound=0, upper_bound=65535)
    text("host", "127.0.0.1", "Address to listen on; 0.0.0.0 for all of this computer's.")
    text("token", "", "What requests must carry; PROTOTRAIN_TOKEN in the environment if absent.")
    flag("open", False, "Let everyone search who reaches --host.")
    path("image_root", "", "Serve only images below this folder; any that the index names if "
         "absent.")  # fmt: skip
    path("feedback", "", "JSONL file to append judgments of results to; none are taken if absent.")
    number("workers", 0, "Processes; if 0, one per GPU, and one on a CPU, whose threads already "
           "keep every core busy: more processes answer no faster, each with a model in memory.",
           lower_bound=0)  # fmt: skip
    number("threads", 0, "Threads per process (0: one per core).", lower_bound=0)
    number("max_batch", 0, "Images per call of the model, at most: of a GPU, or of each core of a "
           f"CPU. {BATCHES[0]} on a CPU, {BATCHES[1]} on a GPU, if 0.", lower_bound=0)  # fmt: skip
    decimal("max_wait", 5, "Milliseconds that a GPU's batch waits for images being decoded.",
            lower_bound=0)  # fmt: skip
    number("max_queue", 64, "Requests that may wait; more get a 503.", lower_bound=1)
    decimal("timeout", 10, "Seconds until a request must be answered.", lower_bound=0.1)
    decimal("max_body", 10, "MiB of a request.", lower_bound=0.001)
    number("max_pixels", 50_000_000, "Pixels of an image.", lower_bound=1)


def run(argv=None):
    """Runs the program on a command line, `sys.argv` by default."""
    options = flags.FlagValues()
    define_flags(options)
    program.run_without_model(
        functools.partial(main, options),
        argv,
        "Interrupted.",
        flag_values=options,
    )


if __name__ == "__main__":
    run()
