"""A plan against what torch really holds, and what it says of a run that does not fit."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from rich.console import Console
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from omnihuman_core.mmdit import MMDiT, presets
from omnihuman_core.ops import eager_ops
from omnihuman_train.cli import main
from omnihuman_train.config import OptimizerConfig, ParallelConfig
from omnihuman_train.ema import Ema
from omnihuman_train.flops import SampleTokens, forward_flops
from omnihuman_train.gpus import GPUS, gpu
from omnihuman_train.lora import LoraSettings, add_lora
from omnihuman_train.memory import activation_memory, shard_numel, weight_memory
from omnihuman_train.model import OmniModel
from omnihuman_train.optim import OptimizerGroup
from omnihuman_train.plan import make_plan, smallest_change, step_time
from omnihuman_train.plan_report import tables
from omnihuman_train.recipes import stage1, stage2, stage3, tiny
from omnihuman_train.saved_tensors import fused_ops, meta_inputs, saved_bytes
from omnihuman_train.stage_config import PARTS
from omnihuman_train.workload import changed, workload

from .stage_toys import toy

NARROW = replace(
    presets.tiny(), hidden_size=128, num_heads=2, num_double_blocks=1, num_single_blocks=2, audio_blocks=(0, 1, 2)
)
# 1,100 keys: torch's fused attention on a CPU too.
TOKENS = SampleTokens(frame=144, references=1, motion_frames=1, video_frames=6, text=24, audio_per_frame=4)


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=4)], ids=["whole", "low rank"])
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_one_rank_holds_what_torch_holds(name: str, lora: LoraSettings | None) -> None:
    torch.manual_seed(0)
    model = OmniModel.from_preset("tiny", probe=True)
    if lora is not None:
        add_lora(model, lora)
    config = OptimizerConfig(name=name)  # type: ignore[arg-type]
    planned = weight_memory(model, config, shards=1)
    ema, optimizer = Ema(model, 0.99), OptimizerGroup(model, config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    optimizer.step(1.0)
    states = [entry for part in optimizer.optimizers for entry in part.state.values()]
    # A step counter of four bytes for each weight is not worth a line.
    moments = sum(v.nbytes for entry in states for v in entry.values() if isinstance(v, Tensor) and v.ndim)
    assert planned.weights == sum(v.nbytes for v in (*model.parameters(), *model.buffers()))
    assert planned.gradients == gradients
    assert planned.moments == moments
    assert planned.average == sum(value.nbytes for value in ema.shadow.values())


def test_low_rank_updates_are_planned_as_they_are_trained(tmp_path: Path) -> None:
    plain = toy(stage2.small(), tmp_path, tmp_path)
    config = replace(plain, lora=LoraSettings(rank=4), flow=replace(plain.flow, mouth_probe_weight=0.1))
    real = OmniModel(
        **{name: chosen.build(kind) for name in PARTS for kind, chosen in [config.model.component(name)]},
        mouth_probe=torch.nn.Linear(256, 1),
    )
    trained = add_lora(real, LoraSettings(rank=4))
    work, whole = workload(config), workload(plain)
    assert work.trained == trained
    assert 0 < trained < 0.9 * whole.trained == 0.9 * sum(whole.parts.values())
    plans = [make_plan(planned, gpu("h100"), 2) for planned in (work, whole)]
    assert plans[0].weights.gradients == pytest.approx(4 * trained / 2, rel=0.02)
    assert plans[0].weights.moments == 2 * plans[0].weights.gradients
    assert plans[0].weights.reduced < plans[1].weights.reduced
    assert plans[0].times[0].model_flops < 0.95 * plans[1].times[0].model_flops
    assert plans[0].times[0].weights < plans[1].times[0].weights
    names = [str(cell) for cell in tables(plans[0], mfu=0.3)[0].columns[0].cells]
    assert names[-2:] == ["all", "trained"]
    assert [str(cell) for cell in tables(plans[1], mfu=0.3)[0].columns[0].cells][-1] == "all"


@pytest.mark.parametrize("shape", [(10, 3), (7,), (1, 5, 2), ()])
def test_shards_are_those_that_torch_cuts(shape: tuple[int, ...]) -> None:
    whole = torch.zeros(shape)
    for shards in (1, 2, 3, 8):
        largest = whole.chunk(shards)[0] if shape else whole
        assert shard_numel(shape, shards) == largest.numel()


@pytest.mark.parametrize("samples", [1, 2])
def test_activations_are_what_a_real_forward_keeps(samples: int) -> None:
    """Real eager ops, on a CPU in bf16, with torch's fused attention, which keeps copies of nothing."""
    torch.manual_seed(0)
    latents, conditioning = meta_inputs(NARROW, TOKENS, samples)
    model = MMDiT(NARROW, eager_ops()).to(torch.bfloat16)
    weights = {value.untyped_storage().data_ptr() for value in model.parameters()}
    seen: dict[int, Tensor] = {}

    def note(value: Tensor) -> Tensor:
        if value.untyped_storage().data_ptr() not in weights:
            seen[value.untyped_storage().data_ptr()] = value
        return value

    with saved_tensors_hooks(note, lambda value: value):
        model(latents, torch.full((samples,), 0.5), conditioning)
    real = sum(value.untyped_storage().nbytes() for value in seen.values())
    planned = activation_memory(NARROW, TOKENS, mode="none", samples=samples, sequence=1, fused=False)
    token = 2 * samples * NARROW.hidden_size * TOKENS.total
    assert planned.kept + planned.outside - 2 * token == pytest.approx(real, rel=0.1)


