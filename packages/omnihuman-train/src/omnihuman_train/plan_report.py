"""A plan as tables for the terminal."""

from __future__ import annotations

from rich.table import Table

from omnihuman_train.plan import RESERVE, Plan, smallest_change

_WEIGHTS = {
    "weights": "weights, fp32",
    "gradients": "gradients, fp32",
    "moments": "optimiser",
    "average": "average (EMA), fp32",
    "gathered": "gathered weights, bf16",
    "reduced": "gradients on their way",
}
_ACTIVATIONS = {
    "kept": "activations kept by the blocks",
    "working": "a block at work in the backward",
    "outside": "activations outside the blocks",
}


def tables(plan: Plan, *, mfu: float) -> list[Table]:
    """Parameters, memory of one rank, and time.

    Args:
        plan: The plan.
        mfu: Share of the nominal rate that the run is assumed to reach; see the floor beside it.
    """
    return [_parameters(plan), _memory(plan), _time(plan, mfu)]


def _parameters(plan: Plan) -> Table:
    table = Table(title="Parameters")
    table.add_column("part")
    table.add_column("millions", justify="right")
    parts = plan.work.parts
    counts = {**parts, "all": sum(parts.values())}
    if plan.work.trained < counts["all"]:
        counts["trained"] = plan.work.trained
    for name, count in counts.items():
        table.add_row(name, f"{count / 1e6:,.1f}")
    return table


def _memory(plan: Plan) -> Table:
    replicate, shard, sequence = plan.sizes
    shared = f"weights over {shard * sequence} rank(s), {replicate} cop{'y' if replicate == 1 else 'ies'}"
    at_once = f"{plan.samples} sample(s) at once, tokens over {sequence} rank(s)"
    table = Table(
        title="Memory of a rank",
        caption=f"{shared}\n{at_once}\ncheckpointing {plan.work.activation_checkpoint}",
    )
    table.add_column("part")
    table.add_column("GiB", justify="right")
    rows = {label: getattr(plan.weights, name) for name, label in _WEIGHTS.items()}
    rows |= {label: getattr(plan.activations, name) for name, label in _ACTIVATIONS.items()}
    rows["pose guider"] = plan.encoders
    rows["all"] = plan.memory
    rows[f"room on {plan.gpu.name}, {100 * RESERVE:.0f} % kept back"] = plan.room
    for label, count in rows.items():
        table.add_row(label, f"{count / 2**30:,.2f}")
    return table


def _time(plan: Plan, mfu: float) -> Table:
    table = Table(title=f"Time on {plan.gpus} x {plan.gpu.name}")
    # A stage is a column, folded where the terminal is narrow: a file or 80 columns lose nothing.
    table.add_column("stage", overflow="fold")
    for stage in plan.work.stages:
        table.add_column(stage.name, justify="right", overflow="fold")
    rows = [_stage_figures(plan, number, mfu) for number in range(len(plan.times))]
    for label in rows[0]:
        table.add_row(label, *(row[label] for row in rows))
    return table


def _stage_figures(plan: Plan, number: int, mfu: float) -> dict[str, str]:
    stage, time = plan.work.stages[number], plan.times[number]
    nominal = plan.gpus * plan.gpu.peak_flops
    assumed = max(time.model_flops / nominal / mfu, time.total)
    return {
        "steps": f"{stage.steps:,}",
        "samples of a step": f"{stage.samples:,}",
        "tokens of a sample": f"{stage.tokens.total:,}",
        "TFLOP of a sample, forward": f"{plan.work.flops(stage).total / 1e12:,.4g}",
        "TFLOP of a sample, in all": f"{time.model_flops / stage.samples / 1e12:,.4g}",
        "step, s (at least)": f"{time.total:.3g}",
        "days (at least)": f"{stage.steps * time.total / 86400:.3g}",
        f"days at MFU {100 * mfu:.0f} %": f"{stage.steps * assumed / 86400:.3g}",
        "MFU at the floor": f"{100 * time.model_flops / nominal / time.total:.0f} %",
    }


def verdict(plan: Plan) -> str:
    """One line: whether it fits, and what would make it fit."""
    need, room = plan.memory / 2**30, plan.room / 2**30
    if plan.fits:
        return f"fits: a rank needs {need:.1f} of {room:.1f} GiB"
    change = smallest_change(plan.work, plan.gpu, plan.gpus)
    largest = max({**vars(plan.weights), **vars(plan.activations)}.items(), key=lambda item: item[1])
    label = {**_WEIGHTS, **_ACTIVATIONS}[largest[0]]
    hint = f"the smallest change that would: {change}" if change else "no setting of one run would; take larger GPUs"
    return (
        f"does not fit: a rank needs {need:.1f} of {room:.1f} GiB, most of it for {label} ({largest[1] / 2**30:.1f}); "
        f"{hint}"
    )
