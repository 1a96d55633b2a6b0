"""The drawing of a character.

Proportions are those of a doll: a big head, so that the mouth is several pixels tall even at 64 by 64. Geometry is
in head units (origin at the centre of the head, one unit is half its height, y down). The inside of the mouth and the
two gloves have colours that nothing else in a picture has; measures read the picture by them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from omnihuman_train.data.characters.look import RGB, Look, shade
from omnihuman_train.data.characters.motion import HAND_REACH, Motion
from omnihuman_train.data.characters.shapes import Canvas

MOUTH_INTERIOR: RGB = (0.35, 0.02, 0.08)
LEFT_GLOVE: RGB = (1.0, 0.9, 0.05)
RIGHT_GLOVE: RGB = (0.05, 0.88, 0.95)
MOUTH_TOP, MOUTH_HALF_WIDTH, MOUTH_HALF_HEIGHT = 0.36, 0.40, 0.27
GLOVE_RADIUS = 0.28
# size of the lips, in head units, and how much full rounding narrows the mouth
LIP_SIZE, ROUNDING = 0.065, 0.2
# half sizes of the box put round a mouth, in half sizes of the fully open mouth
MOUTH_BOX_GROWTH = (1.25, 1.3)


@dataclass(frozen=True, kw_only=True)
class Pose:
    """Where a character is in the picture: pixels, one value per frame.

    Attributes:
        unit: pixels per head unit.
        head: (N, 2) centre of the head.
        body: (N, 2) where the centre of the head would be without sway beyond the body's own.
        tilt: (N,) radians.
        hands, elbows: (N, 2, 2) left and right, x and y.
    """

    unit: float
    head: Tensor
    body: Tensor
    tilt: Tensor
    hands: Tensor
    elbows: Tensor

    @cached_property
    def _axes(self) -> tuple[Tensor, Tensor]:
        return self.unit * self.tilt.cos(), self.unit * self.tilt.sin()

    def on_head(self, x: float, y: float | Tensor) -> tuple[Tensor, Tensor]:
        """Pixel position of a point of the head given in head units; turns with the head."""
        cos, sin = self._axes
        return self.head[:, 0] + (cos * x - sin * y), self.head[:, 1] + (sin * x + cos * y)

    def turn(self, points: Tensor) -> Tensor:
        """Pixel positions (N, K, 2) of points of the head, (K, 2) or (N, K, 2) in head units."""
        cos, sin = (axis[:, None] for axis in self._axes)
        x, y = points.unbind(-1)
        return self.head[:, None] + torch.stack([cos * x - sin * y, sin * x + cos * y], dim=-1)

    def on_body(self, x: float, y: float) -> tuple[Tensor, Tensor]:
        """Pixel position of a point of the body given in head units."""
        return self.body[:, 0] + self.unit * x, self.body[:, 1] + self.unit * y


def make_pose(motion: Motion, origin: Tensor, unit: float, short_side: int, *, reach: float) -> Pose:
    """Turns motion curves into pixels.

    Args:
        motion: N values a curve.
        origin: (N, 2) where the head rests, in pixels.
        unit: pixels per head unit.
        short_side: of the picture, in pixels.
        reach: how far from the middle hands may go, in head units; gestures are narrowed to fit.
    """
    sway = torch.from_numpy(motion.sway) * short_side
    head, body = origin + sway, origin + 0.35 * sway
    narrow = torch.tensor([min(1.0, reach / HAND_REACH), 1.0])
    hands = body[:, None] + unit * narrow * torch.from_numpy(motion.hands)
    shoulders = body[:, None] + unit * torch.tensor([[0.52, 1.2], [-0.52, 1.2]])
    span = (hands - shoulders).norm(dim=-1, keepdim=True)
    # arms of two equal bones bend outwards at the elbow
    bend = ((0.72 * unit) ** 2 - (span / 2).square()).clamp_min(0.0).sqrt()
    outwards = torch.tensor([[0.75, 0.55], [-0.75, 0.55]])
    elbows = (hands + shoulders) / 2 + 0.6 * bend * outwards
    return Pose(unit=unit, head=head, body=body, tilt=torch.from_numpy(motion.tilt), hands=hands, elbows=elbows)


def draw_character(canvas: Canvas, look: Look, pose: Pose, motion: Motion, *, arms: bool, legs: bool) -> None:
    """Paints one character back to front.

    Args:
        canvas: N frames.
        look: colours and sizes.
        pose: places, N values each.
        motion: eyelids and mouth, N values each.
        arms: whether arms and gloves are in the picture.
        legs: whether legs are.
    """
    unit = pose.unit
    _draw_back_hair(canvas, look, pose)
    _draw_body(canvas, look, pose, legs=legs)
    if arms:
        _draw_sleeves(canvas, look, pose)
    _draw_head(canvas, look, pose)
    _draw_eyes(canvas, look, pose, motion)
    _draw_mouth(canvas, look, pose, motion)
    if arms:
        for hand, glove in enumerate((LEFT_GLOVE, RIGHT_GLOVE)):
            x, y = pose.hands[:, hand].unbind(-1)
            canvas.ellipse(x, y, GLOVE_RADIUS * unit, GLOVE_RADIUS * unit, glove)


def _bottom(look: Look, colour: RGB) -> RGB | None:
    return shade(colour, 0.86) if look.shaded else None


def _draw_back_hair(canvas: Canvas, look: Look, pose: Pose) -> None:
    u = pose.unit
    if look.hair_style == "long":
        x, y = pose.on_head(0.0, 0.35)
        canvas.box(x, y, 1.02 * look.head_width * u, 0.95 * u, 0.45 * u, shade(look.hair, 0.9), angle=pose.tilt)
    elif look.hair_style == "bob":
        x, y = pose.on_head(0.0, 0.1)
        canvas.box(x, y, 1.06 * look.head_width * u, 0.72 * u, 0.4 * u, shade(look.hair, 0.9), angle=pose.tilt)
    elif look.hair_style == "bun":
        x, y = pose.on_head(0.0, -1.05)
        canvas.ellipse(x, y, 0.36 * u, 0.32 * u, look.hair)
    elif look.hair_style == "antenna":
        canvas.capsule(*pose.on_head(0.0, -0.8), *pose.on_head(0.0, -1.12), 0.07 * u, shade(look.skin, 0.7))
        canvas.ellipse(*pose.on_head(0.0, -1.14), 0.19 * u, 0.19 * u, look.hair)
    elif look.hair_style == "ears":
        for side in (-1.0, 1.0):
            canvas.capsule(*pose.on_head(0.5 * side, -0.6), *pose.on_head(0.66 * side, -0.98), 0.22 * u, look.hair)


def _draw_body(canvas: Canvas, look: Look, pose: Pose, *, legs: bool) -> None:
    u = pose.unit
    if legs:
        trousers, shoes = shade(look.clothes, 0.6), (0.24, 0.22, 0.26)
        for side in (-1.0, 1.0):
            canvas.capsule(*pose.on_body(0.27 * side, 2.1), *pose.on_body(0.3 * side, 3.3), 0.22 * u, trousers)
            canvas.ellipse(*pose.on_body(0.36 * side, 3.5), 0.34 * u, 0.2 * u, shoes)
    canvas.box(*pose.on_body(0.0, 1.05), 0.24 * u, 0.35 * u, 0.1 * u, shade(look.skin, 0.88))
    # a body without legs reaches below the picture
    half = 0.68 if legs else 1.6
    canvas.box(*pose.on_body(0.0, 1.08 + half), 0.64 * u, half * u, 0.34 * u, look.clothes)


def _draw_head(canvas: Canvas, look: Look, pose: Pose) -> None:
    u, w = pose.unit, look.head_width
    skin, under = look.skin, _bottom(look, look.skin)
    if look.kind == "robot":
        for side in (-1.0, 1.0):
            canvas.ellipse(*pose.on_head(side * w, 0.15), 0.14 * u, 0.24 * u, look.hair)
        x, y = pose.on_head(0.0, 0.06)
        canvas.box(x, y, 0.96 * w * u, 0.88 * u, 0.36 * u, skin, angle=pose.tilt, bottom=under)
        x, y = pose.on_head(0.0, -0.6)
        canvas.box(x, y, 0.5 * u, 0.15 * u, 0.12 * u, look.hair, angle=pose.tilt)
        return
    if look.kind == "cat":
        x, y = pose.on_head(0.0, 0.1)
        canvas.ellipse(x, y, w * u, 0.88 * u, skin, angle=pose.tilt, bottom=under)
        canvas.ellipse(*pose.on_head(0.0, -0.6), 0.34 * u, 0.22 * u, look.hair, angle=pose.tilt)
        canvas.ellipse(*pose.on_head(0.0, 0.26), 0.11 * u, 0.07 * u, (0.90, 0.48, 0.52))
        return
    x, y = pose.on_head(0.0, -0.12)
    canvas.ellipse(x, y, 1.02 * w * u, 0.98 * u, look.hair, angle=pose.tilt)
    for side in (-1.0, 1.0):
        canvas.ellipse(*pose.on_head(side * 0.93 * w, 0.2), 0.16 * u, 0.2 * u, shade(skin, 0.94))
    x, y = pose.on_head(0.0, 0.13)
    canvas.ellipse(x, y, 0.93 * w * u, 0.87 * u, skin, angle=pose.tilt, bottom=under)
    if look.hair_style == "side":
        canvas.ellipse(*pose.on_head(-0.3, -0.62), 0.62 * u, 0.3 * u, look.hair, angle=pose.tilt - 0.25)
    elif look.hair_style == "short":
        canvas.ellipse(*pose.on_head(0.0, -0.72), 0.7 * u, 0.26 * u, look.hair, angle=pose.tilt)
    else:
        for side in (-1.0, 1.0):
            x, y = pose.on_head(0.34 * side, -0.63)
            canvas.ellipse(x, y, 0.5 * u, 0.28 * u, look.hair, angle=pose.tilt + 0.3 * side)


def _draw_eyes(canvas: Canvas, look: Look, pose: Pose, motion: Motion) -> None:
    u, size = pose.unit, look.eye_size
    lids = torch.from_numpy(motion.lids)
    for side in (-1.0, 1.0):
        if look.cheeks:
            canvas.ellipse(*pose.on_head(0.62 * side, 0.36), 0.17 * u, 0.12 * u, (0.96, 0.5, 0.48), opacity=0.4)
        x, y = pose.on_head(look.eye_gap * side, 0.02)
        canvas.ellipse(x, y, 0.2 * size * u, (0.24 * size * u) * lids.clamp_min(0.18), (0.98, 0.98, 0.98))
        # a shut eye keeps a dark line
        canvas.ellipse(x, y, 0.13 * size * u, (0.18 * size * u) * lids.clamp_min(0.3), look.iris)
        x, y = pose.on_head(look.eye_gap * side + 0.04, -0.05)
        canvas.ellipse(x, y, 0.055 * u, 0.055 * u, (0.98, 0.98, 0.98), opacity=lids)
        if look.brows and look.kind in ("woman", "man"):
            inner, outer = pose.on_head(0.24 * side, -0.29), pose.on_head(0.52 * side, -0.31)
            canvas.capsule(*inner, *outer, 0.045 * u, shade(look.hair, 0.85))


def mouth_geometry(pose: Pose, motion: Motion) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Centre x, y and half width, half height of the mouth's inside, in pixels, each (N,)."""
    opening, rounding = torch.from_numpy(motion.mouth_open), torch.from_numpy(motion.rounding)
    half_height = MOUTH_HALF_HEIGHT * opening
    x, y = pose.on_head(0.0, MOUTH_TOP + half_height)
    return x, y, pose.unit * MOUTH_HALF_WIDTH * (1 - ROUNDING * rounding), pose.unit * half_height


