"""Activation checkpointing, regional compilation and LoRA: applied to a model that does not know of them."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode

from omnihuman_core.mmdit import MMDiT
from omnihuman_train.config import FlowConfig
from omnihuman_train.distributed import activation_checkpoint
from omnihuman_train.distributed.activation_checkpoint import blocks_of, checkpoint_blocks
from omnihuman_train.distributed.compile import compile_blocks
from omnihuman_train.lora import LoraSettings, add_lora, merged_state
from omnihuman_train.model import OmniModel
from omnihuman_train.objective import FlowObjective

from .models import flow_batches, narrow_mmdit, toy_model, write_latents


@pytest.fixture
def batch(tmp_path: Path) -> Any:
    return flow_batches(write_latents(tmp_path / "latents"), batch_size=4)(0)


def gradients(model: OmniModel, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    loss = FlowObjective(FlowConfig())(model, batch).loss
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach(), {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}


class Count(TorchDispatchMode):
    """Calls of the fused attention and of matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = self.products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        self.attention += name.startswith("aten::_scaled_dot_product") and "backward" not in name
        self.products += name in ("aten::mm", "aten::addmm", "aten::bmm")
        return func(*args, **(kwargs or {}))


def long_input() -> tuple[MMDiT, Tensor, Tensor, Any]:
    """More than 1024 tokens: past that the fused attention is taken on a CPU."""
    from omnihuman_core.contracts import Conditioning

    model = narrow_mmdit()
    channels = model.config.latent_channels
    return model, torch.randn(1, channels, 5, 32, 32), torch.tensor([0.5]), Conditioning()


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_recomputed_activations_change_no_gradient(batch: Any, mode: Any) -> None:
    model = toy_model(narrow_mmdit())
    loss, grads = gradients(model, batch)
    names = list(model.state_dict())
    checkpoint_blocks(model.backbone, mode)
    again, same = gradients(model, batch)
    assert list(model.state_dict()) == names
    assert torch.equal(again, loss)
    assert same.keys() == grads.keys()
    assert all(torch.equal(same[name], grads[name]) for name in grads)


def test_selective_keeps_attention_and_full_runs_it_twice() -> None:
    counts = {}
    for mode in ("none", "selective", "full"):
        model, latents, sigma, conditioning = long_input()
        checkpoint_blocks(model, mode)  # type: ignore[arg-type]
        with Count() as count:
            model(latents, sigma, conditioning).square().mean().backward()
        counts[mode] = (count.attention, count.products)
    blocks = len(blocks_of(narrow_mmdit()))
    assert [counts[mode][0] for mode in ("none", "selective", "full")] == [blocks, blocks, 2 * blocks]
    assert counts["none"][1] < counts["selective"][1] == counts["full"][1]


def test_selective_looks_at_operations_only_where_attention_is_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Any] = []
    made = activation_checkpoint.create_selective_checkpoint_contexts

    def contexts(policy: Any) -> Any:
        looked.append(policy)
        return made(policy)

    monkeypatch.setattr(activation_checkpoint, "create_selective_checkpoint_contexts", contexts)
    model, latents, sigma, conditioning = long_input()
    checkpoint_blocks(model, "selective")
    model(latents[..., :16], sigma, conditioning).sum().backward()
    assert not looked
    model(latents, sigma, conditioning).sum().backward()
    assert len(looked) == len(blocks_of(model))


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^activation_checkpoint must be none, selective or full"):
        checkpoint_blocks(narrow_mmdit(), "some")  # type: ignore[arg-type]


def test_blocks_are_found_in_order_inside_any_module() -> None:
    backbone = narrow_mmdit()
    assert blocks_of(toy_model(backbone)) == [*backbone.double_blocks, *backbone.single_blocks]


def test_compiled_blocks_give_the_same_gradients(batch: Any) -> None:
    model = toy_model(narrow_mmdit())
    loss, grads = gradients(model, batch)
    checkpoint_blocks(model.backbone, "full")
    compile_blocks(model.backbone, backend="aot_eager")
    again, same = gradients(model, batch)
    torch.testing.assert_close(again, loss)
    for name, grad in grads.items():
        torch.testing.assert_close(same[name], grad, msg=name)


def test_no_shape_of_a_run_is_left_uncompiled() -> None:
    torch._dynamo.reset()
    shapes = 70
    model = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(2, 2)])})
    graphs = CompileCounter()
    # Not by monkeypatch: it takes away what a module of settings did not hold itself.
    with torch._dynamo.config.patch(recompile_limit=8, accumulated_recompile_limit=8):
        compile_blocks(model, shapes=shapes, backend=graphs)
        for length in range(1, shapes + 1):
            blocks_of(model)[0](torch.ones(length, 2))
    assert graphs.frame_count == shapes


def test_lora_starts_as_the_model_and_merges_into_it(batch: Any) -> None:
    model = toy_model(narrow_mmdit())
    # The gates of a fresh model are zero, and frozen here: nothing in a block would learn.
    for parameter in model.backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    before, names = copy.deepcopy(model.state_dict()), list(model.state_dict())
    loss, _ = gradients(model, batch)
    trained = add_lora(model, LoraSettings(rank=2))
    start, grads = gradients(model, batch)
    torch.testing.assert_close(start, loss)
    free = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == sum(parameter.numel() for parameter in free.values())
    assert grads.keys() <= free.keys()
    lora = {name for name in grads if "lora_" in name}
    # Both matrices of qkv and out of two streams, and of the two products of a single block.
    assert len(lora) == 2 * (2 * 2 + 2)
    others = {name.partition(".")[0] for name in grads.keys() - lora}
    assert others <= {"backbone", "audio_encoder", "pose_encoder", "text_encoder"}
    fresh = (".audio.", "pose", "segment_embed")
    backbone = {name for name in free.keys() - lora if name.startswith("backbone")}
    assert all(any(path in name for path in fresh) for name in backbone)
    assert {"backbone.segment_embed", "text_encoder.null_token"} < free.keys()
    assert {name for name in free if name.startswith("text_encoder")} == {"text_encoder.null_token"}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        gradients(model, batch)
        optimizer.step()
    moved, _ = gradients(model, batch)
    state = merged_state(model.state_dict(), LoraSettings(rank=2))
    assert list(state) == names
    plain = toy_model(narrow_mmdit())
    plain.load_state_dict(state)
    merged = FlowObjective(FlowConfig())(plain, batch).loss
    torch.testing.assert_close(merged, moved, rtol=1e-4, atol=1e-6)
    touched = "backbone.single_blocks.0.linear1.weight"
    assert not torch.equal(state[touched], before[touched])
    frozen = "backbone.final_layer.proj.weight"
    assert torch.equal(state[frozen], before[frozen])


def test_lora_that_matches_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"lora\.targets 'query' matches no linear layer; there are, for example"):
        add_lora(toy_model(narrow_mmdit()), LoraSettings(targets="query"))
    with pytest.raises(ValueError, match=r"lora\.rank must be at least 1, got 0"):
        LoraSettings(rank=0)
