"""``omnihuman-core bench-attention`` from end to end, at small shapes on a CPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from omnihuman_core.cli import bench_attention, main
from omnihuman_core.cli.compare_attention import Case, disagreement
from omnihuman_core.contracts import AttentionSupport
from omnihuman_core.ops import choose_attention, eager_ops, softmax_attention
from omnihuman_core.ops.attention_backends import describe_target
from omnihuman_core.ops.attention_table import read_table, user_table, write_table

from .fakes import CPU, Installed, row

SMALL = ["bench-attention", "--device", "cpu", "--shapes", "1x17x2x8,2x24x1x16", "--seconds", "0.01"]


def test_the_command_fills_the_users_table_and_auto_follows_it(capsys):
    assert main(SMALL) == 0
    rows = read_table(user_table())
    assert {entry.backend for entry in rows} == {"sdpa", "sdpa_flash", "eager"}
    assert len(rows) == 2 * 2 * 2 * 3
    assert {(entry.batch, entry.length, entry.heads, entry.head_dim) for entry in rows} == {
        (1, 17, 2, 8),
        (2, 24, 1, 16),
    }
    assert {entry.torch for entry in rows} == {torch.__version__}
    target = describe_target(CPU, torch.float32)
    assert {entry.device for entry in rows} == {target.name}
    assert "no times are known" not in choose_attention("auto", target).summary
    text = capsys.readouterr().out
    for words in ("flash_attn_2: does not run on cpu", "1 x 17 x 2 x 8, key mask", "24 times written to"):
        assert words in text


def test_times_of_other_devices_are_kept(tmp_path):
    out = tmp_path / "times.json"
    write_table(out, [row(device="another")])
    assert main([*SMALL, "--out", str(out), "--dtype", "bfloat16"]) == 0
    assert read_table(out)[0] == row(device="another")
    assert {entry.dtype for entry in read_table(out)[1:]} == {"bfloat16"}
    assert not user_table().exists()


def wrong_gradient(q, k, v, *, mask=None):
    out = softmax_attention(q, k, v, mask=mask)
    return out + 0.01 * (v.sum() - v.detach().sum())


def forgets_the_mask(q, k, v, *, mask=None):
    return softmax_attention(q, k, v)


def wrong_when_long(q, k, v, *, mask=None):
    return softmax_attention(q, k, v, mask=mask) * (1.01 if q.shape[1] > 311 else 1.0)


def other_dtype(q, k, v, *, mask=None):
    return softmax_attention(q, k, v, mask=mask).double()


def not_finite(q, k, v, *, mask=None):
    return softmax_attention(q, k, v, mask=mask) / 0


@pytest.mark.parametrize(
    ("attention", "masked", "what"),
    [
        (wrong_gradient, False, "gradient of v differs"),
        (forgets_the_mask, True, "output differs"),
        (wrong_when_long, False, "output at length 400 differs"),
        (other_dtype, False, "output is torch.float64"),
        (not_finite, False, "not finite"),
        (forgets_the_mask, False, ""),
        (softmax_attention, True, ""),
    ],
)
def test_what_is_wrong_is_found(attention, masked, what):
    case = Case(batch=1, length=400, heads=2, head_dim=8, masked=masked)
    found = disagreement(attention, case, case.inputs(CPU, torch.float32), case.mask(CPU), backward=True)
    assert what in found
    assert bool(what) == bool(found)


def test_no_speed_is_printed_or_kept_for_a_wrong_backend(monkeypatch, capsys):
    Installed(monkeypatch, shady=replace(eager_ops(), attention=forgets_the_mask))
    monkeypatch.setenv("COLUMNS", "200")
    assert main(SMALL) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if "shady" in line]
    assert sum("WRONG: output differs" in line for line in lines) == 2
    assert all("." not in line.split("WRONG")[0] for line in lines if "WRONG" in line)
    assert {entry.masked for entry in read_table(user_table()) if entry.backend == "shady"} == {False}


def test_what_fails_or_does_not_fit_is_skipped(monkeypatch, capsys):
    def fails(q, k, v, *, mask=None):
        if q.shape[1] == 24:
            raise RuntimeError("no kernel for 24 tokens")
        return softmax_attention(q, k, v, mask=mask)

    support = (AttentionSupport(device="cpu", head_dims=(8, 16), key_mask=False, backward=False),)
    Installed(monkeypatch, some=replace(eager_ops(), attention=fails, attention_support=support))
    monkeypatch.setattr(bench_attention, "CPU_SCORE_BYTES", 4 * 4 * 2 * 20**2)
    monkeypatch.setenv("COLUMNS", "200")
    assert main(SMALL) == 0
    text = capsys.readouterr().out
    assert "fails: no kernel for 24 tokens" in text
    assert "takes no key mask" in text
    assert "its scores would take" in text
    rows = read_table(user_table())
    assert [(e.length, e.masked, e.direction) for e in rows if e.backend == "some"] == [(17, False, "forward")]
    assert {e.length for e in rows if e.backend == "eager"} == {17}


def test_an_interrupted_run_writes_nothing(monkeypatch, capsys):
    calls = []

    def stop(*args, **more):
        calls.append(args)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return {}

    monkeypatch.setattr(bench_attention, "interleaved", stop)
    assert main(SMALL) == 130
    assert "nothing was written" in capsys.readouterr().err
    assert not user_table().exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shapes", "1x2x3"], "'1x2x3' must be BxLxNxK"),
        (["--shapes", "1x0x3x8"], "must be BxLxNxK"),
        (["--shapes", "1x64x2x8,2x64x4x8"], "two have 64 tokens and heads of 8"),
        (["--device", "tpu"], "--device: must be auto, cpu, cuda or cuda:N"),
        (["--device", "cuda:9"], "cuda:9 is not there"),
        (["--dtype", "int8"], "--dtype: invalid choice"),
        (["--seconds", "long"], "--seconds: invalid float"),
        (["--out", "/proc/nowhere/times.json"], "cannot be written"),
        (["--out", "/"], "is a folder"),
    ],
)
def test_bad_input_is_one_line(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(bench_attention, "measure", lambda *args, **more: pytest.fail("measured"))
    assert main([*SMALL, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("omnihuman-core: error: ")
    assert len(error.splitlines()) == 1


def test_a_broken_table_is_found_before_the_work(monkeypatch, capsys):
    user_table().parent.mkdir(parents=True)
    user_table().write_text("no table")
    monkeypatch.setattr(bench_attention, "measure", lambda *args, **more: pytest.fail("measured"))
    assert main(SMALL) == 2
    assert f"{user_table()}: is no JSON" in capsys.readouterr().err
    assert user_table().read_text() == "no table"
