"""``omnihuman-train plan``: what a run needs, before anyone rents a GPU for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from omnihuman_train import gpus
from omnihuman_train.flops import executed_flops, training_flops
from omnihuman_train.gpus import Gpu
from omnihuman_train.memory import ActivationMemory, WeightMemory, activation_memory, weight_memory
from omnihuman_train.workload import StageLoad, Workload, changed

# What the driver, workspaces of libraries and gaps between tensors take of a GPU, as a share.
RESERVE = 0.08
# Passes over a hidden state that the ops of a block make beside matrix products and attention, forward and backward:
# modulated norm 2 and 3, norm and rotation of q and k 4 and 6, gated sum with norm 4 and 6, gated sum 3 and 3, GELU 8
# and 12; a single block has one norm less and joins attention and MLP, 10 and 10.
_DOUBLE_PASSES, _SINGLE_PASSES, _AUDIO_PASSES = (21, 30), (27, 34), (8, 12)


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of one optimiser step, at least.

    Attributes:
        compute: Matrix products, attention and passes over memory.
        weights: Gathering weights and reducing gradients, beside which the blocks compute.
        exchange: Tokens traded for heads, which the blocks wait for.
        model_flops: Model operations of the step, all ranks together.
    """

    compute: float
    weights: float
    exchange: float
    model_flops: float

    @property
    def total(self) -> float:
        """The step."""
        return max(self.compute, self.weights) + self.exchange


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run needs.

    Attributes:
        work: The run.
        gpu: GPU that it runs on.
        gpus: How many.
        sizes: ``(dp_replicate, dp_shard, sequence)``.
        samples: Samples that a rank computes at once.
        weights: Memory of one rank that does not depend on the samples.
        activations: Memory of one rank that does.
        encoders: Memory of one rank for the pose guider.
        times: A step of each stage.
    """

    work: Workload
    gpu: Gpu
    gpus: int
    sizes: tuple[int, int, int]
    samples: int
    weights: WeightMemory
    activations: ActivationMemory
    encoders: int
    times: tuple[StepTime, ...]

    @property
    def memory(self) -> int:
        """Bytes of one rank."""
        return self.weights.total + self.activations.total + self.encoders

    @property
    def room(self) -> int:
        """Bytes of a GPU that a run may take."""
        return int(self.gpu.memory_gib * 2**30 * (1 - RESERVE))

    @property
    def fits(self) -> bool:
        """Whether one rank has room on its GPU."""
        return self.memory <= self.room


def make_plan(work: Workload, gpu: Gpu, count: int) -> Plan:
    """What ``work`` needs on ``count`` GPUs.

    Raises:
        ValueError: sizes that do not multiply to ``count``, heads or samples that do not divide.
    """
    if count < 1:
        raise ValueError(f"--gpus must be at least 1, got {count}")
    replicate, shard, sequence = sizes = work.parallel.sizes(count)
    if work.backbone.num_heads % sequence:
        raise ValueError(f"parallel.sequence is {sequence}, which does not divide {work.backbone.num_heads} heads")
    longest, ranks = work.longest, replicate * shard
    if longest.samples % (ranks * work.accumulate):
        raise ValueError(
            f"stage {longest.name!r}: {longest.samples} samples a step cannot be shared by {ranks} data-parallel ranks "
            f"in {work.accumulate} parts; change run.batch_size, run.accumulate or run.parallel.sequence"
        )
    samples = longest.samples // (ranks * work.accumulate)
    weights = weight_memory(work.model, work.optimizer, shards=shard * sequence)
    activations = activation_memory(
        work.backbone,
        longest.tokens,
        mode=work.activation_checkpoint,
        samples=samples,
        sequence=sequence,
        fused=work.fused,
        wide=work.precision == "fp32",
    )
    return Plan(
        work=work,
        gpu=gpu,
        gpus=count,
        sizes=sizes,
        samples=samples,
        weights=weights,
        activations=activations,
        encoders=samples * work.pose_bytes * (2 if work.precision == "fp32" else 1),
        times=tuple(step_time(work, stage, gpu, sizes) for stage in work.stages),
    )


def step_time(work: Workload, stage: StageLoad, gpu: Gpu, sizes: tuple[int, int, int]) -> StepTime:
    """Seconds of a step of one stage, at least: the roofline of what its operations and bytes cost.

    Args:
        work: The run.
        stage: The stage.
        gpu: GPU of each rank.
        sizes: ``(dp_replicate, dp_shard, sequence)``.
    """
    replicate, shard, sequence = sizes
    ranks = replicate * shard * sequence
    flops = work.flops(stage)
    again = {"none": (0, 0), "selective": (1, 0), "full": (1, 1)}[work.activation_checkpoint]
    matrices = executed_flops(flops, "selective" if again[0] else "none") - 3.5 * flops.scores
    seconds = matrices / (gpus.LINEAR * gpu.peak_flops)
    seconds += (1 + again[1]) * flops.scores / (gpus.ATTENTION * gpu.peak_flops)
    seconds += 2.5 * flops.scores / (gpus.ATTENTION_BACKWARD * gpu.peak_flops)
    seconds += _passes(work, stage, again[0]) / (gpus.COPY * gpu.memory_bytes)
    per_rank = stage.samples / ranks
    # Every part gathers all weights twice in bf16, and reduces the gradients of the trained ones once in fp32.
    numbers, trained, shards = sum(work.parts.values()), work.trained, shard * sequence
    traffic = work.accumulate * 4 * (numbers + trained) * (shards - 1) / shards
    weights = traffic / (gpu.node_bytes if shards <= gpu.node_size else gpu.network_bytes)
    if replicate > 1:
        weights += work.accumulate * 8 * trained / shards * (replicate - 1) / replicate / gpu.network_bytes
    # q, k, v and the output of every attention change ranks, and their gradients on the way back.
    tokens = 4 * 2 * stage.tokens.total * work.backbone.hidden_size * work.backbone.num_blocks * (2 + again[0])
    exchange = per_rank * tokens * (sequence - 1) / sequence
    return StepTime(
        compute=per_rank * seconds,
        weights=weights,
        exchange=exchange / (gpu.node_bytes if sequence <= gpu.node_size else gpu.network_bytes),
        model_flops=stage.samples * training_flops(flops),
    )


def _passes(work: Workload, stage: StageLoad, again: int) -> float:
    """Bytes that the ops of all blocks move for one sample, if each makes one pass."""
    config, tokens = work.backbone, stage.tokens
    counts = (
        (config.num_double_blocks, _DOUBLE_PASSES, tokens.total),
        (config.num_single_blocks, _SINGLE_PASSES, tokens.total),
        (len(config.audio_blocks), _AUDIO_PASSES, tokens.frame * tokens.frames),
    )
    vectors = sum(n * (forward * (1 + again) + backward) * length for n, (forward, backward), length in counts)
    return 2.0 * config.hidden_size * vectors


def smallest_change(work: Workload, gpu: Gpu, count: int) -> str | None:
    """The cheapest setting that lets a run fit, as one would type it; None if none does.

    Tried in this order: smaller parts of a batch, checkpointing, tokens shared by several ranks, more GPUs; then
    checkpointing together with each of them.
    """
    for fields, number in _changes(work, count):
        try:
            plan = make_plan(changed(work, **fields), gpu, number)
        except ValueError:
            continue
        if plan.fits:
            more = [f"--gpus {number}"] if number != count else []
            return " ".join([f"--set {_SETTINGS[name]}={value}" for name, value in fields.items()] + more)
    return None


_SETTINGS = {
    "activation_checkpoint": "activation_checkpoint",
    "accumulate": "run.accumulate",
    "sequence": "run.parallel.sequence",
}


def _changes(work: Workload, count: int) -> Iterator[tuple[dict[str, Any], int]]:
    modes = ["none", "selective", "full"]
    stronger = modes[modes.index(work.activation_checkpoint) + 1 :]
    for fields in ({}, *({"activation_checkpoint": mode} for mode in stronger)):
        if fields:
            yield fields, count
        for factor in (2, 4, 8, 16, 32, 64, 128, 256):
            yield {**fields, "accumulate": work.accumulate * factor}, count
        for size in range(2, work.backbone.num_heads + 1):
            sequence = work.parallel.sequence * size
            yield {**fields, "sequence": sequence} | _finest(work, count, sequence), count
        for factor in (2, 4, 8, 16, 32):
            yield {**fields} | _finest(work, count * factor, work.parallel.sequence), count * factor


def _finest(work: Workload, count: int, sequence: int) -> dict[str, int]:
    """Parts of a batch of one sample each."""
    parts = max(work.longest.samples * sequence // count, 1)
    return {} if parts == work.accumulate else {"accumulate": parts}
