"""What the process of one group does."""

import functools
import types

import pytest
import torch

from omnihuman_kernels.gated_residual import gated_residual
from tests.kernels import references
from tests.kernels.interpreted.gpu_check.builders import SEGMENTS, case, plain, wrong


def test_an_op_that_agrees_passes_and_a_wrong_one_does_not(check, capsys):
    group, kind = check
    good = case(kind)
    # bfloat16 is cut off by the interpreter; float32 shows that the comparison itself works.
    assert group.compare(good, good.make, torch.float32) == ""
    wrong = case(kind, ours=lambda r, x, g: gated_residual(r, x, g * 1.1, segments=SEGMENTS))
    assert "tensor" in group.compare(wrong, wrong.make, torch.float32)


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_row_holds_the_floor_and_the_targets(check, modules, direction):
    group, kind = check
    row = group.measure(case(kind), direction, copy=1e6)
    assert row["floor"] == pytest.approx(3 * 5 * 16 * 2 / 1e6)
    assert set(row["peers"]) == {"eager", "compile"}
    assert [t["against"] for t in row["targets"]] == (["copy", "eager"] if direction == "forward" else [])
    line = modules.report.describe({"op": "x", "shape": "y", "status": "measured", **row})
    assert ("MISSED" in line) == (direction == "forward")


def test_a_peer_that_cannot_run_is_noted(check):
    def broken(*args):
        raise RuntimeError("no such backend")

    group, kind = check
    row = group.measure(case(kind, eager=None, peers={"cudnn": broken}), "forward", copy=1e6)
    assert row["refused"] == {"cudnn": "RuntimeError: no such backend"}


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_compiled_peers_keep_what_the_next_backward_needs(check, direction):
    """Compiled code reuses the memory of what it saved, and refuses a second backward, unless it is told not to."""
    import torch._functorch.config as settings

    group, kind = check
    seen = []

    def compiled(*inputs):
        seen.append(settings.donated_buffer)
        return references.gated_residual(*inputs, segments=SEGMENTS)

    with settings.patch(donated_buffer=True):
        group.measure(case(kind, compiled=compiled), direction, copy=1e6)
        # Compilation is done by the first call; later ones only time it.
        assert seen[0] is False
        assert settings.donated_buffer is True


def test_a_group_times_what_agrees_and_only_that(run_group):
    rows = run_group(plain("good"), plain("bad", ours=wrong))
    assert [(row["op"], row["status"]) for row in rows] == [("good", "agrees"), ("good", "measured"), ("bad", "failed")]
    assert "seconds" not in rows[-1]


def test_a_part_of_the_real_size_can_fail_an_op(run_group):
    inputs = [torch.randn(1, 5, 16), torch.randn(1, 5, 16), torch.randn(1, 2, 16)]
    (row,) = run_group(plain("bad", part=lambda: (wrong, inputs)))
    assert row["status"] == "failed"
    rows = run_group(plain("good", part=lambda: (plain("")["ours"], inputs)))
    assert [row["status"] for row in rows] == ["agrees", "measured"]


def test_a_missing_peer_is_named_even_without_a_target(run_group):
    def broken(*args):
        raise RuntimeError("no such backend")

    row = run_group(plain("good", peers={"cudnn": broken}, targets={}))[-1]
    assert (row["status"], row["against"], row["problem"]) == ("skipped", "cudnn", "RuntimeError: no such backend")


def test_a_peer_with_a_target_that_is_missing_is_skipped_by_name(run_group, modules):
    def missing(*args):
        raise modules.case.NotInstalled("diffusers not installed")

    targets = {("forward", "diffusers default"): (1.3, 1.9)}
    row = run_group(plain("dit_forward", peers={"diffusers default": missing}, targets=targets))[-1]
    line = modules.report.describe(row)
    assert line == "dit_forward small forward against diffusers default: skipped (diffusers not installed)"


def test_out_of_time_is_said(run_group):
    (row,) = run_group(plain("good"), seconds=-1)
    assert (row["op"], row["status"], row["problem"]) == ("good", "skipped", "out of time")


def test_no_compiled_peer_falls_back_to_plain_code(modules, monkeypatch):
    """After eight compilations through one piece of code torch runs the next function uncompiled, and only logs it."""
    graphs = []
    monkeypatch.setattr(
        torch,
        "compile",
        functools.partial(torch.compile, backend=lambda graph, _: graphs.append(graph) or graph.forward),
    )
    monkeypatch.setattr(modules.measure, "interleaved", lambda functions, seconds: dict.fromkeys(functions, 1e-3))
    for number in range(10):
        other = types.FunctionType(one_gate.__code__.replace(co_name=f"peer_{number}"), globals())
        peer = functools.partial(other, segments=SEGMENTS)
        modules.group.measure(case(modules.case.Case, eager=peer), "forward", 1e12)
        assert len(graphs) == number + 1


def one_gate(residual, x, gate, segments):
    return residual + gate[:, :1] * x
