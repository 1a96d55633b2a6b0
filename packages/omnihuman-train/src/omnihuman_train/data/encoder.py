"""What encodes one packed clip: VAE, audio and text extractor, each of a model directory or a plugin's preset."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save
from torch import Tensor, nn

from omnihuman_core.config import read_toml, to_toml
from omnihuman_core.contracts import NUM_KEYPOINTS, LatentSpec, TextFeatures
from omnihuman_core.model_dir import CONFIG, load_component, read_index
from omnihuman_train.data import media
from omnihuman_train.data.build import Made
from omnihuman_train.data.clips import from_bytes
from omnihuman_train.data.members import load_tensors
from omnihuman_train.data.regions import regions
from omnihuman_train.data.shard_set import ShardSet
from omnihuman_train.data.shards import CLIPS, INDEX, BrokenSampleError
from omnihuman_train.model import build as build_plugin

# Key of the recipe: the VAE as it is exported with a model, in bf16.
VAE_DIGEST = "vae_bf16_sha256"


@dataclass(frozen=True, kw_only=True)
class EncodeConfig:
    """What clips are encoded with: each a model directory, or ``plugin:preset``.

    Attributes:
        vae: Video VAE.
        audio: Audio extractor.
        text: Text extractor.
        caption: Which caption is encoded; the other one where a clip has it alone.
        precision: ``bf16`` runs the VAE under autocast.
        device: Torch device.
    """

    vae: str
    audio: str
    text: str
    caption: Literal["long", "short"] = "long"
    precision: Literal["bf16", "fp32"] = "fp32"
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name, choices in (("caption", ("long", "short")), ("precision", ("bf16", "fp32"))):
            if getattr(self, name) not in choices:
                raise ValueError(f"--{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")


@dataclass(frozen=True, kw_only=True)
class StateMaker:
    """Opens an :class:`Encoder` in whatever process the work is done."""

    source: Path
    config: EncodeConfig

    def __call__(self) -> Encoder:
        """Load the components."""
        return Encoder(ShardSet(self.source), self.config)


class Encoder:
    """Makes the encoded sample of a clip.

    Args:
        clips: A packed data set.
        config: What to encode with.

    Raises:
        ValueError: a component cannot be loaded, or the data set holds no clips.
    """

    def __init__(self, clips: ShardSet, config: EncodeConfig) -> None:
        if clips.index.kind != CLIPS:
            raise ValueError(f"{clips.folder}: holds {clips.index.kind}, not clips; only those can be encoded")
        self.clips, self.config = clips, config
        self.vae = open_component("vae", config.vae, config.device)
        self.audio = open_component("audio_extractor", config.audio, config.device)
        self.text = open_component("text_extractor", config.text, config.device)
        self._number = {record.key: number for number, record in enumerate(clips.records)}

    @property
    def latent_spec(self) -> LatentSpec:
        """Shape of the latents."""
        spec: LatentSpec = self.vae.latent_spec
        return spec

    @cached_property
    def text_length(self) -> int:
        """Tokens ``S`` that the text extractor gives for one text, padding included."""
        features: TextFeatures = self.text.extract([""])
        return features.mask.shape[1]

    def recipe(self) -> dict[str, Any]:
        """What decides the bytes of the states; other weights are another recipe."""
        config = {name: value for name, value in asdict(self.config).items() if name != "device"}
        parts = {"vae": self.vae, "audio": self.audio, "text": self.text}
        return {
            "clips": hashlib.sha256((self.clips.folder / INDEX).read_bytes()).hexdigest(),
            **config,
            **{f"{name}_sha256": fingerprint(part) for name, part in parts.items()},
            "latent_spec": asdict(self.latent_spec),
            "text_length": self.text_length,
            VAE_DIGEST: fingerprint(self.vae, torch.bfloat16),
            # What a model that trains on the states needs in order to be used.
            "extractors": {
                name: describe(f"{name}_extractor", getattr(self.config, name), getattr(self, name))
                for name in ("audio", "text")
            },
        }

    @torch.no_grad()
    def __call__(self, job: str) -> Made:
        """Encode the clip with the key ``job``.

        Raises:
            BrokenSampleError: a member of the clip is missing or damaged.
        """
        number = self._number[job]
        record, members = self.clips.records[number], self.clips.members(number)
        video = torch.empty(*record.bucket, 3, dtype=torch.uint8)
        media.decode_video(self.clips.read(number, "mp4", verify=True), video)
        known = {}
        if "pose.safetensors" in members:
            known = load_tensors(self.clips.read(number, "pose.safetensors", verify=True), f"{job}.pose.safetensors")
        notes = _notes(self.clips.read(number, "json", verify=True), job)
        reference = self._reference(number, video, has_picture="reference.png" in members)
        encoded = {
            "latents.safetensors": {
                "latents": self._latents(video)[0],
                "reference": self._latents(reference)[0],
                **regions(known, self.latent_spec, *record.bucket),
            },
            "audio.safetensors": {"states": self._audio(number, has_sound="flac" in members)},
            "pose.safetensors": {
                "keypoints": known.get("keypoints", torch.zeros(record.frames, NUM_KEYPOINTS, 3)).half(),
                "mouth_open": known.get("mouth_open", torch.zeros(record.frames)).float(),
            },
        }
        encoded["text.safetensors"] = self._text(_caption(notes, self.config.caption))
        _check_frames(encoded["pose.safetensors"], record.frames, job)
        files = {name: save({key: value.cpu().contiguous() for key, value in t.items()}) for name, t in encoded.items()}
        return Made(record=record, members={**files, "json": self.clips.read(number, "json")})

    def _latents(self, video: Tensor) -> Tensor:
        pixels = from_bytes(video.permute(3, 0, 1, 2)[None].to(self.config.device))  # (1, 3, T, H, W)
        kind = torch.device(self.config.device).type
        with torch.autocast(kind, torch.bfloat16, enabled=self.config.precision == "bf16"):
            latents: Tensor = self.vae.encode(pixels)
        return latents.bfloat16()

    def _reference(self, number: int, video: Tensor, *, has_picture: bool) -> Tensor:
        """The reference picture ``(1, H, W, 3)``: the one that came along, or a frame that the key draws."""
        record = self.clips.records[number]
        if has_picture:
            data = self.clips.read(number, "reference.png", verify=True)
            return media.decode_picture(data, height=record.height, width=record.width)[None]
        return video[int(record.key[:8], 16) % len(video)][None]

    def _audio(self, number: int, *, has_sound: bool) -> Tensor:
        record = self.clips.records[number]
        samples = media.sound_samples(record.frames, record.fps)
        waveform = torch.zeros(samples)
        if has_sound:
            waveform = media.decode_sound(self.clips.read(number, "flac", verify=True), samples=samples)
        features = self.audio.extract(waveform[None].to(self.config.device))
        states: Tensor = self.audio.align(features, fps=record.fps, num_frames=record.frames)[0]
        return states.half()  # (T, layers, D)

    def _text(self, caption: str) -> dict[str, Tensor]:
        features: TextFeatures = self.text.extract([caption])
        values, mask = features.values[0], features.mask[0]
        length = int(mask.nonzero()[-1]) + 1 if mask.any() else 1
        # States behind the end may mean something to a backbone that takes no mask: only zeros are left out.
        if values[length:].any():
            length = len(values)
        trimmed = {"values": values[:length], "mask": mask[:length]}
        return trimmed if features.pooled is None else {**trimmed, "pooled": features.pooled[0]}


def open_component(component: str, choice: str, device: str) -> Any:
    """A component of a model directory, or a plugin with a preset.

    Args:
        component: As in a model directory: ``vae``, ``audio_extractor``, ``text_extractor``.
        choice: Model directory, or ``plugin:preset``.
        device: Where its weights go.

    Raises:
        ValueError: neither, or it cannot be loaded.
    """
    flag = component.removesuffix("_extractor")
    if Path(choice).is_dir():
        return load_component(choice, component, device=device)
    name, colon, preset = choice.partition(":")
    if not colon:
        raise ValueError(
            f"--model or --{flag} {choice}: no such model directory; give one, or --{flag} PLUGIN:PRESET "
            f"(`omnihuman-infer info {choice}` says where a shipped model lies)"
        )
    kind = "video_vae" if component == "vae" else "feature_extractor"
    # A fresh VAE is of use for trials alone, but it is the same one in every process.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = build_plugin(kind, name, preset)
    return made.to(device).eval() if isinstance(made, nn.Module) else made


def describe(component: str, choice: str, made: Any) -> dict[str, Any]:
    """Plugin and configuration of what :func:`open_component` opened; files are named as inside their folder."""
    if not Path(choice).is_dir():
        return {"plugin": choice.partition(":")[0], "config": tomllib.loads(to_toml(made.config))}
    plugin_name = read_index(choice).components[component].plugin
    return {"plugin": plugin_name, "config": read_toml(Path(choice) / component / CONFIG)}


def fingerprint(component: Any, dtype: torch.dtype | None = None) -> str:
    """sha256 of a component's configuration and weights, of floating ones in ``dtype`` if there is one."""
    digest = hashlib.sha256(to_toml(component.config).encode())
    if isinstance(component, nn.Module):
        for name, value in sorted(component.state_dict().items()):
            if dtype is not None and value.is_floating_point():
                value = value.to(dtype)
            digest.update(
                name.encode() + value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            )
    return digest.hexdigest()


def _check_frames(pose: Mapping[str, Tensor], frames: int, key: str) -> None:
    for name, shape in (("keypoints", (frames, NUM_KEYPOINTS, 3)), ("mouth_open", (frames,))):
        if tuple(pose[name].shape) != shape:
            raise BrokenSampleError(f"{key}.pose.safetensors: {name} is {tuple(pose[name].shape)}, not {shape}")


def _notes(data: bytes, key: str) -> dict[str, Any]:
    try:
        notes = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BrokenSampleError(f"{key}.json: no JSON ({error})") from error
    if not isinstance(notes, dict) or not isinstance(notes.get("captions", {}), dict):
        raise BrokenSampleError(f"{key}.json: must be an object with an object 'captions'")
    return notes


def _caption(notes: Mapping[str, Any], which: str) -> str:
    captions = notes.get("captions", {})
    return str(captions.get(which) or captions.get("long") or captions.get("short") or "")
