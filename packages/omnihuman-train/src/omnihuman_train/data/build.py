"""Making a data set shard by shard: resumable, spread over processes, whole or not at all.

Which samples a shard holds is settled before the first one is written, so a stopped run goes on where it was and gives
the bytes of one that never stopped. The index comes last: a folder without one is not finished.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from omnihuman_train.data.manifest import MANIFEST, SampleRecord, parse_record, read_lines, write_lines, write_manifest
from omnihuman_train.data.shards import (
    INDEX,
    BrokenSampleError,
    Index,
    ShardEntry,
    parse_shard,
    read_index,
    write_index,
    write_tar,
)
from omnihuman_train.folders import make_folder

# Beside the shards while the set is being made: what is known of each finished shard.
PARTS = ".parts"


@dataclass(frozen=True, kw_only=True)
class Made:
    """A sample to be written: its line in the manifest and its members."""

    record: SampleRecord
    members: Mapping[str, bytes]


# Makes the sample of a job; raises BrokenSampleError for one that cannot be made.
Maker = Callable[[Any], Made]


@dataclass(frozen=True, kw_only=True)
class BuildReport:
    """What there is after a call.

    Attributes:
        samples: Samples in finished shards.
        shards: Finished shards.
        left: Shards that are left to other processes.
        broken: Clips that were skipped, with the reason.
    """

    samples: int
    shards: int
    left: int
    broken: Mapping[str, str]


def build(
    out: Path,
    *,
    kind: str,
    recipe: Mapping[str, Any],
    jobs: Sequence[Sequence[Any]],
    open_maker: Callable[[], Maker],
    progress: Callable[[int], None],
    rank: int = 0,
    world: int = 1,
    workers: int = 1,
) -> BuildReport:
    """Make the shards that are not there yet; write manifest and index when all are.

    Args:
        out: Folder of the data set.
        kind: ``clips`` or ``states``.
        recipe: All that decides what is written, as JSON: another recipe in the same folder is refused.
        jobs: Jobs of each shard; they pickle, and ``str(job)`` names the clip in messages.
        open_maker: Gives what makes a sample of a job; called once in each process, and pickles where ``workers > 1``.
        progress: Called with the number of samples that became available.
        rank: Number of this process among those that share the work.
        world: How many there are; shard ``i`` belongs to rank ``i % world``.
        workers: Processes to start here.

    Raises:
        ValueError: another recipe was begun in the folder, no sample could be made, or a sample is there twice.
        OSError: the disk is full or the folder cannot be written; finished shards stay.
    """
    if not 0 <= rank < world or workers < 1:
        raise ValueError(f"--rank must be in [0, --world) and --workers at least 1, got {rank}, {world}, {workers}")
    # As it reads from a file: tuples are lists there.
    recipe = json.loads(json.dumps({**recipe, "shards": len(jobs)}))
    if (out / INDEX).exists():
        return _finished(out, recipe, progress)
    parts = out / PARTS
    make_folder(out)
    parts.mkdir(exist_ok=True)
    _check_recipe(parts / "recipe.json", recipe, out)
    mine = [number for number in range(len(jobs)) if number % world == rank]
    todo = [number for number in mine if not _part(out, number).exists()]
    progress(sum(len(jobs[number]) for number in set(mine) - set(todo)))
    if workers == 1:
        maker = open_maker() if todo else None
        for number in todo:
            assert maker is not None
            _make_shard(out, number, jobs[number], maker, progress)
    else:
        _make_in_processes(out, todo, jobs, open_maker, workers, progress)
    return _assemble(out, kind, recipe, len(jobs))


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"shard-{number:06d}.tar"


def digest(value: Any) -> str:
    """sha256 of a value that JSON can carry."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _part(out: Path, number: int) -> Path:
    return out / PARTS / f"{number:06d}.json"


