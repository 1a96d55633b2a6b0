"""``omnihuman-train data``: pack clips into shards, check them, look at what they can train, encode them once."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omnihuman_train.data.build import BuildReport

# Names in messages of what is broken, before they are only counted.
_SHOWN = 20


def add_data_commands(commands: Any) -> None:
    """Add ``data`` with its commands to a command line.

    Args:
        commands: Subparsers of the command line.
    """
    data = commands.add_parser("data", help="pack clips into shards, check, count and encode them")
    actions = data.add_subparsers(dest="action", required=True)
    _add_pack(actions)
    check = actions.add_parser("check", help="compare every shard and member with the index")
    check.add_argument("data", type=Path, metavar="DIR", help="packed or encoded data set")
    check.add_argument("--decode", action="store_true", help="also decode every member")
    check.set_defaults(run=_check)
    stats = actions.add_parser("stats", help="what the samples can train, by bucket and licence")
    stats.add_argument("data", type=Path, metavar="DIR", help="packed or encoded data set")
    stats.add_argument("--plot", type=Path, metavar="PNG", help="draw it")
    stats.set_defaults(run=_stats)
    cache = actions.add_parser("cache", help="encode packed clips: latents, audio and text states")
    cache.add_argument("data", type=Path, metavar="DIR", help="packed data set")
    cache.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="encoded data set; the same command goes on"
    )
    cache.add_argument("--model", metavar="DIR", help="model directory that all three below are taken from")
    for name in ("vae", "audio", "text"):
        cache.add_argument(f"--{name}", metavar="DIR|PLUGIN:PRESET", help=f"{name} component instead of the model's")
    cache.add_argument("--caption", default="long", help="long or short (default: long)")
    cache.add_argument("--precision", default="fp32", help="fp32 or bf16 (autocast of the VAE; default: fp32)")
    cache.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    cache.add_argument("--rank", type=int, default=0, help="number of this process among --world")
    cache.add_argument("--world", type=int, default=1, help="processes that share the shards")
    cache.add_argument("--workers", type=int, default=1, help="processes to start here")
    cache.set_defaults(run=_cache)


def _add_pack(actions: Any) -> None:
    pack = actions.add_parser("pack", help="write video clips, or drawn characters, as shards")
    source = pack.add_mutually_exclusive_group(required=True)
    source.add_argument("--clips", type=Path, metavar="DIR", help="folder of video files")
    source.add_argument("--characters", type=int, metavar="N", help="draw N synthetic characters of each size")
    pack.add_argument("--out", required=True, type=Path, metavar="DIR", help="data set; the same command goes on")
    pack.add_argument(
        "--frames", default="", metavar="N,N", help="lengths of samples (default: 121,61; characters: 49)"
    )
    pack.add_argument("--sizes", default="64x64", metavar="HxW,HxW", help="sizes of characters (default: 64x64)")
    pack.add_argument("--first", type=int, default=0, help="number of the first character")
    pack.add_argument("--fps", type=float, default=25.0, help="frames per second of the samples (default: 25)")
    pack.add_argument("--area", default="480x832", metavar="HxW", help="size to scale to, in any shape")
    pack.add_argument("--multiple", type=int, default=16, help="sides are multiples of this (default: 16)")
    pack.add_argument("--shard-size", type=int, default=64, help="samples per shard (default: 64)")
    pack.add_argument("--licence", help="licence of clips whose notes name none")
    pack.add_argument("--assume-sync", action="store_true", help="take voices for lip-synced unless the notes say not")
    pack.add_argument("--workers", type=int, default=1, help="processes to start here")
    pack.set_defaults(run=_pack)


def _pack(arguments: argparse.Namespace) -> None:
    from omnihuman_train.data.pack import PackConfig, pack_clips
    from omnihuman_train.data.pack_characters import pack_characters

    lengths = _numbers("--frames", arguments.frames or ("49" if arguments.clips is None else "121,61"))
    if arguments.clips is None:
        sizes = [_size("--sizes", text) for text in arguments.sizes.split(",")]
        if len(lengths) != 1:
            raise ValueError(f"--frames: characters have one length, got {arguments.frames}")
        with _counted("draw characters", arguments.characters * len(sizes)) as (advance, _):
            report = pack_characters(
                arguments.out,
                count=arguments.characters,
                frames=lengths[0],
                sizes=sizes,
                shard_size=arguments.shard_size,
                first=arguments.first,
                workers=arguments.workers,
                progress=advance,
            )
    else:
        height, width = _size("--area", arguments.area)
        config = PackConfig(
            fps=arguments.fps,
            frames=lengths,
            area=height * width,
            multiple=arguments.multiple,
            shard_size=arguments.shard_size,
            licence=arguments.licence,
            assume_sync=arguments.assume_sync,
        )
        with _counted("pack clips", None) as (advance, total):
            report = pack_clips(
                arguments.clips, arguments.out, config, workers=arguments.workers, progress=advance, total=total
            )
    _tell(report, arguments.out)


def _cache(arguments: argparse.Namespace) -> None:
    from omnihuman_train.data.encoder import EncodeConfig
    from omnihuman_train.data.states import encode_states
    from omnihuman_train.devices import check_device

    chosen = {name: getattr(arguments, name) or arguments.model for name in ("vae", "audio", "text")}
    if missing := [name for name, value in chosen.items() if value is None]:
        raise ValueError(f"--{missing[0]}: give it, or a --model that has one")
    check_device(arguments.device, "--device")
    config = EncodeConfig(**chosen, caption=arguments.caption, precision=arguments.precision, device=arguments.device)
    with _counted("encode clips", None) as (advance, total):
        report = encode_states(
            arguments.data,
            arguments.out,
            config,
            rank=arguments.rank,
            world=arguments.world,
            workers=arguments.workers,
            progress=advance,
            total=total,
        )
    _tell(report, arguments.out)


def _check(arguments: argparse.Namespace) -> None:
    from omnihuman_train.data.check import check_data
    from omnihuman_train.data.shards import read_index

    index = read_index(arguments.data)
    with _counted("check samples", sum(len(shard.samples) for shard in index.shards)) as (advance, _):
        report = check_data(arguments.data, decode=arguments.decode, progress=advance)
    for reason in report.broken_shards.values():
        print(f"broken shard: {reason}")
    for key, reason in list(report.broken_samples.items())[:_SHOWN]:
        print(f"broken sample: {key} in {reason}")
    excluded = f", {report.excluded} left out by the manifest" if report.excluded else ""
    print(f"{arguments.data}: {report.samples} samples in {report.shards} shards{excluded}")
    if not report.ok:
        raise ValueError(
            f"{arguments.data}: {len(report.broken_shards)} broken shards, {len(report.broken_samples)} broken samples"
        )


def _stats(arguments: argparse.Namespace) -> None:
    from rich.console import Console

    from omnihuman_train.data.manifest import MANIFEST, read_manifest
    from omnihuman_train.data.shards import read_index
    from omnihuman_train.data.stats import plot, table

    index, records = read_index(arguments.data), read_manifest(arguments.data / MANIFEST)
    console = Console()
    for name in ("bucket", "licence"):
        console.print(table(records, name))
    console.print(f"{len(index.shards)} shards of {index.kind}, {sum(s.size for s in index.shards) / 2**20:.1f} MiB")
    # Of a packed set: clips that could not be opened, and spans of clips that could not be used.
    if skipped := len(index.recipe.get("unusable", {})) + len(index.broken):
        console.print(f"{skipped} clips or parts of clips were skipped when the set was made")
    if arguments.plot:
        plot(records, arguments.plot, f"{arguments.data.name}: {len(records):,} samples")
        console.print(f"plot: {arguments.plot}")


def _tell(report: BuildReport, out: Path) -> None:
    for name, reason in list(report.broken.items())[:_SHOWN]:
        print(f"skipped: {name}: {reason}")
    left = f"; {report.left} shards are left to other processes, no index yet" if report.left else ""
    skipped = f", {len(report.broken)} clips or parts of clips skipped" if report.broken else ""
    print(f"{out}: {report.samples} samples in {report.shards} shards{skipped}{left}")


def _numbers(flag: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{flag}: must be whole numbers with commas between, got {text!r}") from None


def _size(flag: str, text: str) -> tuple[int, int]:
    height, cross, width = text.partition("x")
    if not (cross and height.isdecimal() and width.isdecimal()):
        raise ValueError(f"{flag}: must be HEIGHTxWIDTH, got {text!r}")
    return int(height), int(width)


@contextmanager
def _counted(title: str, total: int | None) -> Iterator[tuple[Callable[[int], None], Callable[[int], None]]]:
    """A progress bar; yields the functions that advance it and that set its length."""
    from rich.console import Console

    from omnihuman_train.progress import CountingBar

    # On the error stream: the results may go to a file.
    with CountingBar(console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=total)
        yield lambda count: progress.advance(task, count), lambda count: progress.update(task, total=count)
