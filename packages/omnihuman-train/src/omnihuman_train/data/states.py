"""Everything of a packed clip that does not change while the backbone trains, computed once: latents, sound, text.

Members of an encoded sample, all of them in every sample:

* ``latents.safetensors``: ``latents`` (C, t, h, w) and ``reference`` (C, 1, h, w) bf16, ``mouth_region`` and
  ``hand_region`` (t, h, w) bool;
* ``audio.safetensors``: ``states`` (T, layers, D) float16, at the centre of each frame;
* ``text.safetensors``: ``values``, ``mask`` and ``pooled`` where the extractor gives one, without trailing padding;
* ``pose.safetensors``: ``keypoints`` (T, 133, 3) float16, ``mouth_open`` (T,), zeros where unknown;
* ``json``: the notes of the clip.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from omnihuman_core.config import to_toml
from omnihuman_core.contracts import LatentSpec, TextFeatures
from omnihuman_core.model_dir import load_component
from omnihuman_train.data import media
from omnihuman_train.data.build import BuildReport, Made, build
from omnihuman_train.data.clips import from_bytes
from omnihuman_train.data.latents import hand_boxes, latent_region
from omnihuman_train.data.shard_set import ShardSet
from omnihuman_train.data.shards import CLIPS, INDEX, STATES, BrokenSampleError
from omnihuman_train.model import build as build_plugin

# COCO-WholeBody: lips among the 68 points of the face; the two hands.
LIPS, HANDS = slice(71, 91), (slice(91, 112), slice(112, 133))
# A box round lips that were found, grown by this much of its size on each side.
_LIP_GROWTH = 0.35
_MIN_SCORE = 0.3


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
                "keypoints": known.get("keypoints", torch.zeros(record.frames, 133, 3)).half(),
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


def encode_states(
    clips: Path,
    out: Path,
    config: EncodeConfig,
    *,
    rank: int = 0,
    world: int = 1,
    workers: int = 1,
    progress: Callable[[int], None],
    total: Callable[[int], None],
) -> BuildReport:
    """Encode a packed data set; see :func:`omnihuman_train.data.build.build`.

    Args:
        clips: The packed data set.
        out: Folder of the encoded one.
        config: What to encode with.
        rank: Number of this process among those that share the work.
        world: How many there are.
        workers: Processes to start here.
        progress: Called with the number of samples that became available.
        total: Called with the number of samples in all.

    Raises:
        ValueError: components do not load or do not fit the clips, or as ``build``.
    """
    if clips.resolve() == out.resolve():
        raise ValueError(f"--out {out}: is the folder of the clips; choose another one")
    opener = StateMaker(source=clips, config=config)
    encoder = opener()
    data = encoder.clips
    for bucket in sorted({record.bucket for record in data.records}):
        try:
            encoder.latent_spec.latent_shape(*bucket)
        except ValueError as error:
            raise ValueError(f"{clips}: the VAE takes no clips of {bucket} ({error}); pack other sizes") from error
    shards: dict[int, list[str]] = {}
    for record, shard in zip(data.records, data.shard_of, strict=True):
        shards.setdefault(shard, []).append(record.key)
    total(len(data))
    return build(
        out,
        kind=STATES,
        recipe=encoder.recipe(),
        jobs=[shards[number] for number in sorted(shards)],
        open_maker=(lambda: encoder) if workers == 1 else opener,
        rank=rank,
        world=world,
        workers=workers,
        progress=progress,
    )


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
        raise ValueError(f"--{flag} {choice}: no such model directory; give one, or PLUGIN:PRESET")
    kind = "video_vae" if component == "vae" else "feature_extractor"
    # A fresh VAE is of use for trials alone, but it is the same one in every process.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = build_plugin(kind, name, preset)
    return made.to(device).eval() if isinstance(made, nn.Module) else made


def fingerprint(component: Any) -> str:
    """sha256 of a component's configuration and weights."""
    digest = hashlib.sha256(to_toml(component.config).encode())
    if isinstance(component, nn.Module):
        for name, value in sorted(component.state_dict().items()):
            digest.update(
                name.encode() + value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            )
    return digest.hexdigest()


def load_tensors(data: bytes, name: str) -> dict[str, Tensor]:
    """Tensors of a safetensors member.

    Raises:
        BrokenSampleError: it is none.
    """
    try:
        return load(data)
    except SafetensorError as error:
        raise BrokenSampleError(f"{name}: damaged ({error})") from error


def regions(known: Mapping[str, Tensor], spec: LatentSpec, frames: int, height: int, width: int) -> dict[str, Tensor]:
    """Latent positions that show mouths and hands, ``(t, h, w)`` bool each; none where nothing is known of them.

    Args:
        known: ``mouth_box`` (T, P, 4) and ``hands`` (T, P, 2, 3) where they are known exactly, else ``keypoints``.
        spec: Latent arithmetic.
        frames: Pixel frames.
        height: Pixels.
        width: Pixels.
    """
    mouths, hands = boxes(known, frames)
    return {
        "mouth_region": latent_region(mouths, spec, height, width),
        "hand_region": latent_region(hands, spec, height, width),
    }


def boxes(known: Mapping[str, Tensor], frames: int) -> tuple[Tensor, Tensor]:
    """Boxes ``(T, P, 4)`` in [0, 1] round mouths and round hands; without area where nothing is known."""
    keypoints = known.get("keypoints", torch.zeros(frames, 133, 3))
    mouths = known["mouth_box"] if "mouth_box" in known else box_round([keypoints[:, LIPS]], _LIP_GROWTH)
    hands = hand_boxes(known["hands"]) if "hands" in known else box_round([keypoints[:, part] for part in HANDS], 0.1)
    return mouths.float(), hands.float()


def box_round(groups: Iterable[Tensor], growth: float) -> Tensor:
    """Boxes ``(T, groups, 4)`` in [0, 1] round the visible points of each group ``(T, n, 3)``; no area without any."""
    found = []
    for points in groups:
        seen = points[..., 2:] >= _MIN_SCORE
        low = torch.where(seen, points[..., :2], torch.inf).amin(1)  # (T, 2)
        high = torch.where(seen, points[..., :2], -torch.inf).amax(1)
        margin = (high - low) * growth
        box = torch.cat([low - margin, high + margin], -1)
        found.append(torch.where(seen.any(1), box, torch.zeros(())))
    return torch.stack(found, 1).clamp(0, 1)


def _check_frames(pose: Mapping[str, Tensor], frames: int, key: str) -> None:
    for name, shape in (("keypoints", (frames, 133, 3)), ("mouth_open", (frames,))):
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
