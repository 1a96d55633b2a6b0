"""Reference and motion conditions through a VAE that only knows the contract."""

from collections.abc import Iterable, Iterator

import pytest
import torch
from torch import Generator, Tensor

from omnihuman_conditions.motion import encode_motion
from omnihuman_conditions.reference import encode_reference
from omnihuman_core.contracts.latents import LatentSpec
from omnihuman_core.contracts.vae import VideoVAE


class RecordingVAE:
    """Latents are the means of 2 x 2 pixels; what it was given is kept."""

    latent_spec = LatentSpec(channels=3, temporal_stride=4, spatial_stride=2)
    streaming_tolerance = None

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def encode(self, video: Tensor, *, generator: Generator | None = None) -> Tensor:
        self.seen.append(video)
        frames = self.latent_spec.latent_frames(video.shape[2])
        return torch.nn.functional.avg_pool3d(video, (1, 2, 2))[:, :, :frames]

    def decode(self, latents: Tensor) -> Tensor:
        return latents

    def decode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        yield from chunks


def test_each_picture_is_encoded_as_a_video_of_one_frame() -> None:
    vae = RecordingVAE()
    assert isinstance(vae, VideoVAE)
    pictures = torch.rand(2, 3, 4, 6, 8)
    latents = encode_reference(vae, pictures).latents
    assert vae.seen[0].shape == (8, 3, 1, 6, 8)
    torch.testing.assert_close(latents, torch.nn.functional.avg_pool3d(pictures, (1, 2, 2)))


def test_motion_is_the_end_of_the_video_as_a_clip_of_its_own() -> None:
    vae = RecordingVAE()
    video = torch.rand(1, 3, 13, 4, 4)
    condition = encode_motion(vae, video, motion_frames=5)
    assert torch.equal(vae.seen[0], video[:, :, 8:])
    assert condition.latents.shape == (1, 3, 2, 2, 2)


def test_refusals() -> None:
    vae = RecordingVAE()
    with pytest.raises(ValueError, match=r"\(B, 3, r, H, W\)"):
        encode_reference(vae, torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match="height must be a multiple of 2"):
        encode_reference(vae, torch.zeros(1, 3, 1, 5, 4))
    with pytest.raises(ValueError, match="T >= 5"):
        encode_motion(vae, torch.zeros(1, 3, 4, 4, 4), motion_frames=5)
    with pytest.raises(ValueError, match="multiple of 4"):
        encode_motion(vae, torch.zeros(1, 3, 9, 4, 4), motion_frames=4)
    assert not vae.seen
