"""Ulysses against one process that holds every token: outputs and all gradients, reference, motion, audio and text."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from omnihuman_core.mmdit import MMDiT
from omnihuman_train.distributed.sequence_parallel import parallelize_sequence

from .ranks import Server
from .split import CASES, inputs, model


@pytest.mark.parametrize("size", [2, 4])
def test_split_tokens_give_the_outputs_and_gradients_of_whole_ones(tmp_path: Path, ranks: Server, size: int) -> None:
    assert ranks.run(size, "compare_split", out=str(tmp_path / "out")) == [""] * size
    for rank in range(size):
        worst = json.loads((tmp_path / f"out.{rank}").read_text())
        assert worst.keys() == CASES.keys()
        assert max(worst.values()) < 1e-5, worst


class Three:
    """As much of a process group as is asked before any communication."""

    def size(self) -> int:
        return 3

    def rank(self) -> int:
        return 0


def test_what_cannot_be_split_is_refused() -> None:
    group: Any = Three()
    with pytest.raises(ValueError, match="Linear cannot be split; only an MMDiT can"):
        parallelize_sequence(nn.Linear(2, 2), group)
    with pytest.raises(ValueError, match=re.escape("parallel.sequence is 3, which does not divide the 4 heads")):
        parallelize_sequence(model(1, 1), group)
    built = MMDiT(replace(model(1, 1).config, num_heads=3, hidden_size=24))
    parallelize_sequence(built, group)
    with pytest.raises(ValueError, match="is 3, which does not divide the 4 tokens of a latent frame; choose another"):
        built(*inputs(whole=False))
