"""Cases for the benchmark that need no GPU."""

import functools
from pathlib import Path

import torch

from omnihuman_kernels import performance
from omnihuman_kernels.gated_residual import gated_residual
from tests.kernels import references

FOLDER = Path(__file__).parents[4] / "benchmarks/kernels"


SEGMENTS = (2, 3)


def case(kind, **changes):
    options = {"segments": SEGMENTS}
    given = {
        "op": "gated_residual",
        "shape": "small",
        "make": lambda: [torch.randn(1, 5, 16), torch.randn(1, 5, 16), torch.randn(1, 2, 16)],
        "ours": functools.partial(gated_residual, **options),
        "reference": functools.partial(references.gated_residual, **options),
        "eager": functools.partial(references.gated_residual, **options),
        "cost": (performance.gated_residual(1, 5, 16), performance.gated_residual(1, 5, 16, backward=True)),
        "bound": "memory",
        "differentiable": 3,
        "targets": {("forward", "copy"): (0.5, 0.9), ("forward", "eager"): (2.0, 3.0)},
    }
    return kind(**{**given, **changes})


def plain(name, **changes):
    """A case that needs no kernel: the formula against itself."""
    function = functools.partial(references.gated_residual, segments=SEGMENTS)
    return {"op": name, "ours": function, "reference": function, "eager": None, "directions": ("forward",), **changes}


def wrong(r, x, g):
    return references.gated_residual(r, x, 2 * g, segments=SEGMENTS)
