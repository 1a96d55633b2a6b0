"""The formulas, in plain torch, in the precision of their inputs. Nothing here is shared with the kernels."""

import torch
import torch.nn.functional as F
from einops import rearrange


def rms_norm(x, weight, eps):
    return F.rms_norm(x, x.shape[-1:], weight, eps)


def rotate(x, cos, sin):
    """The complex form of the rotation: pairs are real and imaginary parts."""
    cos, sin = cos[:, None].to(x.dtype), sin[:, None].to(x.dtype)  # (L, 1, K / 2)
    real, imaginary = x[..., ::2], x[..., 1::2]
    return torch.stack([real * cos - imaginary * sin, real * sin + imaginary * cos], dim=-1).flatten(-2)


def qk_norm_rope(q, k, q_weight, k_weight, cos, sin, *, eps, segments=None):
    if segments is not None:
        parts = zip(*(x.split(segments, dim=1) for x in (q, k)), q_weight, k_weight, strict=True)
        normed = [(rms_norm(x, a, eps), rms_norm(y, b, eps)) for x, y, a, b in parts]
        return tuple(rotate(torch.cat(runs, dim=1), cos, sin) for runs in zip(*normed, strict=True))
    return rotate(rms_norm(q, q_weight, eps), cos, sin), rotate(rms_norm(k, k_weight, eps), cos, sin)


def spread(modulation, segments):
    """One row a segment to one row a token; the gradient of a row is a sum, not one rounded addition a token."""
    rows = zip(modulation.unbind(1), segments, strict=True)
    return torch.cat([row[:, None].expand(-1, length, -1) for row, length in rows], dim=1)


def modulated_norm(x, shift, scale, *, segments, eps):
    normed = F.layer_norm(x, x.shape[-1:], eps=eps)
    return normed * (1 + spread(scale, segments)) + spread(shift, segments)


def gated_residual(residual, x, gate, *, segments):
    return residual + spread(gate, segments) * x


def residual_modulated_norm(residual, x, gate, shift, scale, *, segments, eps):
    stream = gated_residual(residual, x, gate, segments=segments)
    return stream, modulated_norm(stream, shift, scale, segments=segments, eps=eps)


def attention(q, k, v, mask=None):
    """Softmax written out, so that every gradient is autograd's."""
    scores = torch.einsum("blnk,bmnk->bnlm", q, k) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None], float("-inf"))
    return torch.einsum("bnlm,bmnk->blnk", scores.softmax(-1), v)


def frame_cross_attention(q, k, v, q_weight, *, eps):
    frames = q.shape[1]
    flat = [rearrange(x, "b t p n k -> (b t) p n k") for x in (rms_norm(q, q_weight, eps), k, v)]
    return rearrange(attention(*flat), "(b t) p n k -> b t p n k", t=frames)


def rms_norm_silu(x, weight, *, eps):
    return F.silu(rms_norm(x.movedim(1, -1), weight, eps)).movedim(-1, 1)
