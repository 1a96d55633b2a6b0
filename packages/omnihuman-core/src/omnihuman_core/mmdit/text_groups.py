"""Text of several encoders in one text condition, as HunyuanVideo-1.5 takes it.

A prompt, the words that shall be written in the video, and a picture come from three models of different widths. They
stand behind each other in one :class:`~omnihuman_core.contracts.TextCondition`, narrower ones filled up with zeros,
under one mask. Text tokens have no position, so that their order says nothing: each kind has a projection and a vector
of its own, and the blocks see text tokens like any others.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omnihuman_core.contracts import Ops
from omnihuman_core.mmdit.config import MMDiTConfig, TextGroups
from omnihuman_core.mmdit.refiner import TokenRefiner

# Of torch's LayerNorm, which the public model has here; its blocks have another.
_EPS = 1e-5
_GLYPH_WIDTH = 2048


class GlyphEmbed(nn.Module):
    """States of the words to be written, to the model width."""

    def __init__(self, in_size: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(in_size, eps=_EPS)
        self.up = nn.Linear(in_size, _GLYPH_WIDTH)
        self.mid = nn.Linear(_GLYPH_WIDTH, _GLYPH_WIDTH)
        self.down = nn.Linear(_GLYPH_WIDTH, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """``(B, S, in_size)`` -> ``(B, S, D)``."""
        out: Tensor = self.down(F.gelu(self.mid(F.gelu(self.up(self.norm(tokens))))))
        return out


class PictureEmbed(nn.Module):
    """States of a picture to the model width."""

    def __init__(self, in_size: int, width: int) -> None:
        super().__init__()
        self.norm_in = nn.LayerNorm(in_size, eps=_EPS)
        self.up = nn.Linear(in_size, in_size)
        self.down = nn.Linear(in_size, width)
        self.norm_out = nn.LayerNorm(width, eps=_EPS)

    def forward(self, tokens: Tensor) -> Tensor:
        """``(B, S, in_size)`` -> ``(B, S, D)``."""
        out: Tensor = self.norm_out(self.down(F.gelu(self.up(self.norm_in(tokens)))))
        return out


class GroupedTextEmbed(nn.Module):
    """Prompt, words to be written, and picture, each by its own way to the model width."""

    def __init__(self, config: MMDiTConfig, text_dim: int, groups: TextGroups, ops: Ops) -> None:
        super().__init__()
        width = config.hidden_size
        self.groups = groups
        self.prompt = TokenRefiner(config, text_dim, ops)
        self.glyphs = GlyphEmbed(groups.glyph_dim, width)
        self.picture = PictureEmbed(groups.picture_dim, width)
        self.kind = nn.Parameter(torch.zeros(3, width))

    def forward(self, tokens: Tensor, mask: Tensor, sigma: Tensor) -> Tensor:
        """``tokens (B, S, D_text)``, ``mask (B, S)``, ``sigma (B,)`` -> ``(B, S, D)``."""
        groups = self.groups
        # A text that ends early has been trimmed: what would follow has no tokens.
        ends = (groups.prompt_tokens, groups.prompt_tokens + groups.glyph_tokens)
        prompt, glyphs, picture = tokens.tensor_split(ends, dim=1)
        embedded = (
            self.prompt(prompt, mask[:, : prompt.shape[1]], sigma),
            self.glyphs(glyphs[..., : groups.glyph_dim]),
            self.picture(picture[..., : groups.picture_dim]),
        )
        return torch.cat([part + kind for part, kind in zip(embedded, self.kind, strict=True)], dim=1)  # (B, S, D)