def test_checkpointing_keeps_less_and_fused_ops_too() -> None:
    kept = [
        activation_memory(NARROW, TOKENS, mode=mode, samples=2, sequence=1, fused=fused).kept
        for fused in (False, True)
        for mode in ("none", "selective", "full")
    ]
    assert kept[0] > kept[3] > kept[1] == kept[4] > kept[2] == kept[5]
    # Full checkpointing keeps the input of each block, and nothing else.
    assert kept[2] == NARROW.num_blocks * 2 * 2 * NARROW.hidden_size * TOKENS.total


def test_memory_grows_with_samples_and_falls_with_ranks() -> None:
    one, many = (activation_memory(NARROW, TOKENS, mode="full", samples=n, sequence=1, fused=True) for n in (2, 8))
    assert many.total == pytest.approx(4 * one.total, rel=1e-3)
    text = TOKENS.text / TOKENS.total
    half = activation_memory(NARROW, TOKENS, mode="full", samples=2, sequence=2, fused=True)
    # Every rank has all of the text.
    assert half.kept == pytest.approx(one.kept * (1 + text) / 2, rel=1e-3)


def test_a_block_of_one_pass_ops_keeps_about_twenty_hidden_states() -> None:
    """Counted by hand for a single block: input, normed, qkv (3), q and k turned (2), attention, its join with MLP (5),
    the MLP before its activation (4), the output, and statistics."""
    config = replace(presets.hunyuan_video(), num_double_blocks=1, num_single_blocks=1, hidden_size=256, num_heads=2)
    tokens = SampleTokens(frame=256, references=0, motion_frames=0, video_frames=2, text=16, audio_per_frame=0)
    (_, single), _ = saved_bytes(config, tokens, 1, fused_ops())
    assert single / (2 * config.hidden_size * tokens.total) == pytest.approx(18, abs=0.6)


def test_the_13b_model_at_480p_is_planned_without_memory_or_time() -> None:
    work = changed(workload(stage3.hunyuan_video()), accumulate=4, sequence=1)
    plan = make_plan(work, gpu("h100"), 64)
    assert sum(work.parts.values()) == pytest.approx(14.2e9, rel=0.01)
    assert plan.samples == 1
    assert plan.fits
    # fp32 weights, gradients, two moments and an average over 64 ranks.
    states = plan.weights.weights + plan.weights.gradients + plan.weights.moments + plan.weights.average
    assert states == pytest.approx(20 * sum(work.parts.values()) / 64, rel=0.01)
    (time,) = plan.times
    floor = 4 * 3 * forward_flops(work.backbone, work.stages[0].tokens).total / GPUS["h100"].peak_flops
    assert floor < time.compute < 3 * floor
    assert time.total * 64 * GPUS["h100"].peak_flops > time.model_flops


def test_what_does_not_fit_names_the_smallest_change() -> None:
    work = changed(workload(stage3.hunyuan_video()), accumulate=1, sequence=1)
    crowded = make_plan(work, gpu("h100"), 64)
    assert not crowded.fits
    assert smallest_change(work, gpu("h100"), 64) == "--set run.accumulate=4"
    assert make_plan(changed(work, accumulate=4), gpu("h100"), 64).fits
    assert not make_plan(changed(work, accumulate=2), gpu("h100"), 64).fits
    assert smallest_change(work, gpu("rtx4090"), 1) is None


@pytest.mark.parametrize("recipe", [stage1, stage2, stage3])
def test_the_shipped_recipes_fit_the_gpus_that_the_docs_name(recipe: ModuleType) -> None:
    for work, count in ((workload(recipe.hunyuan_video()), 64), (workload(recipe.small()), 1)):
        for name in ("a100", "h100"):
            plan = make_plan(work, gpu(name), count)
            assert plan.memory < 0.7 * plan.room


