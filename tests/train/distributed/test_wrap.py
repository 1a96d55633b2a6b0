"""The 13B shape, wrapped on meta for 64 processes that are not there."""

import json
from pathlib import Path

import pytest

from .ranks import Server


def test_every_parameter_of_the_large_model_is_sharded(tmp_path: Path, ranks: Server) -> None:
    world = 64
    assert ranks.run(1, "wrap", out=str(tmp_path / "numbers.json"), world=world, preset="hunyuan_video") == [""]
    found = json.loads((tmp_path / "numbers.json").read_text())
    assert found["all"]
    # HunyuanVideo has 12.8 billion weights; a dimension that 64 does not divide costs a little.
    assert found["count"] == pytest.approx(12.82e9, rel=0.01)
    assert found["held"] == pytest.approx(found["count"] / world, rel=0.01)
    # What is planned without wrapping anything; gradients, moments and average are sharded as the weights are.
    planned = found["planned"]
    assert planned["weights"] == pytest.approx(found["held_bytes"], rel=0.03)
    for part, size in (("gradients", 4), ("moments", 8), ("average", 4)):
        assert planned[part] == pytest.approx(size * found["held"], rel=0.03), part
    assert 2 * sum(found["blocks"]) < planned["gathered"] < 2 * (sum(found["blocks"]) + 0.05 * found["count"])
