"""Pass-through text: states go on as they are, and the null is the stored empty prompt."""

from pathlib import Path

import pytest
import torch

from omnihuman_conditions.language.states import TextStates, TextStatesConfig
from omnihuman_core.checkpoint import load_state, save_safetensors
from omnihuman_core.contracts.extractor import TextFeatures
from omnihuman_core.testing.encoder import ConditionEncoderConformance

CONFIG = TextStatesConfig.tiny()


def states(batch: int, seed: int = 0) -> TextFeatures:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(4) < torch.arange(1, batch + 1)[:, None]
    return TextFeatures(
        values=torch.randn(batch, 4, 8, generator=generator),
        mask=mask,
        pooled=torch.randn(batch, 6, generator=generator),
    )


def encoder() -> TextStates:
    module = TextStates(CONFIG)
    module.store_null(states(1, seed=1))
    return module.eval()


def test_states_pass_as_they_are() -> None:
    features = states(3)
    condition = encoder().encode(features)
    assert torch.equal(condition.tokens, features.values)
    assert torch.equal(condition.mask, features.mask)
    assert condition.pooled is features.pooled
    assert not list(encoder().parameters())


def test_the_null_is_the_empty_prompt_and_is_saved(tmp_path: Path) -> None:
    save_safetensors(encoder().state_dict(), tmp_path / "model.safetensors", {"format": "pt"})
    loaded = TextStates(CONFIG)
    load_state(loaded, tmp_path / "model.safetensors")
    null, empty = loaded.null(loaded.encode(states(3))), states(1, seed=1)
    for row in range(3):
        assert torch.equal(null.tokens[row], empty.values[0])
        assert torch.equal(null.mask[row], empty.mask[0])
        assert null.pooled is not None
        assert empty.pooled is not None
        assert torch.equal(null.pooled[row], empty.pooled[0])


def test_refusals() -> None:
    module = TextStates(CONFIG)
    features = states(2)
    with pytest.raises(ValueError, match="no null yet"):
        module.null(module.encode(features))
    with pytest.raises(ValueError, match="one text"):
        module.store_null(features)
    with pytest.raises(ValueError, match=r"\(B, 4, 8\)"):
        module.encode(TextFeatures(values=features.values[:, :3], mask=features.mask[:, :3], pooled=features.pooled))
    with pytest.raises(ValueError, match="width 6, got None"):
        module.encode(TextFeatures(values=features.values, mask=features.mask))
    with pytest.raises(ValueError, match="pooled_dim"):
        TextStatesConfig(max_tokens=1, token_dim=1, pooled_dim=0)


class TestConformance(ConditionEncoderConformance):
    @pytest.fixture
    def encoder(self) -> TextStates:
        return encoder()

    @pytest.fixture
    def features(self) -> TextFeatures:
        return states(3)
