"""Tiles of attention that are checked, replaced and tried."""

import copy
import inspect
import json
from dataclasses import asdict

import pytest
import torch

from omnihuman_kernels import _launch
from omnihuman_kernels.joint_attention import op as joint

KERNELS = [
    f"{kind} {width}" for width in (128, 64) for kind in _launch.ATTENTION_TILES
    if width in _launch.ATTENTION_TILES[kind]["hopper"]
]  # fmt: skip


@pytest.fixture
def tiles(machine, monkeypatch):
    for name, value in {"BATCH": 1, "LENGTH": 37, "HEADS": 1, "HEAD_DIMS": (128, 64)}.items():
        monkeypatch.setattr(machine.tiles, name, value)
    # The interpreter cuts bfloat16 off.
    error_of = machine.tiles.error_of
    monkeypatch.setattr(machine.tiles, "error_of", lambda kind, width, tile: error_of(kind, width, tile, torch.float16))
    return machine.tiles


def test_every_kernel_of_attention_is_checked_alone(tiles, monkeypatch):
    assert tiles.kernels() == KERNELS
    assert {"forward 128", "backward_q 128", "backward_kv 128", "backward 64"} <= set(KERNELS)
    seen = {}
    launch = joint.launch

    def watch(kernel, grid, tensor, *args, **options):
        if "BLOCK_M" in options:
            seen.setdefault((kernel.fn.__name__, options.get("WITH_DQ", False)), options["TMA"])
        launch(kernel, grid, tensor, *args, **options)

    monkeypatch.setattr(joint, "launch", watch)
    names = {
        "forward": ("forward_kernel", False),
        "backward_q": ("backward_q_kernel", False),
        "backward_kv": ("backward_kernel", False),
        "backward": ("backward_kernel", True),
    }
    before = copy.deepcopy(_launch.ATTENTION_TILES)
    for kernel in ("forward 128", "backward_q 64", "backward_kv 128", "backward 64"):
        seen.clear()
        assert [row["status"] for row in tiles.check([kernel])] == ["begins", "agrees"]
        # Only it has the tile of the table, which loads through descriptors; the others have plain ones.
        assert [name for name, tma in seen.items() if tma] == [names[kernel.split()[0]]]
    assert before == _launch.ATTENTION_TILES


def pointed(kernel, args, name):
    """The tensor that a kernel gets under a name."""
    return args[list(inspect.signature(kernel.fn).parameters).index(name)]


def test_the_canary_ends_at_a_wrong_kernel(tiles, monkeypatch):
    launch = joint.launch

    def spoil(kernel, grid, tensor, *args, **options):
        launch(kernel, grid, tensor, *args, **options)
        if options.get("TMA") and kernel.fn.__name__ == "backward_q_kernel":
            # The last row of one tile.
            pointed(kernel, args, "dq_ptr")[:, 36] *= 0.5

    monkeypatch.setattr(joint, "launch", spoil)
    rows = list(tiles.check(["forward 64", "backward_kv 64", "backward_q 64", "backward 64"]))
    assert [row["status"] for row in rows] == ["begins", "agrees", "begins", "agrees", "begins", "failed"]
    assert "relative error" in rows[-1]["problem"]


def test_the_first_tile_that_agrees_goes_to_the_groups(whole_run, tiles):
    """The table's forward hangs at head dim 128, the next one is wrong, and no tile for dk and dv agrees at 64."""
    given = {}

    def process(options, seconds, clock):
        tiles_given = json.loads(options.tiles)
        given[options.group] = tiles_given
        clock[0] += 5
        for kernel in options.kernels or ():
            row = {"op": "joint_attention", "kernel": kernel, "tile": tiles_given.get(kernel)}
            yield {**row, "status": "begins"}
            if kernel == "forward 128" and kernel not in tiles_given:
                yield {"status": "failed", "problem": "hung"}
                return
            if (kernel == "forward 128" and row["tile"]["num_stages"] == 2) or kernel == "backward_kv 64":
                yield {**row, "status": "failed", "problem": "relative error 1"}
                return
            yield {**row, "status": "agrees"}

    status, rows, *_ = whole_run(process, "--groups", "attention,dit")
    first, plain = tiles.ALTERNATIVES["forward"][1], tiles.plain("backward_kv", 64)
    chosen = {"forward 128": asdict(first), "backward_kv 64": asdict(plain)}
    assert given["attention"] == given["dit"] == chosen
    assert status == 1
    hung = next(row for row in rows if row["problem"] == "hung")
    assert (hung["op"], hung["kernel"]) == ("joint_attention", "forward 128")
    agreed = {row["kernel"] for row in rows if row["status"] == "agrees"}
    assert agreed == {*KERNELS} - {"backward_kv 64"}


def test_a_group_runs_with_the_tiles_that_were_chosen(tiles):
    (tile, *_) = tiles.ALTERNATIVES["forward"]
    tiles.use({"forward 128": asdict(tile), "backward 64": None})
    assert _launch.attention_tile("forward", torch.empty(1, 128, dtype=torch.bfloat16)) == tile
    assert not _launch.one_pass(torch.empty(1, 64, dtype=torch.bfloat16))


@pytest.mark.parametrize("kind", ["forward", "backward", "backward_kv", "backward_q"])
def test_a_tile_is_tried_next_to_the_table_which_stays(check, tiles, monkeypatch, kind):
    monkeypatch.setattr(tiles, "noise", short_noise)
    before = copy.deepcopy(_launch.ATTENTION_TILES)
    row = tiles.try_tile(kind, tiles.ALTERNATIVES[kind][-1])
    assert row["status"] == "alternative", row
    assert row["tile"]["block_m"] == tiles.ALTERNATIVES[kind][-1].block_m
    assert "table_seconds" in row
    assert before == _launch.ATTENTION_TILES


def short_noise(*shape):
    """Long sequences become short ones, in a precision that the interpreter can."""
    x = torch.randn(*(37 if n == 16384 else 2 if n == 24 else n for n in shape))
    x.bfloat16 = x.half
    return x


@pytest.mark.parametrize("spoiled", ["tile", "table"])
def test_a_tile_that_is_wrong_is_not_timed(check, tiles, monkeypatch, spoiled):
    """Wrong by a fiftieth of its norm: far less than a tolerance for single numbers of this size would find."""
    monkeypatch.setattr(tiles, "noise", short_noise)
    tile = tiles.ALTERNATIVES["forward"][-1]
    launch = joint.launch

    def spoil(kernel, grid, tensor, *args, **options):
        launch(kernel, grid, tensor, *args, **options)
        if options["TMA"] and (options["BLOCK_N"] == tile.block_n) == (spoiled == "tile"):
            pointed(kernel, args, "out_ptr").mul_(1.02)

    monkeypatch.setattr(joint, "launch", spoil)
    row = tiles.try_tile("forward", tile)
    if spoiled == "tile":
        assert row["status"] == "alternative failed"
        assert "relative error" in row["problem"]
    else:
        assert row["status"] == "alternative"
        assert "table_seconds" not in row


def test_other_tiles_are_tried_whatever_attention_does(check, tiles, monkeypatch, capsys):
    monkeypatch.setattr(tiles, "try_tile", lambda kind, tile: {"status": "alternative", "of": [kind, tile.num_warps]})
    assert check[0].run_group("tiles", 100) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    meant = [
        [kind, tile.num_warps]
        for kind, others in tiles.ALTERNATIVES.items()
        for tile in others
        if tile != _launch.ATTENTION_TILES[kind]["hopper"].get(128)
    ]
    assert [row["of"] for row in rows] == meant
    assert meant[0][0] == "backward_kv"
