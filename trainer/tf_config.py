"""Parses the variable TF_CONFIG, which schedulers set for each worker."""

import json
import re

EXAMPLE = '{"cluster": {"worker": ["a:2222", "b:2222"]}, "task": {"type": "worker", "index": 0}}'


def read(text: str) -> tuple[list[str], int]:
    """Parses TF_CONFIG: (addresses of all workers, the chief's first; the number of this worker).

    A single worker has no addresses.

    Raises:
      ValueError: it is malformed.
    """
    known = json.loads(text) if text else {}
    if not isinstance(known, dict):
        raise ValueError("it is not a JSON object")
    jobs, task = known.get("cluster"), known.get("task")
    if not jobs:
        return [], 0
    if not isinstance(jobs, dict) or not all(isinstance(each, list) for each in jobs.values()):
        raise ValueError("'cluster' must give each job a list of addresses")
    if not isinstance(task, dict) or not {"type", "index"} <= task.keys():
        raise ValueError("'task' must have a type and an index")
    kinds = ("chief", "master", "worker")
    if strange := sorted(set(jobs) - set(kinds)):
        raise ValueError(f"the job {strange[0]!r} is not supported; give chief and worker")
    order = [(kind, i) for kind in kinds for i in range(len(jobs.get(kind, [])))]
    if order[1:2] and order[1][0] != "worker":
        raise ValueError("it has two chiefs")
    addresses = [jobs[kind][i] for kind, i in order]
    for address in addresses:
        found = re.fullmatch(r"[^\s/]+:([0-9]{1,5})", str(address))
        if not found or not 0 < int(found[1]) < 65536:
            raise ValueError(f"{address!r} is not host:port")
    if len(set(addresses)) < len(addresses):
        raise ValueError("two workers have the same address")
    me = f"{task['type']} {task['index']}"
    names = [f"{kind} {i}" for kind, i in order]
    if me not in names:
        raise ValueError(f"it has no {me}, which is this task")
    return (addresses if len(addresses) > 1 else []), names.index(me)
