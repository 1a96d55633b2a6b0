"""The whole model, ours and diffusers'."""

import sys
from dataclasses import replace

import pytest
import torch

from tests.kernels import references


@pytest.fixture
def dit(check, monkeypatch):
    import dit

    monkeypatch.setattr(dit, "noise", torch.randn)

    toy = {"hidden_size": 32, "num_heads": 2, "rope_dims": (4, 6, 6), "text_dim": 12, "pooled_dim": 10}
    monkeypatch.setattr(dit, "CONFIG", replace(dit.CONFIG, **toy))
    monkeypatch.setattr(dit, "LATENTS", (1, 16, 2, 4, 6))
    monkeypatch.setattr(dit, "SMALL_LATENTS", (1, 16, 2, 4, 6))
    monkeypatch.setattr(dit, "WORDS", 5)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: None)
    (case,) = dit.dit_cases()
    return case


def test_the_model_with_kernels_is_the_model_without(check, dit):
    assert check[0].compare(dit, dit.small, torch.float32) == ""


@pytest.mark.parametrize("kind", ["eager", "triton"])
def test_attention_over_the_whole_sequence_gets_no_mask(dit, monkeypatch, kind):
    """What no padding needs would take the slower kernels, and only for ours."""
    import dit as module

    model, masks = module.own_model(kind, torch.float32), []

    def seen(q, k, v, *, mask=None):
        masks.append(mask)
        return references.attention(q, k, v, mask)

    for block in [*model.double_blocks, *model.single_blocks]:
        monkeypatch.setattr(block, "ops", replace(block.ops, attention=seen))
    (latents,) = dit.small()
    module.own(latents, kind)
    assert masks == [None, None]


def test_diffusers_is_a_peer_where_it_is_installed(check, dit):
    pytest.importorskip("diffusers")
    row = check[0].measure(dit, "forward", 1e12)
    assert row["refused"] == {}
    assert [t["against"] for t in row["targets"]] == ["diffusers default", "diffusers best"]


@pytest.mark.parametrize("best", [False, True])
def test_diffusers_computes_what_we_do(dit, monkeypatch, best):
    """In float32, so that a step left out on either side shows."""
    pytest.importorskip("diffusers")
    import dit as module

    monkeypatch.setattr(module, "public_model", lambda best, make=module.public_model: make(best).float())
    (latents,) = dit.make()
    mine = module.own(latents, "eager")
    torch.testing.assert_close(module.public(latents, best), mine, rtol=1e-4, atol=1e-5)


def test_without_diffusers_the_model_is_still_measured(check, dit, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    row = check[0].measure(dit, "forward", 1e12)
    assert set(row["peers"]) == {"plain torch"}
    assert row["refused"] == dict.fromkeys(["diffusers default", "diffusers best"], "diffusers not installed")
