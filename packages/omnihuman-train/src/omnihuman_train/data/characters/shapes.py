"""Signed-distance shapes, drawn with analytic anti-aliasing onto a batch of frames.

Distances are in pixels, negative inside. Coverage is a linear ramp across the edge: its sum is the area of the shape
(but for pi ramp^2 / 12 on a closed convex edge), and a shape moves by fractions of a pixel without flicker. Every shape
is drawn only inside the box that it covers over all frames, which is what makes drawing cheap on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Scalar = float | Tensor
Colour = Sequence[float]


def sd_ellipse(dx: Tensor, dy: Tensor, rx: Scalar, ry: Scalar) -> Tensor:
    """Distance to an ellipse with half axes `rx`, `ry`, in pixels; exact for a disc, first order near the edge else.

    Args:
        dx: offsets from the centre in pixels.
        dy: offsets from the centre in pixels, of a shape that broadcasts with `dx`.
        rx: half axis along x in pixels, > 0.
        ry: half axis along y in pixels, > 0.
    """
    u, v = (dx / rx).square(), (dy / ry).square()
    level = u + v
    slope = (u / (rx * rx) + v / (ry * ry) + 1e-9).sqrt_()
    return (level - level.sqrt()) / slope


def sd_capsule(px: Tensor, py: Tensor, bx: Scalar, by: Scalar, radius: Scalar) -> Tensor:
    """Distance to the segment from the origin to `(bx, by)`, thickened by `radius`; exact."""
    along = ((px * bx + py * by) / (bx * bx + by * by + 1e-9)).clamp_(0, 1)
    return ((px - along * bx).square_() + (py - along * by).square_()).sqrt_() - radius


def sd_rounded_box(dx: Tensor, dy: Tensor, hx: Scalar, hy: Scalar, corner: Scalar) -> Tensor:
    """Distance to a box with half sizes `hx`, `hy` whose corners are rounded with radius `corner`; exact."""
    qx, qy = dx.abs() - (hx - corner), dy.abs() - (hy - corner)
    outside = (qx.clamp(min=0).square() + qy.clamp(min=0).square()).sqrt_()
    return outside + torch.maximum(qx, qy).clamp_(max=0) - corner


def coverage(distance: Tensor, ramp: float) -> Tensor:
    """Share of a pixel that the shape covers, in [0, 1]: a linear ramp `ramp` pixels wide across the edge."""
    return (0.5 - distance / ramp).clamp_(0, 1)


class Canvas:
    """N frames of H by W pixels that shapes are painted on, back to front.

    Sizes and positions are pixels (pixel centres at i + 0.5), each a number or one value per frame `(N,)`. Colours are
    RGB in [0, 1].

    Args:
        background: (N or 1, 3, H, W) in [0, 1].
        num_frames: N.
        ramp: width of anti-aliased edges in pixels.
    """

    def __init__(self, background: Tensor, num_frames: int, *, ramp: float = 1.4) -> None:
        self.height, self.width = int(background.shape[-2]), int(background.shape[-1])
        self.image = background.expand(num_frames, 3, self.height, self.width).clone()  # (N, 3, H, W)
        self.ramp = ramp
        self._xs = torch.arange(self.width) + 0.5
        self._ys = torch.arange(self.height) + 0.5

    def ellipse(
        self,
        cx: Scalar,
        cy: Scalar,
        rx: Scalar,
        ry: Scalar,
        colour: Colour,
        *,
        angle: Tensor | None = None,
        opacity: Scalar = 1.0,
        bottom: Colour | None = None,
    ) -> None:
        """Paints an ellipse, turned by `angle` radians (clockwise on screen); `bottom` adds a vertical gradient."""
        reach = max(_high(rx), _high(ry)) if angle is not None else None
        crop = self._crop(cx, cy, reach or _high(rx), reach or _high(ry))
        if crop is None:
            return
        dx, dy = self._offsets(crop, cx, cy, angle)
        self._paint(crop, sd_ellipse(dx, dy, _per_frame(rx), _per_frame(ry)), colour, opacity, bottom)

    def box(
        self,
        cx: Scalar,
        cy: Scalar,
        hx: float,
        hy: float,
        corner: float,
        colour: Colour,
        *,
        angle: Tensor | None = None,
        bottom: Colour | None = None,
    ) -> None:
        """Paints a rounded box with half sizes `hx`, `hy`."""
        reach = math.hypot(hx, hy) if angle is not None else None
        crop = self._crop(cx, cy, reach or hx, reach or hy)
        if crop is None:
            return
        dx, dy = self._offsets(crop, cx, cy, angle)
        self._paint(crop, sd_rounded_box(dx, dy, hx, hy, corner), colour, 1.0, bottom)

    def capsule(self, ax: Tensor, ay: Tensor, bx: Tensor, by: Tensor, radius: float, colour: Colour) -> None:
        """Paints the segment a-b thickened by `radius`: limbs, ears, antennas."""
        crop = self._crop(torch.cat([ax, bx]), torch.cat([ay, by]), radius, radius)
        if crop is None:
            return
        px, py = self._offsets(crop, ax, ay, None)
        self._paint(crop, sd_capsule(px, py, _per_frame(bx - ax), _per_frame(by - ay), radius), colour, 1.0, None)

    def _crop(self, cx: Scalar, cy: Scalar, reach_x: float, reach_y: float) -> tuple[int, int, int, int] | None:
        x0 = max(0, math.floor(_low(cx) - reach_x - self.ramp))
        x1 = min(self.width, math.ceil(_high(cx) + reach_x + self.ramp))
        y0 = max(0, math.floor(_low(cy) - reach_y - self.ramp))
        y1 = min(self.height, math.ceil(_high(cy) + reach_y + self.ramp))
        return (x0, x1, y0, y1) if x0 < x1 and y0 < y1 else None

    def _offsets(
        self, crop: tuple[int, int, int, int], cx: Scalar, cy: Scalar, angle: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        x0, x1, y0, y1 = crop
        dx = self._xs[None, None, x0:x1] - _per_frame(cx)  # (N, 1, w)
        dy = self._ys[None, y0:y1, None] - _per_frame(cy)  # (N, h, 1)
        if angle is None:
            return dx, dy
        cos, sin = _per_frame(angle.cos()), _per_frame(angle.sin())
        return cos * dx + sin * dy, cos * dy - sin * dx

    def _paint(
        self,
        crop: tuple[int, int, int, int],
        distance: Tensor,
        colour: Colour,
        opacity: Scalar,
        bottom: Colour | None,
    ) -> None:
        x0, x1, y0, y1 = crop
        alpha = coverage(distance, self.ramp)
        if isinstance(opacity, Tensor) or opacity != 1.0:
            alpha = alpha * _per_frame(opacity)
        view = self.image[:, :, y0:y1, x0:x1]
        paint = torch.tensor(tuple(colour), dtype=torch.float32)[:, None, None]
        if bottom is not None:
            blend = torch.linspace(0, 1, y1 - y0)[None, :, None]
            paint = paint + (torch.tensor(tuple(bottom))[:, None, None] - paint) * blend
        view.lerp_(paint, alpha[:, None])


def _per_frame(value: Scalar) -> Scalar:
    return value[:, None, None] if isinstance(value, Tensor) else value


def _low(value: Scalar) -> float:
    return float(value.min()) if isinstance(value, Tensor) else float(value)


def _high(value: Scalar) -> float:
    return float(value.max()) if isinstance(value, Tensor) else float(value)