def test_a_narrow_terminal_or_a_file_loses_nothing() -> None:
    work = workload(tiny.tiny())
    plan = make_plan(work, gpu("h100"), 1)
    console = Console(file=io.StringIO(), width=80)
    for table in tables(plan, mfu=0.35):
        console.print(table)
    out = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in out
    assert all(stage.name in out for stage in work.stages)


def test_several_ranks_share_time_and_pay_for_it() -> None:
    work = workload(stage3.hunyuan_video())
    (stage,) = work.stages
    alone, shared = (step_time(work, stage, gpu("h100"), (1, 64 // s, s)) for s in (1, 4))
    assert alone.compute == pytest.approx(shared.compute)
    assert (alone.exchange, shared.exchange > 0) == (0.0, True)
    twice = step_time(work, stage, gpu("h100"), (2, 64, 1))
    assert twice.compute == pytest.approx(alone.compute / 2)
    full = step_time(changed(work, activation_checkpoint="full"), stage, gpu("h100"), (1, 64, 1))
    none = step_time(changed(work, activation_checkpoint="none"), stage, gpu("h100"), (1, 64, 1))
    assert none.compute < alone.compute < full.compute
    assert none.model_flops == full.model_flops


def test_a_run_on_drawn_characters_has_all_its_stages() -> None:
    work = workload(tiny.tiny())
    assert [stage.name for stage in work.stages] == ["text", "text+audio", "text+audio+pose"]
    assert work.stages[0].tokens.video_frames == 1
    assert work.stages[2].tokens.total == 10 * 16 + 24


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "8", "--gpu", "abacus"], "--gpu abacus: unknown; known are a100, h100"),
        (["--gpus", "0", "--gpu", "h100"], "--gpus must be at least 1"),
        (["--gpus", "7", "--gpu", "h100"], "64 samples a step cannot be shared by 7 data-parallel ranks"),
        (["--gpus", "8", "--gpu", "h100", "--set", "run.parallel.sequence=8"], "does not divide 12 heads"),
        (["--gpus", "8", "--gpu", "h100", "--mfu", "3"], "--mfu must lie in (0, 1], got 3"),
        (["--gpus", "8", "--gpu", "h100", "--set", "run.speed=3"], "unknown field 'speed'"),
        (["--gpus", "8", "--gpu", "h100", "--config", "tests.train.recipes:no_recipe"], "got dict"),
    ],
)
def test_a_plan_that_cannot_be_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    config = [] if "--config" in arguments else ["--config", "omnihuman_train.recipes.stage1:small"]
    assert main(["plan", *config, *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]


def test_the_command_prints_tables_and_a_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", "--config", "omnihuman_train.recipes.stage1:small", "--gpus", "1", "--gpu", "h100"]
    assert main(arguments) == 0
    assert "fits: a rank needs" in capsys.readouterr().out.splitlines()[-1]
    assert main([*arguments, "--set", "run.accumulate=1"]) == 1
    out = capsys.readouterr().out
    assert all(title in out for title in ("Parameters", "Memory of a rank", "Time on 1 x H100 SXM"))
    assert "does not fit: a rank needs" in out.splitlines()[-1]
    assert "the smallest change that would: --set run.accumulate=4" in out.splitlines()[-1]
    sizes = ParallelConfig(sequence=3).sizes(6)
    assert make_plan(changed(workload(stage1.small()), sequence=3), gpu("h100"), 6).sizes == sizes


WRAP = """
import json, sys
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from omnihuman_train.config import ParallelConfig
from omnihuman_train.distributed.fsdp import shard
from omnihuman_train.distributed.mesh import join
from omnihuman_train.distributed.shards import local
from omnihuman_train.recipes import stage3
from omnihuman_train.workload import workload

dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=64)
model = workload(stage3.hunyuan_video()).model
shard(model, join(ParallelConfig(), "cpu"))
assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
trained = sum(local(parameter).nbytes for parameter in model.parameters())
held = trained + sum(local(buffer).nbytes for buffer in model.buffers())
print(json.dumps({"weights": held, "gradients": trained, "moments": 2 * trained, "average": trained}))
"""


def test_fsdp_holds_of_the_13b_model_what_was_planned() -> None:
    """FSDP2 really wraps it on meta, as rank 0 of 64."""
    done = subprocess.run([sys.executable, "-c", WRAP], capture_output=True, text=True, check=True)
    held = json.loads(done.stdout.splitlines()[-1])
    work = workload(stage3.hunyuan_video())
    planned = weight_memory(work.model, work.optimizer, shards=64)
    for name, count in held.items():
        assert getattr(planned, name) == pytest.approx(count, rel=0.03), name