def _make_shard(out: Path, number: int, jobs: Sequence[Any], maker: Maker, progress: Callable[[int], None]) -> None:
    records: list[SampleRecord] = []
    broken: dict[str, str] = {}

    def samples() -> Iterator[tuple[str, Mapping[str, bytes]]]:
        for job in jobs:
            try:
                made = maker(job)
            except BrokenSampleError as error:
                broken[str(job)] = str(error)
            else:
                records.append(made.record)
                yield made.record.key, made.members
            progress(1)

    path = out / shard_name(number)
    entry: ShardEntry | None = write_tar(path, samples())
    if not records:
        path.unlink()
        entry = None
    part = {
        "entry": entry.to_row() if entry else None,
        "records": [asdict(record) for record in records],
        "broken": broken,
    }
    write_lines(_part(out, number), [part])


def _make_in_processes(
    out: Path,
    todo: Sequence[int],
    jobs: Sequence[Sequence[Any]],
    open_maker: Callable[[], Maker],
    workers: int,
    progress: Callable[[int], None],
) -> None:
    # Fork is not safe once torch has started threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        futures = {pool.submit(_make_here, out, number, jobs[number], open_maker): number for number in todo}
        try:
            for future in as_completed(futures):
                future.result()
                progress(len(jobs[futures[future]]))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _make_here(out: Path, number: int, jobs: Sequence[Any], open_maker: Callable[[], Maker]) -> None:
    _make_shard(out, number, jobs, _opened(open_maker), lambda count: None)


@lru_cache(maxsize=1)
def _opened(open_maker: Callable[[], Maker]) -> Maker:
    return open_maker()


def _check_recipe(path: Path, recipe: Mapping[str, Any], out: Path) -> None:
    if path.exists():
        found = next(read_lines(path))[1]
        if found != recipe:
            raise ValueError(_other(out, "begun", found, recipe))
    else:
        write_lines(path, [recipe])


def _other(out: Path, done: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    different = ", ".join(_difference(found, wanted))
    return (
        f"{out}: this data set was {done} from other input or with other settings ({different}); give another --out, "
        f"or delete the folder to make it anew"
    )


def _difference(found: Mapping[str, Any], wanted: Mapping[str, Any], path: str = "") -> list[str]:
    names: list[str] = []
    for name in sorted(found.keys() | wanted.keys()):
        one, other = found.get(name), wanted.get(name)
        if isinstance(one, Mapping) and isinstance(other, Mapping) and name != "unusable":
            names += _difference(one, other, f"{path}{name}.")
        elif one != other:
            names.append(f"{path}{name}")
    return names


def _finished(out: Path, recipe: Mapping[str, Any], progress: Callable[[int], None]) -> BuildReport:
    index = read_index(out)
    if index.recipe != recipe:
        raise ValueError(_other(out, "made", index.recipe, recipe))
    samples = sum(len(shard.samples) for shard in index.shards)
    progress(samples + len(index.broken))
    return BuildReport(samples=samples, shards=len(index.shards), left=0, broken=index.broken)


def _assemble(out: Path, kind: str, recipe: Mapping[str, Any], count: int) -> BuildReport:
    """Manifest and index where every shard is finished; each rank may come here, all write the same bytes."""
    entries: list[ShardEntry] = []
    records: list[SampleRecord] = []
    broken: dict[str, str] = {}
    left = 0
    for number in range(count):
        path = _part(out, number)
        if not path.exists():
            left += 1
            continue
        part = next(read_lines(path))[1]
        entries += [parse_shard(part["entry"], str(path))] if part["entry"] else []
        records += [parse_record(row, str(path)) for row in part["records"]]
        broken.update(part["broken"])
    report = BuildReport(samples=len(records), shards=len(entries), left=left, broken=broken)
    if (out / INDEX).exists():
        # Another rank came first and has cleaned up.
        return _finished(out, recipe, lambda count: None)
    if left:
        return report
    if not records:
        # The next try may have other options.
        shutil.rmtree(out / PARTS, ignore_errors=True)
        reason = next(iter(broken.items()), ("", "there are no clips"))
        raise ValueError(f"{out}: no sample could be made; the first: {': '.join(filter(None, reason))}")
    write_manifest(out / MANIFEST, records)
    write_index(out, Index(kind=kind, recipe=recipe, broken=broken, shards=tuple(entries)))
    shutil.rmtree(out / PARTS, ignore_errors=True)
    return report
