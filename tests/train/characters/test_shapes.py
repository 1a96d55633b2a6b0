"""Shapes against closed forms: distances, areas and centres."""

import math

import pytest
import torch

from omnihuman_train.data.characters.shapes import Canvas, coverage, sd_capsule, sd_ellipse, sd_rounded_box

GRID = torch.arange(48) + 0.5
DX, DY = GRID[None, :] - 23.7, GRID[:, None] - 24.1


# the parallel curves of a closed convex edge add this much to a ramp's area: the integral of pi d^2 over the ramp
STEINER = math.pi * 1.4**2 / 12


def area(distance: torch.Tensor, ramp: float = 1.4) -> float:
    return float(coverage(distance, ramp).sum())


def test_disc_has_its_area_and_exact_distance() -> None:
    distance = sd_ellipse(DX, DY, 9.3, 9.3)
    assert area(distance) == pytest.approx(math.pi * 9.3**2 + STEINER, rel=2e-3)
    torch.testing.assert_close(distance, torch.hypot(DX, DY) - 9.3, atol=2e-3, rtol=0)


def test_ellipse_has_its_area_and_is_zero_on_its_edge() -> None:
    assert area(sd_ellipse(DX, DY, 12.0, 6.5)) == pytest.approx(math.pi * 12.0 * 6.5, rel=1e-2)
    angle = torch.linspace(0, 2 * math.pi, 50)
    edge = sd_ellipse(12.0 * angle.cos(), 6.5 * angle.sin(), 12.0, 6.5)
    assert edge.abs().max() < 1e-4


def test_capsule_has_its_area() -> None:
    px, py = GRID[None, :] - 14.0, GRID[:, None] - 16.0
    expected = 2 * 4.2 * math.hypot(15.0, 11.0) + math.pi * 4.2**2 + STEINER
    assert area(sd_capsule(px, py, 15.0, 11.0, 4.2)) == pytest.approx(expected, rel=3e-3)


def test_rounded_box_has_its_area() -> None:
    expected = 4 * 13.0 * 8.0 - (4 - math.pi) * 3.0**2
    assert area(sd_rounded_box(DX, DY, 13.0, 8.0, 3.0)) == pytest.approx(expected, rel=3e-3)


@pytest.mark.parametrize("shift", [0.0, 0.25, 0.5, 0.8])
def test_a_painted_disc_moves_by_fractions_of_a_pixel(shift: float) -> None:
    canvas = Canvas(torch.zeros(1, 3, 32, 40), 1)
    canvas.ellipse(torch.tensor([15.0 + shift]), 14.0, 5.0, 5.0, (1.0, 1.0, 1.0))
    weight = canvas.image[0, 0]
    centre = float((weight.sum(0) * (torch.arange(40) + 0.5)).sum() / weight.sum())
    assert centre == pytest.approx(15.0 + shift, abs=0.02)


def test_a_turned_ellipse_is_the_transposed_one() -> None:
    upright, turned = (Canvas(torch.zeros(1, 3, 33, 33), 1) for _ in range(2))
    upright.ellipse(16.5, 16.5, 5.0, 10.0, (1.0, 0.5, 0.2))
    turned.ellipse(16.5, 16.5, 10.0, 5.0, (1.0, 0.5, 0.2), angle=torch.tensor([math.pi / 2]))
    torch.testing.assert_close(upright.image, turned.image, atol=1e-4, rtol=0)


def test_shapes_outside_the_picture_leave_it_alone() -> None:
    canvas = Canvas(torch.full((1, 3, 16, 16), 0.3), 2)
    canvas.ellipse(-20.0, 5.0, 4.0, 4.0, (1.0, 1.0, 1.0))
    canvas.box(40.0, 5.0, 4.0, 4.0, 1.0, (1.0, 1.0, 1.0))
    assert (canvas.image == 0.3).all()
