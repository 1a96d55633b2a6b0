"""Conformance kit of :class:`omnihuman_core.contracts.vae.VideoVAE`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from omnihuman_core.contracts.vae import VideoVAE
from omnihuman_core.testing.numerics import assert_close, assert_refused
from omnihuman_core.testing.registration import check_registrable

BATCH = 2


class VideoVAEConformance:
    """Subclass it and give a fixture ``vae``, in fp32 and in ``eval`` mode.

    Attributes:
        latent_frames: Latent frames ``t`` of the test clip, at least 3.
        latent_size: Latent ``(h, w)`` of the test clip.
        tolerance: Largest difference where two computations must agree.
        round_trip_tolerance: Largest difference between a video and its decoded latents; None for a lossy VAE.
        latent_std_range: Bounds of the standard deviation of final latents on the test clip.
        stochastic: Whether the posterior has a spread, so that a generator changes the latents.
    """

    latent_frames: int = 4
    latent_size: tuple[int, int] = (2, 3)
    tolerance: float = 1e-5
    round_trip_tolerance: float | None = None
    latent_std_range: tuple[float, float] = (0.05, 20.0)
    stochastic: bool = True

    def video(self, vae: VideoVAE, latent_frames: int | None = None) -> Tensor:
        """A clip of smooth noise in [-1, 1], ``(B, 3, T, H, W)``."""
        spec = vae.latent_spec
        frames = spec.pixel_frames(latent_frames or self.latent_frames)
        noise = torch.rand(BATCH, 3, frames, *spec.pixel_size(*self.latent_size), generator=_seeded(0)) * 2 - 1
        return (noise + noise.roll(1, dims=-1) + noise.roll(1, dims=-2)) / 3

    def test_0_registrable(self, vae: Any) -> None:
        """The VAE can be rebuilt from its written configuration, and follows the protocol."""
        assert isinstance(vae, VideoVAE)
        check_registrable(vae)

    def test_1_encode_shape(self, vae: VideoVAE) -> None:
        """Invariant 1: latents have the shape that ``latent_spec`` says; sizes that do not fit are refused."""
        spec = vae.latent_spec
        for frames in (2, self.latent_frames):
            video = self.video(vae, frames)
            expected = (BATCH, *spec.latent_shape(*video.shape[2:]))
            with torch.no_grad():
                assert tuple(vae.encode(video).shape) == expected, f"latents must have the shape {expected}"
        video = self.video(vae)
        if spec.temporal_stride > 1:
            assert_refused(lambda: vae.encode(video[:, :, :-1]), "a number of frames that does not fit")
        if spec.spatial_stride > 1:
            assert_refused(lambda: vae.encode(video[..., :-1]), "a width that does not fit")

    def test_2_decode_shape(self, vae: VideoVAE) -> None:
        """Invariant 2: decoding gives the size of the video back, finite, in the dtype of the latents."""
        video = self.video(vae)
        with torch.no_grad():
            latents = vae.encode(video)
            decoded = vae.decode(latents)
        assert decoded.shape == video.shape, f"decoded video has {tuple(decoded.shape)}, not {tuple(video.shape)}"
        assert latents.dtype == decoded.dtype == video.dtype, f"dtypes change: {latents.dtype}, {decoded.dtype}"
        assert bool(torch.isfinite(decoded).all()), "decoded video holds values that are not finite"

    def test_3_latents_are_final(self, vae: VideoVAE) -> None:
        """Invariant 3: latents are normalised with constants, and ``decode`` takes them as ``encode`` gives them."""
        video = self.video(vae)
        # Samples of different contrast: normalising by the batch, or by each clip, shows.
        video[1] *= 0.25
        with torch.no_grad():
            latents = vae.encode(video)
            alone = torch.cat([vae.encode(video[i : i + 1]) for i in range(BATCH)])
            decoded = vae.decode(latents)
        assert_close(latents, alone, self.tolerance, "latents of a batch and of its samples alone")
        low, high = self.latent_std_range
        std = float(latents[0].std())
        assert low <= std <= high, f"latents have a standard deviation of {std:.3g}, outside [{low}, {high}]"
        if self.round_trip_tolerance is not None:
            assert_close(decoded, video, self.round_trip_tolerance, "decoded latents and the video")

    def test_4_causality(self, vae: VideoVAE) -> None:
        """Invariant 4: nothing depends on later frames, neither in ``encode`` nor in ``decode``."""
        spec, video = vae.latent_spec, self.video(vae)
        with torch.no_grad():
            latents = vae.encode(video)
            decoded = vae.decode(latents)
            for i in range(self.latent_frames - 1):
                end = spec.frame_range(i).stop
                changed = video.clone()
                changed[:, :, end:] = -changed[:, :, end:].flip(-1) + 0.1
                assert_close(
                    vae.encode(changed)[:, :, : i + 1],
                    latents[:, :, : i + 1],
                    self.tolerance,
                    f"latent frame {i} when later pixel frames change",
                )
                later = latents.clone()
                later[:, :, i + 1 :] = -later[:, :, i + 1 :].flip(-1) + 0.1
                assert_close(
                    vae.decode(later)[:, :, :end],
                    decoded[:, :, :end],
                    self.tolerance,
                    f"decoded frames up to {end} when later latent frames change",
                )

    def test_5_streaming(self, vae: VideoVAE) -> None:
        """Invariant 5: a clip decoded in pieces, split anywhere, is the clip decoded whole."""
        latents = torch.randn(
            BATCH, vae.latent_spec.channels, self.latent_frames, *self.latent_size, generator=_seeded(1)
        )
        with torch.no_grad():
            whole = vae.decode(latents)
            for sizes in _splits(self.latent_frames):
                pieces = list(vae.decode_stream(iter(torch.split(latents, sizes, dim=2))))
                streamed = torch.cat(pieces, dim=2)
                assert streamed.shape == whole.shape, f"pieces {sizes} give {tuple(streamed.shape)} in all"
                if vae.streaming_tolerance is not None:
                    # The tolerance is stated for values near [-1, 1].
                    scale = max(1.0, float(whole.abs().max()))
                    assert_close(streamed, whole, vae.streaming_tolerance * scale, f"video streamed in pieces {sizes}")

    def test_6_generator(self, vae: VideoVAE) -> None:
        """Invariant 6: without a generator the latents are fixed; with one they are a draw that its seed fixes."""
        video = self.video(vae)
        state = torch.get_rng_state()
        with torch.no_grad():
            fixed, again = vae.encode(video), vae.encode(video)
            draws = [vae.encode(video, generator=_seeded(seed)) for seed in (0, 0, 1)]
        assert torch.equal(fixed, again), "encode without a generator must be deterministic"
        assert torch.equal(draws[0], draws[1]), "one seed must give one draw"
        assert torch.equal(state, torch.get_rng_state()), "encode must not touch the global random state"
        if self.stochastic:
            assert not torch.equal(draws[0], draws[2]), "two seeds must give two draws"
            assert not torch.equal(draws[0], fixed), "a draw must differ from the mean"

    def test_7_picture(self, vae: VideoVAE) -> None:
        """Invariant 7: one picture is a video of one frame, and equals the first frame of a longer one."""
        video = self.video(vae)
        with torch.no_grad():
            latents = vae.encode(video)
            picture = vae.encode(video[:, :, :1])
            assert picture.shape == latents[:, :, :1].shape, f"a picture has latents {tuple(picture.shape)}"
            assert_close(picture, latents[:, :, :1], self.tolerance, "latents of the first frame alone")
            decoded, whole = vae.decode(picture), vae.decode(latents)[:, :, :1]
            assert decoded.shape == whole.shape, f"a picture decodes to {tuple(decoded.shape)}"
            assert_close(decoded, whole, self.tolerance * max(1.0, float(whole.abs().max())), "a picture decoded alone")


def _seeded(seed: int) -> Generator:
    return torch.Generator().manual_seed(seed)


def _splits(frames: int) -> list[list[int]]:
    return [[1] * frames, [1, frames - 1], [frames - 1, 1]]
