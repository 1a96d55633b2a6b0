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
    memory = found["memory"]
    assert memory["weights"] == memory["gradients"] == memory["average"] == 4 * found["held"]
    assert memory["moments"] == 8 * found["held"]
    assert 2 * sum(found["blocks"]) < memory["gathered"] < 2 * (sum(found["blocks"]) + 0.05 * found["count"])
    # What is planned without wrapping anything.
    for part, held in memory.items():
        assert found["planned"][part] == pytest.approx(held, rel=0.03), part
