"""HunyuanVideo's public weight layouts, tensor by tensor.

``diffusers`` splits q, k, v and the MLP of single blocks into own tensors and keeps scale before shift in its last
norm; the original file fuses them as we do. Both hold the patch embedding as a convolution.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from omnihuman_core.mmdit.config import MMDiTConfig


@dataclass(frozen=True)
class Rule:
    """One of our tensors and the public ones whose rows, in order, it is made of.

    Attributes:
        native: Our name.
        public: Public names.
        rows: Rows of each public tensor; only read where there are several.
        swap_halves: Whether the two halves of the rows change places.
        shape: Shape of a row in the public layout where it is not ours.
    """

    native: str
    public: tuple[str, ...]
    rows: tuple[int, ...] = ()
    swap_halves: bool = False
    shape: tuple[int, ...] | None = None

    def to_native(self, parts: list[Tensor]) -> Tensor:
        """Our tensor from the public ones."""
        tensor = torch.cat(parts) if len(parts) > 1 else parts[0]
        if self.swap_halves:
            tensor = torch.cat(tensor.chunk(2)[::-1])
        return tensor if self.shape is None else tensor.flatten(1)

    def from_native(self, tensor: Tensor) -> list[Tensor]:
        """The public tensors from ours."""
        if self.swap_halves:
            tensor = torch.cat(tensor.chunk(2)[::-1])
        if self.shape is not None:
            tensor = tensor.view(tensor.shape[0], *self.shape)
        return [tensor] if len(self.public) == 1 else [part.clone() for part in tensor.split_with_sizes(self.rows)]


def _linear(
    native: str,
    *public: str,
    rows: tuple[int, ...] = (),
    swap_halves: bool = False,
    shape: tuple[int, ...] | None = None,
) -> Iterator[Rule]:
    """Rules of the weight and the bias of a linear layer."""
    for kind in ("weight", "bias"):
        names = tuple(f"{name}.{kind}" for name in public)
        yield Rule(f"{native}.{kind}", names, rows, swap_halves, shape if kind == "weight" else None)


def _qk_norm(native: str, q: str, k: str) -> Iterator[Rule]:
    yield Rule(f"{native}.qk_norm.q_weight", (f"{q}.weight",))
    yield Rule(f"{native}.qk_norm.k_weight", (f"{k}.weight",))


def diffusers_rules(config: MMDiTConfig) -> Iterator[Rule]:
    """Layout of ``diffusers.HunyuanVideoTransformer3DModel``."""
    yield from _linear("patch_embed.proj", "x_embedder.proj", shape=(config.latent_channels, *config.patch_size))
    yield from _mlp("sigma_embed.mlp", "time_text_embed.timestep_embedder")
    yield from _mlp("pooled_embed", "time_text_embed.text_embedder")
    if config.embedded_guidance is not None:
        yield from _mlp("guidance_embed.mlp", "time_text_embed.guidance_embedder")
    yield from _diffusers_refiner(config, "text_embed")
    yield from _diffusers_blocks(config)


def diffusers_15_rules(config: MMDiTConfig) -> Iterator[Rule]:
    """Layout of ``diffusers.HunyuanVideo15Transformer3DModel``."""
    yield from _linear("patch_embed.proj", "x_embedder.proj", shape=(config.latent_channels, *config.patch_size))
    yield from _mlp("sigma_embed.mlp", "time_embed.timestep_embedder")
    yield from _diffusers_refiner(config, "text_embed.prompt")
    yield from _linear("text_embed.glyphs.norm", "context_embedder_2.norm")
    for part, number in (("up", 1), ("mid", 2), ("down", 3)):
        yield from _linear(f"text_embed.glyphs.{part}", f"context_embedder_2.linear_{number}")
    yield from _linear("text_embed.picture.norm_in", "image_embedder.norm_in")
    yield from _mlp("text_embed.picture", "image_embedder")
    yield from _linear("text_embed.picture.norm_out", "image_embedder.norm_out")
    yield Rule("text_embed.kind", ("cond_type_embed.weight",))
    yield from _diffusers_blocks(config)


def _mlp(native: str, public: str) -> Iterator[Rule]:
    """Rules of two linear layers, as diffusers numbers them."""
    yield from _linear(f"{native}.up", f"{public}.linear_1")
    yield from _linear(f"{native}.down", f"{public}.linear_2")


def _diffusers_refiner(config: MMDiTConfig, native: str) -> Iterator[Rule]:
    width = config.hidden_size
    yield from _mlp(f"{native}.sigma_embed.mlp", "context_embedder.time_text_embed.timestep_embedder")
    yield from _mlp(f"{native}.mean_embed", "context_embedder.time_text_embed.text_embedder")
    yield from _linear(f"{native}.proj", "context_embedder.proj_in")
    for i in range(config.text_refiner_depth):
        ours, theirs = f"{native}.blocks.{i}", f"context_embedder.token_refiner.refiner_blocks.{i}"
        qkv = tuple(f"{theirs}.attn.to_{part}" for part in "qkv")
        yield from _linear(f"{ours}.norm1", f"{theirs}.norm1")
        yield from _linear(f"{ours}.qkv", *qkv, rows=(width,) * 3)
        yield from _linear(f"{ours}.out", f"{theirs}.attn.to_out.0")
        yield from _linear(f"{ours}.norm2", f"{theirs}.norm2")
        yield from _linear(f"{ours}.mlp.up", f"{theirs}.ff.net.0.proj")
        yield from _linear(f"{ours}.mlp.down", f"{theirs}.ff.net.2")
        yield from _linear(f"{ours}.modulation.proj", f"{theirs}.norm_out.linear")


def _diffusers_blocks(config: MMDiTConfig) -> Iterator[Rule]:
    width, mlp = config.hidden_size, config.mlp_size
    for i in range(config.num_double_blocks):
        theirs = f"transformer_blocks.{i}"
        for stream, suffix, qkv, norm, out in (
            ("video", "", ("to_q", "to_k", "to_v"), ("norm_q", "norm_k"), "to_out.0"),
            (
                "text",
                "_context",
                ("add_q_proj", "add_k_proj", "add_v_proj"),
                ("norm_added_q", "norm_added_k"),
                "to_add_out",
            ),
        ):
            ours = f"double_blocks.{i}.{stream}"
            yield from _linear(f"{ours}.modulation.proj", f"{theirs}.norm1{suffix}.linear")
            yield from _linear(f"{ours}.qkv", *(f"{theirs}.attn.{part}" for part in qkv), rows=(width,) * 3)
            yield from _qk_norm(ours, *(f"{theirs}.attn.{part}" for part in norm))
            yield from _linear(f"{ours}.out", f"{theirs}.attn.{out}")
            yield from _linear(f"{ours}.mlp.up", f"{theirs}.ff{suffix}.net.0.proj")
            yield from _linear(f"{ours}.mlp.down", f"{theirs}.ff{suffix}.net.2")
    for i in range(config.num_single_blocks):
        ours, theirs = f"single_blocks.{i}", f"single_transformer_blocks.{i}"
        parts = (*(f"{theirs}.attn.to_{part}" for part in "qkv"), f"{theirs}.proj_mlp")
        yield from _linear(f"{ours}.modulation.proj", f"{theirs}.norm.linear")
        yield from _linear(f"{ours}.linear1", *parts, rows=(width, width, width, mlp))
        yield from _qk_norm(ours, f"{theirs}.attn.norm_q", f"{theirs}.attn.norm_k")
        yield from _linear(f"{ours}.linear2", f"{theirs}.proj_out")
    yield from _linear("final_layer.modulation.proj", "norm_out.linear", swap_halves=True)
    yield from _linear("final_layer.proj", "proj_out")


def original_rules(config: MMDiTConfig) -> Iterator[Rule]:
    """Layout of the single file that the authors published."""
    yield from _linear("patch_embed.proj", "img_in.proj", shape=(config.latent_channels, *config.patch_size))
    embedders = [("sigma_embed.mlp", "time_in.mlp.0", "time_in.mlp.2")]
    embedders.append(("pooled_embed", "vector_in.in_layer", "vector_in.out_layer"))
    if config.embedded_guidance is not None:
        embedders.append(("guidance_embed.mlp", "guidance_in.mlp.0", "guidance_in.mlp.2"))
    embedders.append(("text_embed.sigma_embed.mlp", "txt_in.t_embedder.mlp.0", "txt_in.t_embedder.mlp.2"))
    embedders.append(("text_embed.mean_embed", "txt_in.c_embedder.linear_1", "txt_in.c_embedder.linear_2"))
    for ours, up, down in embedders:
        yield from _linear(f"{ours}.up", up)
        yield from _linear(f"{ours}.down", down)
    yield from _linear("text_embed.proj", "txt_in.input_embedder")
    for i in range(config.text_refiner_depth):
        ours, theirs = f"text_embed.blocks.{i}", f"txt_in.individual_token_refiner.blocks.{i}"
        yield from _linear(f"{ours}.norm1", f"{theirs}.norm1")
        yield from _linear(f"{ours}.qkv", f"{theirs}.self_attn_qkv")
        yield from _linear(f"{ours}.out", f"{theirs}.self_attn_proj")
        yield from _linear(f"{ours}.norm2", f"{theirs}.norm2")
        yield from _linear(f"{ours}.mlp.up", f"{theirs}.mlp.fc1")
        yield from _linear(f"{ours}.mlp.down", f"{theirs}.mlp.fc2")
        yield from _linear(f"{ours}.modulation.proj", f"{theirs}.adaLN_modulation.1")
    for i in range(config.num_double_blocks):
        for stream, short in (("video", "img"), ("text", "txt")):
            ours, theirs = f"double_blocks.{i}.{stream}", f"double_blocks.{i}.{short}"
            yield from _linear(f"{ours}.modulation.proj", f"{theirs}_mod.linear")
            yield from _linear(f"{ours}.qkv", f"{theirs}_attn_qkv")
            yield from _qk_norm(ours, f"{theirs}_attn_q_norm", f"{theirs}_attn_k_norm")
            yield from _linear(f"{ours}.out", f"{theirs}_attn_proj")
            yield from _linear(f"{ours}.mlp.up", f"{theirs}_mlp.fc1")
            yield from _linear(f"{ours}.mlp.down", f"{theirs}_mlp.fc2")
    for i in range(config.num_single_blocks):
        block = f"single_blocks.{i}"
        yield from _linear(f"{block}.modulation.proj", f"{block}.modulation.linear")
        yield from _linear(f"{block}.linear1", f"{block}.linear1")
        yield from _qk_norm(block, f"{block}.q_norm", f"{block}.k_norm")
        yield from _linear(f"{block}.linear2", f"{block}.linear2")
    yield from _linear("final_layer.modulation.proj", "final_layer.adaLN_modulation.1")
    yield from _linear("final_layer.proj", "final_layer.linear")
