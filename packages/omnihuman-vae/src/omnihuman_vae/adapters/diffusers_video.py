"""Other public video VAEs as :class:`VideoVAE`, run by diffusers (extra ``diffusers``).

What the contract promises beyond shapes depends on the model, see :data:`CLASSES`.
"""

from __future__ import annotations

import inspect
import json
import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn

from omnihuman_core.contracts.latents import LatentSpec
from omnihuman_vae.distribution import DiagonalGaussian


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What the adapter has to know of a class beside its configuration.

    Attributes:
        model: The public model.
        streams_exactly: Whether its feature caches let it decode a stream exactly.
        odd_latents: It decodes odd numbers of latent frames only.
        one_sample: It takes one sample at a time.
        unmet: Why the model cannot keep the contract's causality; empty where it does.
    """

    model: str
    streams_exactly: bool = False
    odd_latents: bool = False
    one_sample: bool = False
    unmet: str = ""


CLASSES = {
    "AutoencoderKLHunyuanVideo15": Traits(model="HunyuanVideo-1.5", one_sample=True),
    "AutoencoderKLWan": Traits(model="Wan 2.2 5B", streams_exactly=True),
    "AutoencoderKLLTXVideo": Traits(model="LTX-Video", unmet="the published decoders look ahead in time"),
    "AutoencoderKLCogVideoX": Traits(
        model="CogVideoX", odd_latents=True, unmet="group norms see several latent frames at once"
    ),
    "AutoencoderKLMochi": Traits(model="Mochi 1"),
}

CONTEXT_FRAMES = 4
"""Latent frames decoded again before each piece of a stream by models without exact streaming."""

_TURN = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class DiffusersVAEConfig:
    """Which diffusers class, built how.

    Attributes:
        class_name: One of :data:`CLASSES`.
        arguments: Arguments of its constructor as a JSON object: ``config.json`` of the public folder without the keys
            that start with an underscore.
    """

    class_name: str
    arguments: str

    def __post_init__(self) -> None:
        if self.class_name not in CLASSES:
            raise ValueError(
                f"DiffusersVAEConfig.class_name must be one of {', '.join(CLASSES)}, got {self.class_name!r}"
            )
        try:
            arguments = json.loads(self.arguments)
        except json.JSONDecodeError as error:
            raise ValueError(f"DiffusersVAEConfig.arguments is not JSON ({error})") from None
        if not isinstance(arguments, dict):
            raise ValueError("DiffusersVAEConfig.arguments must be a JSON object")


class DiffusersVideoVAE(nn.Module):
    """Implements :class:`omnihuman_core.contracts.vae.VideoVAE` with a VAE of diffusers.

    Attributes:
        config: Class and arguments.
        vae: The module of diffusers.
    """

    config_class: ClassVar[type[DiffusersVAEConfig]] = DiffusersVAEConfig

    def __init__(self, config: DiffusersVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.traits = CLASSES[config.class_name]
        self.vae: Any = _build(config)
        self.vae.use_slicing = self.traits.one_sample
        self.latent_spec = _latent_spec(self.vae)

    @property
    def streaming_tolerance(self) -> float | None:
        """A stream is exact where the model has feature caches."""
        return 1e-5 if self.traits.streams_exactly else None

    def encode(self, video: Tensor, *, generator: Generator | None = None) -> Tensor:
        """Encode ``(B, 3, T, H, W)`` in [-1, 1] to final latents ``(B, C, t, h, w)``; see the contract."""
        if video.ndim != 5 or video.shape[1] != 3:
            raise ValueError(f"video must be (B, 3, T, H, W), got {tuple(video.shape)}")
        self.latent_spec.latent_shape(*video.shape[2:])
        with self._turn:
            posterior = self.vae.encode(video.to(self._dtype)).latent_dist
        gaussian = DiagonalGaussian(mean=posterior.mean, logvar=posterior.logvar)
        latents = gaussian.mean if generator is None else gaussian.sample(generator)
        mean, std = self._statistics(latents.device)
        return ((latents.float() - mean) / std).to(video.dtype)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode final latents ``(B, C, t, h, w)`` to video ``(B, 3, T, H, W)``; see the contract."""
        frames = latents.shape[2] if latents.ndim == 5 else 0
        z = self._denormalize(latents)
        if self.traits.odd_latents and frames % 2 == 0:
            z = torch.cat([z, z[:, :, -1:]], dim=2)
        arguments = {}
        if self.vae.config.get("timestep_conditioning"):
            # The noise level of the latents, which are clean.
            arguments["temb"] = torch.zeros(z.shape[0], device=z.device, dtype=z.dtype)
        with self._turn:
            video: Tensor = self.vae.decode(z, **arguments).sample
        return video[:, :, : self.latent_spec.pixel_frames(frames)].to(latents.dtype)

    def decode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Decode consecutive pieces of one clip, ``(B, C, t_i, h, w)`` each, at constant memory; see the contract.

        Models without exact streaming decode each piece behind the last :data:`CONTEXT_FRAMES` latent frames before it.
        """
        return self._stream_with_caches(chunks) if self.traits.streams_exactly else self._stream_in_context(chunks)

    def _stream_in_context(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        context: Tensor | None = None
        for chunk in chunks:
            latents = chunk if context is None else torch.cat([context, chunk], dim=2)
            new = chunk.shape[2] * self.latent_spec.temporal_stride
            video = self.decode(latents)
            yield video if context is None else video[:, :, -new:]
            context = latents[:, :, -CONTEXT_FRAMES:].clone()

    def _stream_with_caches(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, unpatchify

        convolutions = sum(isinstance(module, WanCausalConv3d) for module in self.vae.decoder.modules())
        # Owned by this stream, so that several can run side by side.
        cache: list[Any] = [None] * convolutions
        starts = True
        for chunk in chunks:
            pieces = []
            for z in self.vae.post_quant_conv(self._denormalize(chunk)).split(1, dim=2):
                pieces.append(self.vae.decoder(z, feat_cache=cache, feat_idx=[0], first_chunk=starts))
                starts = False
            video = torch.cat(pieces, dim=2)
            if self.vae.config.patch_size is not None:
                video = unpatchify(video, patch_size=self.vae.config.patch_size)
            yield video.clamp(-1, 1).to(chunk.dtype)

    @property
    def _turn(self) -> AbstractContextManager[Any]:
        # Models with feature caches keep those of a call in the module: threads would read each other's.
        return _TURN if self.traits.streams_exactly else nullcontext()

    @property
    def _dtype(self) -> torch.dtype:
        dtype: torch.dtype = next(self.vae.parameters()).dtype
        return dtype

    def _statistics(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation ``(C, 1, 1, 1)`` that normalise the latents, as the model's pipeline does."""
        config, channels = self.vae.config, self.latent_spec.channels
        # Buffers, saved with the weights, or values of the configuration.
        values = dict(self.vae.named_buffers(recurse=False))
        mean, std = (values.get(name, config.get(name)) for name in ("latents_mean", "latents_std"))
        mean = torch.as_tensor([0.0] * channels if mean is None else mean, device=device)
        std = torch.as_tensor([1.0] * channels if std is None else std, device=device)
        std = std.float() / (config.get("scaling_factor") or 1.0)
        return mean.float().view(-1, 1, 1, 1), std.view(-1, 1, 1, 1)

    def _denormalize(self, latents: Tensor) -> Tensor:
        channels = self.latent_spec.channels
        if latents.ndim != 5 or latents.shape[1] != channels or min(latents.shape[2:]) < 1:
            raise ValueError(
                f"latents must be (B, {channels}, t, h, w) with at least one position, got {tuple(latents.shape)}"
            )
        mean, std = self._statistics(latents.device)
        return (latents.float() * std + mean).to(self._dtype)


