"""A store made by several processes: fixed shards of the listing, each committed once.

    DIR/parts/plan.json            source and number of shards; the first process writes it
    DIR/parts/00001-00000.json     a commit: which files hold the first piece of shard 1
    DIR/00001-00000-<random>.npy   and .parquet: the data of one attempt

Shard i of n is a fixed range of whole batches, so that an image is in the same batch, and gets the
same embedding, as in one process. It is committed in pieces of about `shard_rows` rows; a kill
loses at most one piece. Processes need no locks. If two embed the same piece, both write data under
different names; only one can create the commit, and the other removes its files. `finish` writes
the manifest; the store is then like any other.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import re
import secrets
import sys
from collections.abc import Callable, Iterable

from retrieval.embeddings import places, store
from retrieval.embeddings.store import Embedded
from retrieval.embeddings.threads import Behind
from trainer import files

FOLDER, PLAN = store.PARTS.split("/")
ANYWHERE = ("checkpoint",)  # keys of a source that are paths, which may differ between processes
_DATA = r"\d{5}-\d{5}-[0-9a-f]{12}"


@dataclasses.dataclass(frozen=True)
class Plan:
    """The plan that all processes share.

    Attributes:
      source: what the embeddings depend on, see `store.fill`.
      dtype: 'float32' or 'float16'.
      of: number of shards.
      rows: number of rows of the listing.
      batch_size: rows per batch.
      piece: batches per commit.
    """

    source: dict
    dtype: str
    of: int
    rows: int
    batch_size: int
    piece: int

    def batches(self, shard: int) -> range:
        """The batches of a shard."""
        count = -(-self.rows // self.batch_size)
        return range(shard * count // self.of, (shard + 1) * count // self.of)

    def pieces(self, shard: int) -> dict[str, range]:
        """{name of the commit: its batches}; a shard without rows also has one commit."""
        whole = self.batches(shard)
        starts = range(whole.start, whole.stop, self.piece) or [whole.start]
        return {
            f"{shard:05d}-{n:05d}": range(start, min(start + self.piece, whole.stop))
            for n, start in enumerate(starts)
        }


def begin(folder: str, plan: Plan) -> None:
    """Joins the processes that fill a store, or starts it.

    Raises:
      OtherSource: the other processes embed other images, or with another model.
      ValueError: they use another number of shards, or the folder contains something else.
    """
    place = places.at(folder)
    place.claim(store.KIND)
    if place.exists("manifest.json"):
        manifest = store._known(folder)
        store.check_source(folder, manifest, plan.source, plan.dtype, ANYWHERE)
        if not manifest["complete"]:
            raise ValueError(
                f"{folder}: is being filled by one process: run it again without --shard, or give "
                "another folder"
            )
        return
    value = dataclasses.asdict(plan)
    place.create(store.PARTS, json.dumps(value, sort_keys=True, indent=1).encode())
    known = _plan(folder, place)
    store.check_source(folder, dataclasses.asdict(known), plan.source, plan.dtype, ANYWHERE)
    if known.of != plan.of:
        raise ValueError(
            f"{folder}: is being filled in {known.of} shards, which {plan.of} would overlap: give "
            f"--shard=i/{known.of}"
        )
    for key in ("rows", "batch_size", "piece"):
        if getattr(known, key) != getattr(plan, key):
            raise ValueError(
                f"{folder}: is being filled with another {'shard_rows' if key == 'piece' else key}"
            )


def planned(folder: str) -> int | None:
    """The number of shards of a store that is being filled in shards, else None."""
    place = places.at(folder)
    return _plan(folder, place).of if place.exists(store.PARTS) else None


def _plan(folder, place) -> Plan:
    try:
        value = files.read_json(place.path(store.PARTS))
        return Plan(**{field.name: value[field.name] for field in dataclasses.fields(Plan)})
    except (TypeError, KeyError) as error:
        raise ValueError(f"{folder}/{store.PARTS}: is damaged: {error}") from None


def fill(
    folder: str,
    plan: Plan,
    shard: int,
    embed: Callable[[range], Iterable[tuple[Embedded, list[str]]]],
) -> int:
    """Embeds a shard and commits it; committed pieces are not embedded again.

    Args:
      folder: the store.
      plan: the plan of all processes.
      shard: its number, from 0.
      embed: yields the batches of a range: (items, a line per skipped image).

    Returns:
      The number of embeddings that this call committed.

    Raises:
      ValueError: as `begin`; an embedding is not finite, or too large for float16.
      OSError: the disk is full, or the store cannot be written.
    """
    begin(folder, plan)
    place, counts, stop = places.at(folder), [], plan.batches(shard).stop
    embedded: Iterable = ()
    reached = None  # the batch that `embedded` yields next
    with Behind() as behind:
        for name, batches in plan.pieces(shard).items():
            if _over(folder, place) or place.exists(f"{FOLDER}/{name}.json"):
                continue
            if batches and reached != batches.start:
                embedded = iter(embed(range(batches.start, stop)))
            reached = batches.stop
            # The last piece takes all batches, so that the generator ends.
            made = list(itertools.islice(embedded, None if reached == stop else len(batches)))
            behind.submit(lambda *of: counts.append(_commit(folder, plan, *of)), name, made)
    if _over(folder, place):  # files that this process wrote after `finish`
        _clean(folder, place, store.manifest_of(folder))
    return sum(counts)


def _commit(folder, plan, name, made):
    """Writes a piece, the batches (items, lines); returns the number of embeddings committed."""
    place, mine = places.at(folder), f"{name}-{secrets.token_hex(6)}"
    skipped = [line for _, lines in made for line in lines]
    entry = {"batches": len(made), "skipped": skipped, "count": 0, "sha256": {}}
    try:
        if made:
            items = store.joined([items for items, _ in made])
            entry |= store.write_shard(place, mine, items, plan.dtype)
            entry["dimensions"] = items.embeddings.shape[1]
        won = place.create(f"{FOLDER}/{name}.json", _sealed(entry)) and not _over(folder, place)
    except OSError:
        # `finish` may have removed what was not committed.
        if not _over(folder, place):
            raise
        won = False
    if won:
        return entry["count"]
    place.remove([f"{mine}.{kind}" for kind in ("npy", "parquet")])
    return 0


def _over(folder, place):
    return place.exists("manifest.json") and store.is_complete(folder)


def finish(folder: str) -> dict:
    """Verifies that all shards are complete, writes the manifest and returns it.

    Raises:
      ValueError: shards are missing or damaged (the error gives their numbers); nothing is changed.
      BlockingIOError: another process is finishing the store.
    """
    place = places.at(folder)
    lock = contextlib.nullcontext() if places.is_remote(folder) else files.only_writer(folder)
    if not (place.exists(store.PARTS) or place.exists("manifest.json")):
        raise ValueError(f"{folder}: holds no shards: run embed --shard=i/n first")
    with lock:
        if _over(folder, place):
            manifest = store.manifest_of(folder)
        elif not place.exists(store.PARTS):
            raise ValueError(f"{folder}: is being filled by one process, which will complete it")
        else:
            manifest = _manifest(folder, place, _plan(folder, place))
            _publish(folder, place, manifest)
        _clean(folder, place, manifest)
    return manifest


def _manifest(folder, place, plan):
    """The manifest of the committed shards; ValueError if a shard is missing or damaged."""
    there = set(place.names(FOLDER))
    wanted = {shard: plan.pieces(shard) for shard in range(plan.of)}
    missing = [s for s, pieces in wanted.items() if {f"{p}.json" for p in pieces} - there]
    if missing:
        named = [f"{s}/{plan.of} ({_rows(plan, s)})" for s in missing[:5]]
        more = " …" * (len(missing) > 5)
        raise ValueError(
            f"{folder}: {len(missing)} of {plan.of} shards missing: {', '.join(named)}{more}; "
            f"embed again with --shard={missing[0]}/{plan.of}"
        )
    shards, dimensions = [], set()
    for shard, pieces in wanted.items():
        for piece in pieces:
            path = place.path(f"{FOLDER}/{piece}.json")
            entry = files.read_sealed(path, {"batches", "count", "sha256", "skipped"}, "a shard")
            if not entry["sha256"]:  # a shard without rows
                continue
            for kind, sum_ in entry["sha256"].items():
                name = f"{entry['name']}.{kind}"
                data = place.path(name)
                if not os.path.isfile(data) or files.sha256(data) != sum_:
                    state = "damaged" if os.path.isfile(data) else "missing"
                    raise ValueError(
                        f"{data}: is {state}: delete {path} and embed again with "
                        f"--shard={shard}/{plan.of}"
                    )
            dimensions.add(entry.pop("dimensions"))
            shards.append(entry)
    count = sum(entry["count"] for entry in shards)
    if not count:
        raise ValueError(f"{folder}: there is nothing to embed")
    if len(dimensions) > 1:
        raise ValueError(f"{folder}: its shards have {sorted(dimensions)} dimensions")
    about = {"source": plan.source, "dtype": plan.dtype, "dimensions": dimensions.pop()}
    return about | {"complete": True, "count": count, "shards": shards}


def _rows(plan, shard):
    batches = plan.batches(shard)
    first, last = batches.start * plan.batch_size, min(batches.stop * plan.batch_size, plan.rows)
    what = "batches" if "dataset" in plan.source else "rows"  # a model's dataset: of one row each
    return f"{what} {first} to {last - 1}" if last > first else f"no {what}"


def _publish(folder, place, manifest):
    if not place.create("manifest.json", _sealed(manifest)):
        # A second `finish` in object storage, which has no locks: both found the same commits.
        print(f"{folder}: was completed by another process", file=sys.stderr)


def _clean(folder, place, manifest):
    """Removes the plan, the commits, and files left by killed processes."""
    keep = {f"{entry['name']}.{kind}" for entry in manifest["shards"] for kind in entry["sha256"]}
    names = [n for n in place.names() if re.fullmatch(rf"{_DATA}\.(npy|parquet)", n)]
    place.remove([name for name in names if name not in keep])
    commits = [n for n in place.names(FOLDER) if re.fullmatch(r"\d{5}-\d{5}\.json", n)]
    place.remove([f"{FOLDER}/{name}" for name in [*commits, PLAN]])
    if not places.is_remote(folder):
        files.remove(folder, store.KIND, rf"({FOLDER}/)?{store.LITTER}")
        with contextlib.suppress(OSError):  # keeps files of others
            os.rmdir(place.path(FOLDER))


def _sealed(value) -> bytes:
    """The text that `files.write_sealed` writes."""
    return files.sealed(value).encode("utf-8", "surrogatepass")
