"""What the ops and the model must cost at least: bytes, flops and the time below which no kernel can go.

Pure functions of shapes; nothing here is measured. A benchmark prints the floor next to a measured time.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Device:
    """Rates that a device sustains.

    Attributes:
        name: What reports call it.
        matrix_flops: Dense matrix products, flop/s at the precision of the run.
        copy_bytes: Copy of a large tensor, read plus written bytes a second.
    """

    name: str
    matrix_flops: float
    copy_bytes: float


# Assumed sustained rates, bf16: 81 % of the nominal matrix rate and 90 % of the nominal bandwidth.
H100_SXM = Device(name="H100 SXM", matrix_flops=800e12, copy_bytes=3.0e12)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Least work of an op: ``flops``, and ``bytes`` to and from memory if every operand moves once."""

    flops: float
    bytes: float

    def floor(self, device: Device) -> float:
        """Seconds that ``device`` needs at least: matrix products and traffic overlap perfectly."""
        return max(self.flops / device.matrix_flops, self.bytes / device.copy_bytes)


def qk_norm_rope(
    batch: int, length: int, heads: int, head_dim: int, *, itemsize: int = 2, backward: bool = False
) -> Cost:
    """Cost of normalising and rotating q and k; the tables are float32 and shared by batch and heads."""
    numbers = 2 * batch * length * heads * head_dim
    tables = 4 * length * head_dim
    return Cost(flops=(20 if backward else 10) * numbers, bytes=(3 if backward else 2) * numbers * itemsize + tables)


def modulated_norm(batch: int, length: int, width: int, *, itemsize: int = 2, backward: bool = False) -> Cost:
    """Cost of the norm and its affine; modulations are a row a segment and not counted."""
    numbers = batch * length * width
    return Cost(flops=(15 if backward else 8) * numbers, bytes=(3 if backward else 2) * numbers * itemsize)


def gated_residual(batch: int, length: int, width: int, *, itemsize: int = 2, backward: bool = False) -> Cost:
    """Cost of the gated sum; modulations are a row a segment and not counted."""
    numbers = batch * length * width
    return Cost(flops=(3 if backward else 2) * numbers, bytes=3 * numbers * itemsize)


def residual_modulated_norm(batch: int, length: int, width: int, *, itemsize: int = 2, backward: bool = False) -> Cost:
    """Cost of the gated sum and the norm in one pass; modulations are a row a segment and not counted."""
    numbers = batch * length * width
    return Cost(flops=(18 if backward else 10) * numbers, bytes=(6 if backward else 4) * numbers * itemsize)


def rms_norm_silu(batch: int, channels: int, positions: int, *, itemsize: int = 2, backward: bool = False) -> Cost:
    """Cost of the norm and SiLU of a video; ``positions`` are frames times rows times columns."""
    numbers = batch * channels * positions
    return Cost(flops=(25 if backward else 10) * numbers, bytes=(3 if backward else 2) * numbers * itemsize)


def attention(
    batch: int, queries: int, keys: int, heads: int, head_dim: int, *, itemsize: int = 2, backward: bool = False
) -> Cost:
    """Cost of softmax attention: two products forward, five backward (one recomputed), each operand once."""
    products = 2 * batch * heads * queries * keys * head_dim
    of_queries, of_keys = (batch * heads * head_dim * n * itemsize for n in (queries, keys))
    # Forward reads q, k, v and writes o; backward reads q, k, v, o, do and writes dq, dk, dv.
    return Cost(
        flops=(5 if backward else 2) * products,
        bytes=(4 * of_queries + 4 * of_keys if backward else 2 * of_queries + 2 * of_keys),
    )


def frame_cross_attention(
    batch: int,
    frames: int,
    queries: int,
    keys: int,
    heads: int,
    head_dim: int,
    *,
    itemsize: int = 2,
    backward: bool = False,
) -> Cost:
    """Cost of attention inside frames. Backward reads no output: it forms the weights again from one tile of keys."""
    flops = attention(batch * frames, queries, keys, heads, head_dim, backward=backward).flops
    of_queries, of_keys = (batch * frames * heads * head_dim * n * itemsize for n in (queries, keys))
    return Cost(flops=flops, bytes=3 * of_queries + 4 * of_keys if backward else 2 * of_queries + 2 * of_keys)


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """A forward of an MMDiT: the sizes that decide its cost.

    Attributes:
        double_blocks: Blocks with weights of their own for video and text.
        single_blocks: Blocks with shared weights.
        width: Hidden size.
        mlp_ratio: Hidden size of the MLP over ``width``.
        video_tokens: Tokens that hear audio.
        other_tokens: Reference and text tokens.
        audio_tokens: Audio tokens of a frame; 0 for a model without audio attention.
    """

    double_blocks: int
    single_blocks: int
    width: int
    mlp_ratio: float = 4.0
    video_tokens: int
    other_tokens: int
    audio_tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class Flops:
    """Flops of a forward by kind: projections and MLPs, joint attention, audio attention with its projections."""

    linear: float
    attention: float
    audio: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.linear + self.attention + self.audio


def forward_flops(shape: ModelShape) -> Flops:
    """Flops of the blocks for one sample, without embedders, modulations and the last layer: less than a percent.

    A token passes qkv, out and two MLP matrices in every block, ``(4 + 2 mlp_ratio) D^2`` weights; joint attention is
    over all tokens; audio attention has a q and an out projection for each video token.
    """
    blocks = shape.double_blocks + shape.single_blocks
    tokens = shape.video_tokens + shape.other_tokens
    audio = 4 * shape.width**2 * shape.video_tokens + 4 * shape.video_tokens * shape.audio_tokens * shape.width
    return Flops(
        linear=2 * (4 + 2 * shape.mlp_ratio) * shape.width**2 * tokens * blocks,
        attention=4 * tokens**2 * shape.width * blocks,
        audio=audio * blocks if shape.audio_tokens else 0.0,
    )


def roofline(shape: ModelShape, device: Device) -> float:
    """Seconds that a forward of the blocks takes at least on ``device``: all flops at the matrix rate, nothing else."""
    return forward_flops(shape).total / device.matrix_flops
