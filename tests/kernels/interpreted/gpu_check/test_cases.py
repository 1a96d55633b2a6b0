"""What is checked and measured."""

import functools
import re
from dataclasses import replace

import torch


def test_q_and_k_are_measured_and_compared_as_slices_of_the_projection(check, monkeypatch):
    group, _ = check
    import cases

    from omnihuman_core.ops import qk_norm_rope

    monkeypatch.setattr(cases, "noise", torch.randn)
    for name, value in {"LENGTH": 5, "HEADS": 2, "HEAD_DIM": 16}.items():
        monkeypatch.setattr(cases, name, value)
    packed = (5 * 3 * 2 * 16, 3 * 2 * 16, 16, 1)
    seen = []

    def ours(q, k, *others, **options):
        seen.append((q.stride(), k.stride()))
        return qk_norm_rope(q, k, *others, **options)

    (described,) = cases.qk_norm_rope_cases()
    described = replace(described, ours=functools.partial(ours, eps=cases.EPS), eager=None)
    assert group.compare(described, described.make) == ""
    for direction in ("forward", "backward"):
        group.measure(described, direction, 1e12)
    assert len(seen) >= 3
    assert set(seen) == {(packed, packed)}


def test_the_compiled_peer_of_norm_and_rotation_is_the_eager_op(check):
    import cases

    torch.manual_seed(0)
    q, k, _ = torch.randn(2, 5, 3, 2, 16).unbind(2)
    angles, weights = torch.randn(5, 8), torch.randn(2, 16)
    inputs = (q, k, *weights, angles.cos(), angles.sin())
    expected = cases.EAGER.qk_norm_rope(*inputs, eps=cases.EPS)
    torch.testing.assert_close(cases.real_qk_norm_rope(*inputs, eps=cases.EPS), expected)
    assert next(cases.qk_norm_rope_cases()).compiled.func is cases.real_qk_norm_rope


def test_every_row_of_the_goals_has_a_case(modules, monkeypatch):
    import cases

    meta_noise = functools.partial(torch.empty, device="meta")
    monkeypatch.setattr(cases, "noise", lambda *shape: meta_noise(shape))
    monkeypatch.setattr(cases, "packed_attention_cases", lambda: iter(()))
    made = [c for name, group in cases.GROUPS.items() if name != "packed_attention" for c in group()]
    targets = {(c.op, re.search(r"K=\d+|$", c.shape)[0], *key): least for c in made for key, least in c.targets.items()}
    assert targets["joint_attention", "K=128", "forward", "sdpa flash"] == (1.20, 1.60)
    assert targets["joint_attention", "K=128", "forward", "sdpa cudnn"] == (0.78, 0.97)
    assert targets["joint_attention", "K=64", "forward", "sdpa cudnn"] == (0.90, 1.05)
    assert targets["joint_attention", "K=128", "backward", "sdpa cudnn"] == (0.55, 0.95)
    for op in ("qk_norm_rope", "modulated_norm", "gated_residual", "residual_modulated_norm"):
        shape = "K=128" if op == "qk_norm_rope" else ""
        assert targets[op, shape, "forward", "copy"] == (0.75, 0.92)
        assert targets[op, shape, "backward", "copy"] == (0.60, 0.85)
    assert targets["qk_norm_rope", "K=128", "forward", "eager"] == (6, 10)
    assert targets["qk_norm_rope", "K=128", "forward", "compile"] == (1.05, 1.5)
    assert targets["frame_cross_attention", "K=128", "forward", "copy"] == (0.60, 0.85)
    assert targets["frame_cross_attention", "K=128", "backward", "copy"] == (0.60, 0.85)
    assert targets["dit_forward", "", "forward", "diffusers default"] == (1.3, 1.9)
    assert targets["dit_forward", "", "forward", "diffusers best"] == (1.0, 1.2)
    assert {*cases.GROUPS, "agreement", "tiles"} == set(modules.gpu_check.GROUPS)


def test_some_queries_among_all_agree(check, monkeypatch):
    group, _ = check
    import cases

    monkeypatch.setattr(cases, "noise", torch.randn)
    case = next(c for c in cases.attention_cases() if c.part is not None)
    function, given = case.part.func, (70, 2, 16)
    good = replace(case, part=functools.partial(function, *given))
    assert group.compare_part(good, torch.float32) == ""

    def shifted():
        ours, inputs = function(*given)
        return lambda q, k, v: ours(q, k, v).roll(1, dims=1), inputs

    assert "tensor 0" in group.compare_part(replace(case, part=shifted), torch.float32)


def test_small_gradients_of_a_long_sequence_can_fail_it(check, monkeypatch):
    """Of thousands of keys each gets so little that no gradient at all would be within two roundings of one."""
    group, _ = check
    import cases

    from tests.kernels import references

    monkeypatch.setattr(cases, "noise", torch.randn)
    case = next(c for c in cases.attention_cases() if c.part is not None)

    _, inputs = case.part.func(1 << 16, 1, 16)

    def attention(q, k, v):
        return references.attention(q, k.detach(), v) + 0 * k.sum()

    torch.manual_seed(0)
    assert group.compare_part(replace(case, part=lambda: (references.attention, inputs))) == ""
    assert "tensor 2: error 1 of its norm" in group.compare_part(replace(case, part=lambda: (attention, inputs)))