def _draw_mouth(canvas: Canvas, look: Look, pose: Pose, motion: Motion) -> None:
    x, y, half_width, half_height = mouth_geometry(pose, motion)
    lip_size = LIP_SIZE * pose.unit
    lip = tuple(0.72 * s + 0.28 * r for s, r in zip(look.skin, (0.72, 0.25, 0.28), strict=True))
    canvas.ellipse(x, y, half_width + lip_size, half_height + lip_size, lip, angle=pose.tilt)
    # below half a pixel an ellipse has no inside left: it fades instead
    seen = (half_height / 0.5).clamp(0, 1)
    canvas.ellipse(x, y, half_width, half_height.clamp_min(0.5), MOUTH_INTERIOR, angle=pose.tilt, opacity=seen)


def _draw_sleeves(canvas: Canvas, look: Look, pose: Pose) -> None:
    u, sleeve = pose.unit, shade(look.clothes, 0.86)
    for hand, side in enumerate((1.0, -1.0)):
        (elbow_x, elbow_y), (wrist_x, wrist_y) = pose.elbows[:, hand].unbind(-1), pose.hands[:, hand].unbind(-1)
        canvas.capsule(*pose.on_body(0.52 * side, 1.25), elbow_x, elbow_y, 0.17 * u, sleeve)
        canvas.capsule(elbow_x, elbow_y, wrist_x, wrist_y, 0.16 * u, sleeve)
