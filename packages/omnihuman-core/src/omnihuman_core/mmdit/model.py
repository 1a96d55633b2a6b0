"""The multi-modal diffusion transformer (paper section 3.2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omnihuman_core.contracts import BackboneSpec, Conditioning, Ops, TextCondition
from omnihuman_core.mmdit.blocks import BlockInputs, DoubleStreamBlock, SingleStreamBlock
from omnihuman_core.mmdit.checks import check_inputs
from omnihuman_core.mmdit.config import MMDiTConfig
from omnihuman_core.mmdit.init import init_weights
from omnihuman_core.mmdit.layers import MLP, FinalLayer, Modulation, PatchEmbed3D, TimestepEmbedder
from omnihuman_core.mmdit.positions import Grid, append_text, grid_ids, reference_ids, rope_table
from omnihuman_core.mmdit.presets import hunyuan_video, hunyuan_video_15, small, tiny
from omnihuman_core.mmdit.refiner import TokenRefiner
from omnihuman_core.mmdit.text_groups import GroupedTextEmbed
from omnihuman_core.ops import eager_ops


class MMDiT(nn.Module):
    """Predicts the velocity at noisy latents from text, audio, pose, reference and motion.

    Tokens run in the order reference, motion, video, text. Parts that are absent have no tokens at all.

    Args:
        config: The architecture.
        ops: Implementations of the hot ops; None takes the eager ones.
    """

    config_class = MMDiTConfig
    presets = {"tiny": tiny, "small": small, "hunyuan_video": hunyuan_video, "hunyuan_video_15": hunyuan_video_15}

    def __init__(self, config: MMDiTConfig, ops: Ops | None = None) -> None:
        super().__init__()
        ops = eager_ops() if ops is None else ops
        width = config.hidden_size
        self.config = config
        self.patch_embed = PatchEmbed3D(config)
        self.sigma_embed = TimestepEmbedder(width)
        self.guidance_embed = TimestepEmbedder(width) if config.embedded_guidance is not None else None
        self.pooled_embed = MLP(config.pooled_dim, width, width, nn.SiLU()) if config.pooled_dim is not None else None
        self.text_embed = _text_embed(config, ops)
        self.segment_embed = nn.Parameter(torch.zeros(3, width)) if config.segment_embedding else None
        self.shared_modulation = Modulation(width, 6) if config.modulation == "shared" else None
        audio = [config.audio_dim if block in config.audio_blocks else None for block in range(config.num_blocks)]
        doubles = config.num_double_blocks
        self.double_blocks = nn.ModuleList(DoubleStreamBlock(config, ops, audio_dim=dim) for dim in audio[:doubles])
        self.single_blocks = nn.ModuleList(SingleStreamBlock(config, ops, audio_dim=dim) for dim in audio[doubles:])
        self.final_layer = FinalLayer(config, ops)
        init_weights(self)

    @property
    def spec(self) -> BackboneSpec:
        """What this backbone needs."""
        config = self.config
        accepted = {
            "text": config.text_dim is not None,
            "audio": config.audio_dim is not None,
            "pose": config.pose_channels is not None,
            "reference": config.reference,
            "motion": config.motion,
        }
        frames, side, _ = config.patch_size
        return BackboneSpec(
            latent_channels=config.latent_channels,
            spatial_multiple=side,
            temporal_multiple=frames,
            conditions=frozenset(name for name, yes in accepted.items() if yes),
            text_dim=config.text_dim,
            pooled_dim=config.pooled_dim,
            audio_dim=config.audio_dim,
            pose_channels=config.pose_channels,
        )

    def forward(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """Velocity ``noise - x0`` at ``latents``.

        Args:
            latents: ``(B, C, t, h, w)`` noisy latents.
            sigma: ``(B,)`` noise level in [0, 1].
            conditioning: Conditions of the batch.

        Returns:
            ``(B, C, t, h, w)``, in the dtype of ``latents``.

        Raises:
            ValueError: a size or a condition does not fit :attr:`spec`.
        """
        self.spec.check(latents, conditioning)
        check_inputs(self.config, latents, sigma, conditioning)
        conditioning = conditioning.to(dtype=self.patch_embed.proj.weight.dtype)
        visual, cos, sin, clean = self._embed_visual(latents, conditioning)
        text, cos, sin, mask = self._embed_text(conditioning.text, sigma, visual.shape[1], cos, sin)
        condition, segments = self._condition(sigma, conditioning.text, clean, visual.shape[1] - clean)
        inputs = BlockInputs(
            condition=condition if self.shared_modulation is None else self.shared_modulation.project(condition),
            segments=segments,
            cos=cos,
            sin=sin,
            mask=mask,
            audio=None if conditioning.audio is None else conditioning.audio.tokens,
            first_audible=self._reference_tokens(conditioning),
        )

        for block in self.double_blocks:
            visual, text = block(visual, text, inputs)
        words = 0 if text is None else text.shape[1]
        x = visual if text is None else torch.cat([visual, text], dim=1)  # (B, L + S, D)
        for block in self.single_blocks:
            x = block(x, inputs, words)

        noisy = x[:, clean : x.shape[1] - words]  # (B, t * h * w, D)
        velocity: Tensor = self.final_layer(noisy, condition[:, -1:], self._grid(latents))
        return velocity.to(latents.dtype)

    def _grid(self, latents: Tensor) -> Grid:
        """Tokens of ``(B, C, t, h, w)`` along time, rows and columns."""
        (frames, rows, columns), (pt, ph, pw) = latents.shape[2:], self.config.patch_size
        return frames // pt, rows // ph, columns // pw

    def _reference_tokens(self, conditioning: Conditioning) -> int:
        return 0 if conditioning.reference is None else math.prod(self._grid(conditioning.reference.latents))

    def _embed_visual(self, latents: Tensor, conditioning: Conditioning) -> tuple[Tensor, Tensor, Tensor, int]:
        """Tokens of reference, motion and video, their rotation tables, and how many of them are clean."""
        config = self.config
        motion, reference = conditioning.motion, conditioning.reference
        frames = latents.to(self.patch_embed.proj.weight.dtype)
        if motion is not None:
            frames = torch.cat([motion.latents, frames], dim=2)  # (B, C, m + t, h, w)
        tokens = [self.patch_embed(frames, None if conditioning.pose is None else conditioning.pose.features)]
        ids = [grid_ids(self._grid(frames), device=latents.device)]
        clean = tokens[0].shape[1] - math.prod(self._grid(latents))
        lengths = [0, clean, tokens[0].shape[1] - clean]
        if reference is not None:
            tokens.insert(0, self.patch_embed(reference.latents))
            lengths[0] = tokens[0].shape[1]
            grid = self._grid(reference.latents)
            ids.insert(0, reference_ids(grid, slot=config.reference_slot, device=latents.device))
        visual = torch.cat(tokens, dim=1)  # (B, L, D)
        if self.segment_embed is not None:
            kinds = [row.expand(length, -1) for row, length in zip(self.segment_embed, lengths, strict=True)]
            visual = visual + torch.cat(kinds).to(visual.dtype)
        cos, sin = rope_table(torch.cat(ids), dims=config.rope_dims, theta=config.rope_theta)
        return visual, cos, sin, lengths[0] + lengths[1]

    def _embed_text(
        self, text: TextCondition | None, sigma: Tensor, visual: int, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor | None, Tensor, Tensor, Tensor | None]:
        """Text tokens, the tables with the text's identity rotation, and the key mask of the whole sequence, if any."""
        if text is None or self.text_embed is None:
            return None, cos, sin, None
        if isinstance(self.text_embed, TokenRefiner | GroupedTextEmbed):
            tokens = self.text_embed(text.tokens, text.mask, sigma)
        else:
            tokens = self.text_embed(text.tokens)
        tables = append_text(cos, sin, tokens.shape[1])
        if not text.padded:
            return tokens, *tables, None
        mask = torch.cat([text.mask.new_ones(text.mask.shape[0], visual), text.mask], dim=1)  # (B, L + S)
        return tokens, *tables, mask

    def _condition(
        self, sigma: Tensor, text: TextCondition | None, clean: int, noisy: int
    ) -> tuple[Tensor, tuple[int, ...]]:
        """Condition vectors ``(B, 1 or 2, D)``, the noisy one last, and the runs of visual tokens they stand for.

        Their SiLU, which every modulation begins with, is taken here, once for the whole model.
        """
        vector: Tensor = self.sigma_embed(sigma)
        still: Tensor = self.sigma_embed(torch.zeros_like(sigma))
        if self.pooled_embed is not None and text is not None and text.pooled is not None:
            pooled = self.pooled_embed(text.pooled)
            vector, still = vector + pooled, still + pooled
        if self.guidance_embed is not None:
            vector = vector + self.guidance_embed(torch.full_like(sigma, self.config.embedded_guidance or 0.0))
        if clean == 0 or self.config.clean_modulation == "shared":
            return F.silu(vector)[:, None], (clean + noisy,)
        return F.silu(torch.stack([still, vector], dim=1)), (clean, noisy)


def _text_embed(config: MMDiTConfig, ops: Ops) -> GroupedTextEmbed | TokenRefiner | nn.Linear | None:
    """Text tokens to the model width."""
    if config.text_dim is None:
        return None
    if config.text_groups is not None:
        return GroupedTextEmbed(config, config.text_dim, config.text_groups, ops)
    if config.text_refiner_depth:
        return TokenRefiner(config, config.text_dim, ops)
    return nn.Linear(config.text_dim, config.hidden_size)
