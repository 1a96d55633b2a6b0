"""GPUs that a run may be planned for: figures of their makers' data sheets, and what a training run sustains of them.

``sustained`` figures are assumptions: the shares of the nominal rate that public trainers of transformers this wide
report for their matrix products, and FlashAttention-3's paper (arXiv 2407.08608) for attention on an H100.
"""

from __future__ import annotations

from dataclasses import dataclass

# Of the nominal rate: matrix products, attention forward, attention backward; of the nominal bandwidth: copies.
LINEAR, ATTENTION, ATTENTION_BACKWARD, COPY = 0.81, 0.63, 0.53, 0.9


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU and its links.

    Attributes:
        name: What tables call it.
        memory_gib: Memory in GiB.
        peak_flops: Nominal dense bf16 matrix rate, flop/s.
        memory_bytes: Nominal memory bandwidth, bytes a second.
        node_bytes: Bandwidth to the other GPUs of a machine, one way, bytes a second.
        network_bytes: Bandwidth to other machines, one way, bytes a second; 400 Gbit/s for each GPU is an assumption.
        node_size: GPUs of a machine.
    """

    name: str
    memory_gib: float
    peak_flops: float
    memory_bytes: float
    node_bytes: float
    network_bytes: float = 50e9
    node_size: int = 8


GPUS = {
    "a100": Gpu(
        name="A100 80 GB SXM",
        memory_gib=80,
        peak_flops=312e12,
        memory_bytes=2.04e12,
        node_bytes=300e9,
        network_bytes=25e9,
    ),
    "h100": Gpu(name="H100 SXM", memory_gib=80, peak_flops=989e12, memory_bytes=3.35e12, node_bytes=450e9),
    "h200": Gpu(name="H200 SXM", memory_gib=141, peak_flops=989e12, memory_bytes=4.8e12, node_bytes=450e9),
    "b200": Gpu(name="B200 SXM", memory_gib=180, peak_flops=2250e12, memory_bytes=8.0e12, node_bytes=900e9),
    "l40s": Gpu(name="L40S", memory_gib=48, peak_flops=362e12, memory_bytes=0.864e12, node_bytes=32e9),
    "rtx4090": Gpu(name="RTX 4090", memory_gib=24, peak_flops=165e12, memory_bytes=1.01e12, node_bytes=32e9),
}


def gpu(name: str) -> Gpu:
    """A GPU by its name.

    Raises:
        ValueError: none has this name.
    """
    if name.lower() not in GPUS:
        raise ValueError(f"--gpu {name}: unknown; known are {', '.join(GPUS)}")
    return GPUS[name.lower()]
