"""The whole model at HunyuanVideo's block shapes: our ops against plain torch, and against diffusers if it is there."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from case import Case, Function, NotInstalled, noise
from torch import Tensor, nn

from omnihuman_core.contracts import Conditioning, TextCondition
from omnihuman_core.mmdit import MMDiT, hunyuan_video
from omnihuman_core.ops import eager_ops
from omnihuman_kernels import performance
from omnihuman_kernels.register import triton_ops

# 832 x 480 pixels, 5 s: 33 latent frames of 1560 tokens and 256 words. One block of each kind has the shapes of all.
LATENTS, SMALL_LATENTS, WORDS = (1, 16, 33, 60, 104), (1, 16, 3, 10, 14), 256
CONFIG = replace(hunyuan_video(), num_double_blocks=1, num_single_blocks=1, text_refiner_depth=1)


@functools.cache
def own_model(kind: str, dtype: torch.dtype) -> MMDiT:
    """Ours with the same random weights, rounded to bfloat16, whatever the ops and the precision."""
    if (kind, dtype) != ("eager", torch.bfloat16):
        model = copy.deepcopy(own_model("eager", torch.bfloat16)).to(dtype)
        if kind == "triton":
            for module in model.modules():
                if hasattr(module, "ops"):
                    module.ops = triton_ops()
        return model
    torch.manual_seed(0)
    with torch.device(noise(0).device):
        model = MMDiT(CONFIG, eager_ops()).bfloat16().eval()
    for name, parameter in model.named_parameters():
        # Norms near one, or q and k would be too small for positions to matter.
        norm = "norm" in name and parameter.ndim == 1
        nn.init.normal_(parameter, mean=float(norm and name.endswith("weight")), std=0.1 if norm else 0.02)
    return model.requires_grad_(False)


def conditions(like: Tensor) -> tuple[Tensor, TextCondition]:
    """Noise level and text without padding; the same numbers for every model."""
    generator = torch.Generator(like.device).manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=like.device).bfloat16().to(like.dtype)

    tokens, pooled = draw(1, WORDS, CONFIG.text_dim or 0), draw(1, CONFIG.pooled_dim or 0)
    mask = torch.ones(1, WORDS, dtype=torch.bool, device=like.device)
    # Nothing is padded, as after the trimming that inference does: attention gets no mask.
    text = TextCondition(tokens=tokens, mask=mask, pooled=pooled, padded=False)
    return torch.full((1,), 0.5, device=like.device), text


def own(latents: Tensor, kind: str) -> Tensor:
    """Velocity of our model in the precision of ``latents``."""
    sigma, text = conditions(latents)
    velocity: Tensor = own_model(kind, latents.dtype)(latents, sigma, Conditioning(text=text))
    return velocity


class Unmasked:
    """An attention processor of diffusers without its key mask, which no padding needs."""

    def __init__(self, inner: Callable[..., object]) -> None:
        self.inner = inner

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> object:
        """The same call, without a mask. diffusers hands over what this signature names, and drops the rest."""
        return self.inner(attn, hidden_states, encoder_hidden_states, None, image_rotary_emb)


@functools.cache
def public_model(best: bool) -> nn.Module:
    """The model of diffusers with our weights: as it comes, or compiled block by block and without a mask."""
    try:
        from diffusers import HunyuanVideoTransformer3DModel
    except ImportError:
        raise NotInstalled("diffusers not installed") from None
    from omnihuman_core.mmdit.state_dict_adapter import HunyuanVideoDiffusersAdapter

    settings = {"num_layers": CONFIG.num_double_blocks, "num_single_layers": CONFIG.num_single_blocks}
    with torch.device(noise(0).device):
        model = HunyuanVideoTransformer3DModel(
            num_attention_heads=CONFIG.num_heads,
            attention_head_dim=CONFIG.head_dim,
            num_refiner_layers=CONFIG.text_refiner_depth,
            text_embed_dim=CONFIG.text_dim,
            pooled_projection_dim=CONFIG.pooled_dim,
            rope_axes_dim=CONFIG.rope_dims,
            **settings,
        )
    model = model.bfloat16().eval()
    state = own_model("eager", torch.bfloat16).state_dict()
    model.load_state_dict(HunyuanVideoDiffusersAdapter(CONFIG).from_native(state))
    if best:
        for block in [*model.transformer_blocks, *model.single_transformer_blocks]:
            block.attn.processor = Unmasked(block.attn.processor)
            block.compile()
    return model


def public(latents: Tensor, best: bool) -> Tensor:
    """Velocity of diffusers' model; it must be ours, or it is no peer.

    Raises:
        NotInstalled: diffusers is missing.
        ValueError: The first result differs from ours.
    """
    sigma, text = conditions(latents)
    scale = 1000 * torch.full_like(sigma, CONFIG.embedded_guidance or 0.0)
    mask = text.mask.to(latents.dtype)
    model = public_model(best)
    velocity: Tensor = model(latents, 1000 * sigma, text.tokens, mask, text.pooled, guidance=scale).sample
    if best not in agreed:
        mine = own(latents, "eager").float()
        error = float((velocity.float() - mine).norm() / mine.norm())
        if not error < 0.05:
            raise ValueError(f"its result differs from ours by {error:.1e}")
        agreed.add(best)
    return velocity


# Which of diffusers' two ways were compared with ours.
agreed: set[bool] = set()


def dit_cases() -> Iterator[Case]:
    tokens = LATENTS[2] * LATENTS[3] * LATENTS[4] // 4
    shape = performance.ModelShape(
        double_blocks=CONFIG.num_double_blocks,
        single_blocks=CONFIG.num_single_blocks,
        width=CONFIG.hidden_size,
        video_tokens=tokens,
        other_tokens=WORDS,
    )
    with torch.device("meta"):
        weights = sum(x.numel() for x in MMDiT(CONFIG).parameters())
    cost = performance.Cost(flops=performance.forward_flops(shape).total, bytes=2 * weights)
    peers: dict[str, Function] = {
        "plain torch": functools.partial(own, kind="eager"),
        "diffusers default": functools.partial(public, best=False),
        "diffusers best": functools.partial(public, best=True),
    }
    yield Case(
        op="dit_forward",
        shape=f"L={tokens + WORDS} D={CONFIG.hidden_size} {CONFIG.num_double_blocks}+{CONFIG.num_single_blocks} blocks",
        make=lambda: [noise(*LATENTS)],
        small=lambda: [noise(*SMALL_LATENTS)],
        ours=functools.partial(own, kind="triton"),
        reference=functools.partial(own, kind="eager"),
        cost=(cost, cost),
        bound="matrix",
        differentiable=1,
        peers=peers,
        directions=("forward",),
        targets={("forward", "diffusers default"): (1.3, 1.9), ("forward", "diffusers best"): (1.0, 1.2)},
    )
