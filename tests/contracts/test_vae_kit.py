"""Each planted fault makes exactly the kit test of its invariant fail."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest
import torch
from torch import Tensor

from omnihuman_core.testing.fakes import FakeVAE, FakeVAEConfig
from omnihuman_core.testing.vae import VideoVAEConformance

CONFIG = FakeVAEConfig()


class ExactKit(VideoVAEConformance):
    round_trip_tolerance = 1e-5


class TestFakeVAE(ExactKit):
    @pytest.fixture
    def vae(self) -> FakeVAE:
        return FakeVAE(CONFIG)


class TestLossyFakeVAE(VideoVAEConformance):
    @pytest.fixture
    def vae(self) -> FakeVAE:
        return FakeVAE(FakeVAEConfig(temporal_stride=4, spatial_stride=4, channels=6))


class TestStrideOne(ExactKit):
    @pytest.fixture
    def vae(self) -> FakeVAE:
        return FakeVAE(FakeVAEConfig(temporal_stride=1, spatial_stride=1, channels=3))


class ForgetsItsConfig(FakeVAE):
    config_class = dict  # type: ignore[assignment]


class DropsAFrame(FakeVAE):
    """Never says that sizes do not fit, and encodes what fits of them."""

    def encode(self, video: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        stride, pixels = self.config.temporal_stride, self.config.spatial_stride
        frames, height, width = video.shape[2:]
        fits = video[:, :, : frames - (frames - 1) % stride, : height - height % pixels, : width - width % pixels]
        return super().encode(fits, generator=generator)


class ChangesDtype(FakeVAE):
    def decode(self, latents: Tensor) -> Tensor:
        return super().decode(latents).double()


class NormalisesByTheBatch(FakeVAE):
    """Divides by a statistic of the batch's first pictures, and decodes as if by a constant."""

    def encode(self, video: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        return super().encode(video, generator=generator) * (1 + 0.1 * video[:, :, 0].std())


class ForgetsToScaleBack(FakeVAE):
    def decode(self, latents: Tensor) -> Tensor:
        return super().decode(latents) * 0.18

    def decode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        return (piece * 0.18 for piece in super().decode_stream(chunks))


class UnnormalisedLatents(FakeVAE):
    def encode(self, video: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        return super().encode(video, generator=generator) * 1e3

    def decode(self, latents: Tensor) -> Tensor:
        return super().decode(latents / 1e3)

    def decode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        return super().decode_stream(chunk / 1e3 for chunk in chunks)


class PeeksWhileEncoding(FakeVAE):
    def encode(self, video: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        latents = super().encode(video, generator=generator).clone()
        # The first frame stays alone; a later one sees the one after it. Too little for the round trip to notice.
        latents[:, :, 1:-1] += 1e-4 * latents[:, :, 2:]
        return latents


class PeeksWhileDecoding(FakeVAE):
    streaming_tolerance = None

    def decode(self, latents: Tensor) -> Tensor:
        mixed = latents.clone()
        mixed[:, :, 1:-1] += 1e-4 * latents[:, :, 2:]
        return super().decode(mixed)


class SeamsBetweenPieces(FakeVAE):
    def decode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        for index, piece in enumerate(super().decode_stream(chunks)):
            yield piece * (1.0 if index == 0 else 1.001)


class AlwaysDraws(FakeVAE):
    def encode(self, video: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        latents = super().encode(video, generator=generator)
        return latents + 1e-7 * torch.randn_like(latents)


class IgnoresTheGenerator(FakeVAE):
    def encode(self, video: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        return super().encode(video)


class NoPictures(FakeVAE):
    def encode(self, video: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        if video.shape[2] == 1:
            video = torch.cat([video, *[torch.zeros_like(video)] * self.config.temporal_stride], dim=2)
        return super().encode(video, generator=generator)


FAULTS = {
    ForgetsItsConfig: "test_0_registrable",
    DropsAFrame: "test_1_encode_shape",
    ChangesDtype: "test_2_decode_shape",
    NormalisesByTheBatch: "test_3_latents_are_final",
    ForgetsToScaleBack: "test_3_latents_are_final",
    UnnormalisedLatents: "test_3_latents_are_final",
    PeeksWhileEncoding: "test_4_causality",
    PeeksWhileDecoding: "test_4_causality",
    SeamsBetweenPieces: "test_5_streaming",
    AlwaysDraws: "test_6_generator",
    IgnoresTheGenerator: "test_6_generator",
    NoPictures: "test_7_picture",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_planted_fault_is_found(fault, failing):
    class Kit(VideoVAEConformance):
        # Loose enough for the faults of causality, which only test 4 is to find.
        round_trip_tolerance = 1e-2

    assert failing(Kit(), vae=fault(CONFIG)) == {FAULTS[fault]}


def test_the_sound_vae_passes(failing):
    assert failing(ExactKit(), vae=FakeVAE(CONFIG)) == set()
