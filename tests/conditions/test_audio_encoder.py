"""The audio encoder: window and slots reach exactly the frames they should, layers mix as said, nulls are nulls."""

import pytest
import torch

from omnihuman_conditions.audio.encoder import AudioEncoder, AudioEncoderConfig
from omnihuman_core.contracts.latents import LatentSpec
from omnihuman_core.testing.encoder import ConditionEncoderConformance
from omnihuman_core.testing.numerics import randomize

SMALL = AudioEncoderConfig(
    num_layers=2,
    feature_dim=6,
    feature_norm=False,
    layer_mix="softmax",
    window=5,
    hidden_dim=16,
    token_dim=8,
    temporal_stride=4,
)


def changed(**fields: object) -> AudioEncoderConfig:
    return AudioEncoderConfig(**{**SMALL.__dict__, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize("stride", [1, 4])
def test_a_token_group_sees_its_frames_and_the_margin(stride: int) -> None:
    torch.manual_seed(0)
    encoder = AudioEncoder(changed(temporal_stride=stride))
    spec = LatentSpec(channels=1, temporal_stride=stride, spatial_stride=1)
    frames = spec.pixel_frames(5)
    x = torch.randn(1, frames, 2, 6, requires_grad=True)
    tokens = encoder.encode(x).tokens
    assert tokens.shape == (1, 5, stride, 8)
    for latent in range(5):
        (gradient,) = torch.autograd.grad(tokens[0, latent].square().sum(), x, retain_graph=True)
        seen = gradient[0].abs().sum((1, 2)).nonzero()[:, 0].tolist()
        own = spec.frame_range(latent)
        assert seen == list(range(max(own[0] - 2, 0), min(own[-1] + 2, frames - 1) + 1))


def test_each_slot_is_one_pixel_frame_in_order() -> None:
    torch.manual_seed(0)
    encoder = AudioEncoder(SMALL)
    x = torch.randn(1, 9, 2, 6)
    tokens = encoder.encode(x).tokens[0] - encoder.slot
    states = encoder.out_proj(encoder.frame_states(x))[0]
    torch.testing.assert_close(tokens[1], states[1:5])
    torch.testing.assert_close(tokens[2], states[5:9])
    torch.testing.assert_close(tokens[0], states[:1].expand(4, -1))


def test_softmax_mix_is_a_weighted_mean_and_starts_even() -> None:
    torch.manual_seed(0)
    encoder = AudioEncoder(SMALL)
    x = torch.randn(2, 5, 2, 6)
    even = x.mean(2, keepdim=True).expand_as(x)
    torch.testing.assert_close(encoder.encode(x).tokens, encoder.encode(even).tokens)
    with torch.no_grad():
        assert encoder.layer_weights is not None
        encoder.layer_weights.copy_(torch.tensor([50.0, -50.0]))
    first = x[:, :, :1].expand_as(x)
    torch.testing.assert_close(encoder.encode(x).tokens, encoder.encode(first).tokens)


def test_concat_keeps_layers_apart() -> None:
    torch.manual_seed(0)
    encoder = AudioEncoder(changed(layer_mix="concat"))
    x = torch.randn(1, 5, 2, 6)
    assert not torch.allclose(encoder.encode(x).tokens, encoder.encode(x.flip(2)).tokens)


def test_feature_norm_removes_the_scale_of_a_state() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 5, 2, 6)
    normed, plain = AudioEncoder(changed(feature_norm=True)), AudioEncoder(SMALL)
    torch.testing.assert_close(normed.encode(x).tokens, normed.encode(50 * x).tokens, atol=1e-3, rtol=0)
    assert not torch.allclose(plain.encode(x).tokens, plain.encode(50 * x).tokens, atol=1e-2)


def test_frame_states_feed_an_auxiliary_head() -> None:
    encoder = AudioEncoder(SMALL)
    states = encoder.frame_states(torch.randn(2, 7, 2, 6))
    assert states.shape == (2, 7, 16)
    states.square().mean().backward()
    assert encoder.in_proj.weight.grad is not None
    assert encoder.in_proj.weight.grad.abs().sum() > 0


def test_null_trains() -> None:
    encoder = AudioEncoder(SMALL)
    condition = encoder.encode(torch.randn(2, 5, 2, 6))
    keep = torch.tensor([True, False])
    mixed = condition.where(keep, encoder.null(condition))
    assert torch.equal(mixed.tokens[0], condition.tokens[0])
    assert torch.equal(mixed.tokens[1], encoder.null_token.expand(2, 4, 8))
    mixed.tokens.sum().backward()
    assert encoder.null_token.grad is not None
    assert encoder.null_token.grad.abs().sum() > 0


def test_tiny_takes_the_log_mel_states_and_gives_four_tokens() -> None:
    tokens = AudioEncoder(AudioEncoderConfig.tiny()).encode(torch.zeros(1, 13, 1, 160)).tokens
    assert tokens.shape == (1, 4, 4, 128)
    assert AudioEncoderConfig.wav2vec2_base(num_layers=3).num_layers == 3


def test_refusals() -> None:
    encoder = AudioEncoder(SMALL)
    with pytest.raises(ValueError, match=r"\(B, T, 2, 6\)"):
        encoder.encode(torch.zeros(1, 5, 1, 6))
    with pytest.raises(ValueError, match="multiple of 4"):
        encoder.encode(torch.zeros(1, 6, 2, 6))
    for fields in ({"window": 4}, {"hidden_dim": 0}, {"layer_mix": "sum"}):
        with pytest.raises(ValueError, match=f"AudioEncoderConfig.{next(iter(fields))}"):
            changed(**fields)


@pytest.mark.parametrize("mix", ["softmax", "concat"])
class TestConformance(ConditionEncoderConformance):
    @pytest.fixture
    def encoder(self, mix: str) -> AudioEncoder:
        encoder = AudioEncoder(changed(layer_mix=mix, feature_norm=mix == "concat"))
        randomize(encoder)
        return encoder.eval()

    @pytest.fixture
    def features(self) -> torch.Tensor:
        return torch.randn(2, 9, 2, 6, generator=torch.Generator().manual_seed(0))
