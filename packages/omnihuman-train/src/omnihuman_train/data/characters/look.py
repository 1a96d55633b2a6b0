"""What a character looks like: its kind, colours and sizes, and the words for them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RGB = tuple[float, float, float]

KINDS = ("woman", "man", "robot", "cat")
HAIR_COLOURS: dict[str, RGB] = {
    "red": (0.80, 0.26, 0.16),
    "blonde": (0.93, 0.76, 0.46),
    "brown": (0.45, 0.28, 0.17),
    "black": (0.16, 0.15, 0.18),
    "white": (0.92, 0.91, 0.92),
    "pink": (0.95, 0.52, 0.70),
    "green": (0.30, 0.62, 0.32),
}
CLOTHES_COLOURS: dict[str, RGB] = {
    "red": (0.86, 0.22, 0.22),
    "blue": (0.22, 0.38, 0.82),
    "green": (0.22, 0.60, 0.32),
    "purple": (0.55, 0.28, 0.70),
    "orange": (0.94, 0.52, 0.18),
    "white": (0.93, 0.93, 0.93),
    "gray": (0.50, 0.50, 0.54),
    "pink": (0.94, 0.55, 0.72),
}
BACKGROUND_COLOURS: dict[str, RGB] = {
    "blue": (0.58, 0.70, 0.90),
    "green": (0.60, 0.82, 0.60),
    "pink": (0.93, 0.73, 0.80),
    "purple": (0.70, 0.62, 0.86),
    "gray": (0.72, 0.72, 0.74),
    "white": (0.95, 0.95, 0.95),
    "orange": (0.96, 0.76, 0.54),
    "brown": (0.66, 0.54, 0.44),
}
SKIN_COLOURS: tuple[RGB, ...] = (
    (0.98, 0.84, 0.74),
    (0.94, 0.76, 0.62),
    (0.85, 0.64, 0.48),
    (0.72, 0.51, 0.36),
    (0.60, 0.42, 0.31),
)
FUR_COLOURS: tuple[RGB, ...] = ((0.95, 0.88, 0.78), (0.92, 0.70, 0.46), (0.74, 0.74, 0.78), (0.88, 0.88, 0.90))
METAL_COLOURS: tuple[RGB, ...] = ((0.74, 0.79, 0.86), (0.80, 0.80, 0.84), (0.66, 0.78, 0.74))


@dataclass(frozen=True, kw_only=True)
class Look:
    """Attributes of one character; colours are RGB in [0, 1], sizes in head units."""

    kind: str
    hair_name: str
    clothes_name: str
    skin: RGB
    hair: RGB
    clothes: RGB
    iris: RGB
    hair_style: str
    head_width: float
    eye_size: float
    eye_gap: float
    shaded: bool
    cheeks: bool
    brows: bool


def vary(rng: np.random.Generator, colour: RGB, amount: float = 0.05) -> RGB:
    """A colour within `amount` of the named one, in each channel."""
    shifted = np.clip(np.asarray(colour) + rng.uniform(-amount, amount, 3), 0.02, 0.98)
    return float(shifted[0]), float(shifted[1]), float(shifted[2])


def shade(colour: RGB, factor: float) -> RGB:
    """The colour times `factor`, kept within [0, 1]."""
    return min(colour[0] * factor, 1.0), min(colour[1] * factor, 1.0), min(colour[2] * factor, 1.0)


def make_look(rng: np.random.Generator) -> Look:
    """Draws the attributes of a character."""
    kind = KINDS[int(rng.choice(4, p=[0.36, 0.36, 0.14, 0.14]))]
    skins = {"robot": METAL_COLOURS, "cat": FUR_COLOURS}.get(kind, SKIN_COLOURS)
    hair_name = list(HAIR_COLOURS)[int(rng.integers(len(HAIR_COLOURS)))]
    clothes_name = list(CLOTHES_COLOURS)[int(rng.integers(len(CLOTHES_COLOURS)))]
    styles = {"woman": ("long", "bun", "bob"), "man": ("short", "side"), "robot": ("antenna",), "cat": ("ears",)}[kind]
    return Look(
        kind=kind,
        hair_name=hair_name,
        clothes_name=clothes_name,
        skin=vary(rng, skins[int(rng.integers(len(skins)))], 0.03),
        hair=vary(rng, HAIR_COLOURS[hair_name], 0.04),
        clothes=vary(rng, CLOTHES_COLOURS[clothes_name]),
        iris=vary(rng, ((0.16, 0.14, 0.16), (0.20, 0.30, 0.50), (0.18, 0.36, 0.24))[int(rng.integers(3))], 0.03),
        hair_style=styles[int(rng.integers(len(styles)))],
        head_width=float(rng.uniform(0.92, 1.04)),
        eye_size=float(rng.uniform(0.9, 1.15)),
        eye_gap=float(rng.uniform(0.34, 0.42)),
        shaded=bool(rng.random() < 0.5),
        cheeks=bool(rng.random() < 0.6),
        brows=bool(rng.random() < 0.5),
    )
