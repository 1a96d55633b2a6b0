"""``auto`` goes by the table, is settled when the model is built, and says so once where it knows nothing."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from omnihuman_core.contracts import AttentionSupport, Conditioning, TextCondition
from omnihuman_core.mmdit import MMDiT, tiny
from omnihuman_core.ops import choose_attention, choose_ops, eager_ops, softmax_attention
from omnihuman_core.ops.attention_backends import Target, describe_target
from omnihuman_core.ops.attention_choice import Bucket, costs, fastest, planned
from omnihuman_core.ops.attention_table import TableError, user_table, write_table

from .fakes import CPU, HOPPER, Installed, explicit, inputs, key_mask, row

NAMES = ("sdpa", "sdpa_flash", "flash_attn_2", "flex", "eager", "fast")
TARGET = Target(device=CPU, name="a machine", capability=None, dtype=torch.float32)

tables = st.lists(
    st.builds(
        row,
        st.sampled_from(NAMES),
        st.floats(1e-6, 10.0),
        length=st.sampled_from([16, 64, 100, 8192]),
        head_dim=st.sampled_from([16, 64]),
        masked=st.booleans(),
        direction=st.sampled_from(["forward", "training"]),
    ),
    max_size=40,
)


@given(rows=tables, available=st.permutations(NAMES).map(lambda names: names[:4]), training=st.booleans())
def test_the_choice_is_never_slower_than_098_of_the_best(rows, available, training):
    plan = fastest(rows, available, training=training)
    times = {}
    for entry in rows:
        if entry.direction == ("training" if training else "forward") and entry.backend in available:
            bucket = Bucket(head_dim=entry.head_dim, masked=entry.masked, length=entry.length)
            times.setdefault(bucket, {})[entry.backend] = entry.seconds
    assert set(plan) == set(times)
    for bucket, name in plan.items():
        assert min(times[bucket].values()) / times[bucket][name] >= 0.98


@given(rows=tables, training=st.booleans())
def test_a_call_at_a_measured_shape_gets_the_chosen_backend(rows, training):
    def backend(name):
        return lambda q, k, v, *, mask=None: name

    plan = fastest(rows, NAMES, training=training)
    attention = planned(plan, {name: backend(name) for name in NAMES}, backend("otherwise"))
    for bucket, name in plan.items():
        q = torch.empty(1, bucket.length, 1, bucket.head_dim)
        assert attention(q, q, q, mask=True if bucket.masked else None) == name


def test_of_two_that_are_as_fast_the_plainer_is_taken():
    assert list(fastest([row("flex", 0.99), row("sdpa", 1.0)], NAMES, training=False).values()) == ["sdpa"]
    assert list(fastest([row("flex", 0.97), row("sdpa", 1.0)], NAMES, training=False).values()) == ["flex"]


def test_training_goes_by_the_times_of_a_training_step():
    rows = [row("sdpa", 1.0), row("eager", 2.0), row("sdpa", 9.0, direction="training"),
            row("eager", 3.0, direction="training")]  # fmt: skip
    assert list(fastest(rows, NAMES, training=False).values()) == ["sdpa"]
    assert list(fastest(rows, NAMES, training=True).values()) == ["eager"]
    assert list(costs(rows, training=True).values()) == [{"sdpa": 9.0, "eager": 3.0}]


def test_buckets_end_between_their_neighbours_and_do_not_reach_far():
    def backend(name):
        return lambda q, k, v, *, mask=None: name

    plan = {
        Bucket(head_dim=16, masked=False, length=100): "a",
        Bucket(head_dim=16, masked=False, length=144): "b",
        Bucket(head_dim=16, masked=True, length=100): "c",
    }
    attention = planned(plan, {name: backend(name) for name in "abc"}, backend("rest"))

    def chosen(length, head_dim=16, masked=False):
        q = torch.empty(1, length, 1, head_dim)
        return attention(q, q, q, mask=torch.ones(1, length, dtype=torch.bool) if masked else None)

    assert [chosen(n) for n in (49, 50, 100, 119, 121, 144, 288, 289)] == ["rest", *"aaabbb", "rest"]
    assert chosen(150, masked=True) == "c"
    assert chosen(201, masked=True) == "rest"
    assert chosen(100, head_dim=32) == "rest"


def test_auto_calls_what_the_table_says():
    rows = [row("eager", 0.5), row("sdpa", 1.0), row("sdpa", 0.5, masked=True), row("eager", 1.0, masked=True)]
    choice = choose_attention("auto", TARGET, rows=rows)
    assert choice.notice is None
    assert choice.summary == "eager near 64 x 16; sdpa near 64 x 16 masked; sdpa elsewhere"
    for mask in (None, key_mask(2, 64)):
        q, k, v = inputs(2, 64, 64, 2, 16)
        torch.testing.assert_close(
            choice.attention(q, k, v, mask=mask).double(), explicit(q, k, v, mask), atol=2e-6, rtol=1e-5
        )


def test_auto_passes_over_what_cannot_run_and_what_is_gone():
    rows = [row("sdpa_cudnn", 0.1), row("uninstalled", 0.1), row("eager", 0.5), row("sdpa", 1.0)]
    assert choose_attention("auto", TARGET, rows=rows).summary == "eager near 64 x 16; sdpa elsewhere"


def test_where_sdpa_is_best_nothing_stands_between():
    assert choose_attention("auto", TARGET, rows=[row("sdpa", 0.1), row("eager")]).attention is eager_ops().attention


@pytest.mark.parametrize("rows", [[], [row("eager", device="another")], [row("eager", dtype="bfloat16")]])
def test_without_times_a_gpu_gets_sdpa_and_one_notice(rows):
    choice = choose_attention("auto", HOPPER, rows=rows)
    assert choice.attention is eager_ops().attention
    assert "not been measured on NVIDIA H100 80GB HBM3 in bfloat16; omnihuman-core bench-attention" in choice.notice


def test_a_cpu_without_times_gets_what_it_always_had_in_silence():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose_ops(device="cpu", dtype=torch.float32) == eager_ops()
        assert choose_ops(device="cpu", dtype=torch.float32, training=True) == eager_ops()


def test_the_notice_is_given_once(monkeypatch):
    monkeypatch.setattr("omnihuman_core.ops.attention_choice.describe_target", lambda *args, **more: HOPPER)
    with pytest.warns(UserWarning, match="not been measured") as caught:
        choose_ops(device="cuda", dtype=torch.bfloat16)
    assert len(caught) == 1


def test_the_users_table_is_followed():
    here = describe_target(CPU, torch.float32)
    write_table(user_table(), [row("eager", 0.5, device=here.name), row("sdpa", 1.0, device=here.name)])
    ops = choose_ops(device="cpu", dtype=torch.float32)
    assert ops.attention is not eager_ops().attention
    assert replace(ops, attention=eager_ops().attention) == eager_ops()
    q, k, v = inputs(1, 64, 64, 2, 16)
    assert torch.equal(ops.attention(q, k, v), softmax_attention(q, k, v))


def test_a_broken_table_stops_auto_but_not_a_name(home):
    user_table().parent.mkdir(parents=True)
    user_table().write_text("{")
    with pytest.raises(TableError, match="is no JSON"):
        choose_ops(device="cpu", dtype=torch.float32)
    assert choose_ops(attention="eager", device="cpu", dtype=torch.float32).attention is softmax_attention


def test_a_bundle_keeps_its_own_attention_where_no_time_is_known(monkeypatch):
    def mine(q, k, v, *, mask=None):
        return eager_ops().attention(q, k, v, mask=mask)

    bundles = Installed(monkeypatch, fast=replace(eager_ops(), attention=mine))
    monkeypatch.setattr("omnihuman_core.ops.attention_choice.resolve_ops", bundles.resolve)
    assert choose_ops("fast", device="cpu", dtype=torch.float32).attention is mine
    assert choose_ops("fast", attention="sdpa", device="cpu", dtype=torch.float32).attention is eager_ops().attention
    assert choose_ops(attention="fast", device="cpu", dtype=torch.float32).attention is mine


def test_a_name_that_cannot_be_used_says_why():
    with pytest.raises(
        ValueError, match="^flash_attn_2 cannot be used: does not run on cpu; choose another one or auto$"
    ):
        choose_attention("flash_attn_2", TARGET)


def test_masks_and_widths_that_a_named_backend_lacks(monkeypatch):
    def narrow(q, k, v, *, mask=None):
        assert mask is None
        return q * 0

    support = AttentionSupport(device="cpu", head_dims=(16,), key_mask=False)
    Installed(monkeypatch, narrow=replace(eager_ops(), attention=narrow, attention_support=(support,)))
    choice = choose_attention("narrow", TARGET)
    assert choice.notice == "narrow takes no key mask on cpu; calls with one go to sdpa"
    q, k, v = inputs(head_dim=16)
    mask = key_mask()
    assert choice.attention(q, k, v).abs().max() == 0
    torch.testing.assert_close(
        choice.attention(q, k, v, mask=mask).double(), explicit(q, k, v, mask), atol=2e-6, rtol=1e-5
    )
    with pytest.raises(ValueError, match="narrow takes no heads of width 24"):
        choice.attention(*inputs(head_dim=24))


def test_a_model_built_with_a_plan_compiles_into_one_graph():
    rows = [row("eager", 0.5, length=20, head_dim=64, masked=True), row("sdpa_flash", 1.0, length=20, head_dim=64)]
    ops = replace(eager_ops(), attention=choose_attention("auto", TARGET, rows=rows).attention)
    assert ops != eager_ops()
    torch.manual_seed(0)
    config = replace(tiny(), num_double_blocks=1, num_single_blocks=1, audio_blocks=(0, 1))
    model, usual = MMDiT(config, ops).eval(), MMDiT(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    usual.load_state_dict(model.state_dict())
    mask = torch.tensor([[True, True, True, False]])
    text = TextCondition(tokens=torch.randn(1, 4, 128), mask=mask, pooled=torch.randn(1, 128))
    latents, sigma = torch.randn(1, 16, 1, 8, 8), torch.tensor([0.5])
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        out = compiled(latents, sigma, Conditioning(text=text))
        torch.testing.assert_close(out, usual(latents, sigma, Conditioning(text=text)), atol=1e-4, rtol=1e-4)