def _build(config: DiffusersVAEConfig) -> Any:
    try:
        import diffusers
    except ImportError:
        raise ValueError(
            "the video_vae plugin 'diffusers' needs diffusers: pip install 'omnihuman-vae[diffusers]'"
        ) from None
    made_by = getattr(diffusers, config.class_name, None)
    if made_by is None:
        raise ValueError(f"diffusers {diffusers.__version__} has no {config.class_name}; install a newer release")
    arguments = json.loads(config.arguments)
    unknown = sorted(set(arguments) - set(inspect.signature(made_by.__init__).parameters))
    if unknown:
        raise ValueError(
            f"DiffusersVAEConfig.arguments: {config.class_name} of diffusers {diffusers.__version__} does not know "
            f"{unknown[0]!r}; install a newer release"
        )
    return made_by(**arguments)


def _latent_spec(vae: Any) -> LatentSpec:
    config = vae.config
    # Attributes of the module come first: they are worked out where the configuration leaves a ratio open.
    sizes = {**config, **{key: value for key, value in vars(vae).items() if key.endswith("compression_ratio")}}
    temporal = sizes.get("temporal_compression_ratio") or sizes["scale_factor_temporal"]
    # CogVideoX names no ratio: each step between its levels halves the picture.
    spatial = sizes.get("spatial_compression_ratio") or 2 ** (len(sizes.get("block_out_channels", ())) - 1)
    return LatentSpec(
        channels=sizes.get("z_dim") or sizes["latent_channels"],
        temporal_stride=int(temporal),
        spatial_stride=int(spatial),
    )
