"""What a user asks for: one frozen record, used by Python and by the command line.

This module and the checks in it import neither torch nor a media library, so that a wrong request is answered at once.
"""

from __future__ import annotations

import re
import stat
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from omnihuman_infer.fields import (
    PathField,
    check_choice,
    check_integer,
    check_number,
    check_text,
    is_number,
    path_text,
)
from omnihuman_infer.fields import RequestError as RequestError

Schedule = Literal["constant", "linear", "cosine"]
NegativeAudio = Literal["auto", "null", "silence"]

MAX_SEED = 2**63 - 1
MAX_STEPS = 1000
MAX_GUIDANCE_SCALE = 100.0
MAX_PROMPT_CHARACTERS = 4000
MAX_ASPECT = 100.0

# Fields that hold any text.
TEXTS = ("prompt", "captioner_model", "captioner_key", "sampler")


@dataclass(frozen=True, kw_only=True)
class GenerateRequest:
    """One video to generate.

    ``None`` stands for "as the model directory says" unless stated otherwise.

    Attributes:
        image: Picture of the person (PNG, JPEG or WEBP). Without one the prompt says who is shown, and the model gets
            the null of its reference, as for samples that drop it in training.
        audio: Sound that drives the person; any file with a sound track. The video is as long as the sound.
        pose: Keypoint file, or folder of them, that drives the person. Without ``audio`` the video is as long as the
            poses.
        prompt: Text that describes the video; an empty one is "no text". None asks the captioner, and without one takes
            the model's default prompt.
        captioner: Who describes the picture where there is no prompt: a local directory of an image-text-to-text model,
            or the base URL of a server with the OpenAI chat interface, which is then sent the picture.
        captioner_model: Name of a model of that server.
        captioner_key: Environment variable that holds the server's key; None for a server without one.
        aspect: Width over height of a video without a picture; None is square. With one, the video has the picture's.
        out: The mp4 to write; an existing file is replaced once the new one is complete.
        seed: Same seed, same request, same model, same machine: same file.
        seconds: Length of a clip without audio and pose; with them, the most that is generated of them.
        num_steps: Denoising steps, 1 to 1000.
        guidance_scale: Scale of classifier-free guidance, 0 to 100; 1 turns it off (paper: 6.5).
        guidance_schedule: How the scale falls over the steps.
        negative_audio: What the audio is guided away from: the null condition, or an encoded silence. ``auto`` takes
            silence when a speaker region is given, since outside the region the prediction is the negative one.
        speaker_region: ``(x0, y0, x1, y1)`` in fractions of the picture, 0 to 1, origin at the top left: only inside it
            do audio and text guide the video.
        model: Name of a shipped model, or a model directory; None takes the loaded one, or ``tiny``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``; None takes the loaded model's, or ``auto``.
        sampler: Name of a sampler.
        segment_frames: Video frames of one segment.
        max_seconds: Longest audio or pose that is accepted.
        allow_silence: Accept a silent recording.
    """

    image: PathField[Path | None] = PathField(None)
    audio: PathField[Path | None] = PathField(None)
    pose: PathField[Path | None] = PathField(None)
    prompt: str | None = None
    captioner: str | None = None
    captioner_model: str | None = None
    captioner_key: str | None = None
    aspect: float | None = None
    out: PathField[Path] = PathField(Path("out.mp4"))
    seed: int = 0
    seconds: float | None = None
    num_steps: int | None = None
    guidance_scale: float | None = None
    guidance_schedule: Schedule | None = None
    negative_audio: NegativeAudio = "auto"
    speaker_region: tuple[float, float, float, float] | None = None
    model: str | None = None
    device: str | None = None
    sampler: str | None = None
    segment_frames: int | None = None
    max_seconds: float = 600.0
    allow_silence: bool = False

    def __post_init__(self) -> None:
        for name in ("model", "captioner"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, path_text(name, getattr(self, name)))
        if self.device is not None:
            object.__setattr__(self, "device", str(self.device))

    def validate(self, *, writes: bool = True) -> None:
        """Check every field by itself; :func:`omnihuman_infer.inputs.read_inputs` checks the contents of the files.

        Args:
            writes: Check ``out``, too: a file is going to be written.

        Raises:
            RequestError: one line that names the field and the fix.
        """
        self.check_values()
        if self.image is None and not self.prompt:
            raise RequestError("image: nothing says what the video shows; give --image or --prompt")
        if self.image is not None and self.aspect is not None:
            raise RequestError("aspect: the video has that of its picture; leave --aspect or --image out")
        if self.audio is None and self.pose is None and self.seconds is None:
            raise RequestError("audio: nothing says how long the video is; give --audio, --pose or --seconds")
        for name, path in (("image", self.image), ("audio", self.audio), ("pose", self.pose)):
            if path is not None:
                _check_file(name, path)
        if writes:
            self._check_out()

    def check_values(self) -> None:
        """Check the fields that name no file.

        Raises:
            RequestError: one line that names the field and the fix.
        """
        self._check_numbers()
        self._check_choices()

    def _check_numbers(self) -> None:
        check_integer("seed", self.seed, 0, MAX_SEED)
        check_integer("num_steps", self.num_steps, 1, MAX_STEPS)
        check_integer("segment_frames", self.segment_frames, 1, 100_000)
        check_number("guidance_scale", self.guidance_scale, 0.0, MAX_GUIDANCE_SCALE)
        check_number("aspect", self.aspect, 1 / MAX_ASPECT, MAX_ASPECT)
        check_number("max_seconds", self.max_seconds, 0.04, 86_400.0)
        # A Python caller may hand in anything.
        given: dict[str, float | None] = {"seed": self.seed, "max_seconds": self.max_seconds}
        for name, value in given.items():
            if value is None:
                raise RequestError(f"{name}: must be a number; leave it out for the default")
        check_number("seconds", self.seconds, 0.04, self.max_seconds)
        if self.speaker_region is None:
            return
        given_region: object = self.speaker_region
        region: tuple[float, ...] = tuple(given_region) if isinstance(given_region, Iterable) else ()
        if len(region) != 4 or not all(is_number(v) and 0.0 <= v <= 1.0 for v in region):
            raise RequestError(
                "speaker_region: must be x0,y0,x1,y1 in fractions of the picture between 0 and 1, "
                f"got {','.join(map(str, region)) or given_region}"
            )
        if not (region[0] < region[2] and region[1] < region[3]):
            raise RequestError(
                "speaker_region: x0 must be less than x1 and y0 less than y1, "
                f"got {','.join(f'{v:g}' for v in region)}; the order is left,top,right,bottom"
            )
        if self.audio is None:
            raise RequestError("speaker_region: needs a voice to restrict; give --audio or leave the region out")

    def _check_choices(self) -> None:
        for name in TEXTS:
            check_text(name, getattr(self, name))
        silence: object = self.allow_silence
        if not isinstance(silence, bool):
            raise RequestError(f"allow_silence: must be true or false, got {silence!r}")
        if self.guidance_schedule is not None:
            check_choice("guidance_schedule", self.guidance_schedule, get_args(Schedule))
        check_choice("negative_audio", self.negative_audio, get_args(NegativeAudio))
        if self.prompt is not None and len(self.prompt) > MAX_PROMPT_CHARACTERS:
            raise RequestError(
                f"prompt: has {len(self.prompt)} characters, the limit is {MAX_PROMPT_CHARACTERS}; shorten it"
            )
        self._check_captioner()
        if self.device is not None and not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", self.device):
            raise RequestError(f"device: must be auto, cpu, cuda, cuda:N or mps, got {self.device!r}")

    def _check_captioner(self) -> None:
        if self.captioner is None or is_url(self.captioner):
            if (self.captioner is None) != (self.captioner_model is None):
                raise RequestError(
                    "captioner_model: names a model of the server at --captioner http://host:port/v1; give both or none"
                )
            if self.captioner_key is not None and self.captioner is None:
                raise RequestError("captioner_key: is that of a server; give --captioner http://host:port/v1 too")
            return
        if self.captioner_model is not None or self.captioner_key is not None:
            raise RequestError(
                f"captioner: {self.captioner} is no http:// or https:// address, and only a server has a model name or "
                "a key; leave them out"
            )
        if not Path(self.captioner).is_dir():
            raise RequestError(
                f"captioner: {self.captioner} is no directory; give that of a model, or http://host:port/v1 of a server"
            )

    def _check_out(self) -> None:
        out: Path | None = self.out
        if out is None:
            raise RequestError("out: must name the .mp4 to write")
        if out.suffix.lower() != ".mp4":
            raise RequestError(f"out: must end in .mp4, got {out}")
        try:
            folder_there = stat.S_ISDIR(out.stat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            folder_there = False
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise RequestError(f"out: cannot be named {out} ({reason}); choose another name") from None
        if folder_there:
            raise RequestError(f"out: {out} is a folder; name a file inside it")
        for name, path in (("image", self.image), ("audio", self.audio), ("pose", self.pose)):
            if path is not None and out.exists() and out.samefile(path):
                raise RequestError(f"out: is the same file as {name}; choose another name")
        folder = next(parent for parent in out.absolute().parents if parent.exists())
        if not folder.is_dir():
            raise RequestError(f"out: {folder} is not a folder; choose another place")
        try:
            # Permission bits do not tell (root, read-only mounts): only a file that was written tells.
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise RequestError(
                f"out: cannot write into {folder} ({error.strerror}); choose a folder you may write to"
            ) from None


def parse_region(text: str) -> tuple[float, float, float, float]:
    """``"x0,y0,x1,y1"`` to numbers.

    Raises:
        RequestError: not four numbers.
    """
    try:
        x0, y0, x1, y1 = (float(part) for part in text.split(","))
    except ValueError:
        raise RequestError(
            f"speaker_region: must be four numbers x0,y0,x1,y1 between 0 and 1, such as 0,0,0.5,1, got {text!r}"
        ) from None
    return x0, y0, x1, y1


def parse_aspect(text: str) -> float:
    """``"W:H"``, or the ratio itself, to a number.

    Raises:
        RequestError: neither.
    """
    width, _, height = text.partition(":")
    try:
        return float(width) / float(height or 1)
    except (ValueError, ZeroDivisionError):
        raise RequestError(f"aspect: must be W:H, such as 3:5, or a number, got {text!r}") from None


def is_url(captioner: str) -> bool:
    """Whether a captioner is a server's address and not a directory."""
    return captioner.startswith(("http://", "https://"))


def _check_file(name: str, path: Path) -> None:
    try:
        there = path.exists()
    except OSError as error:
        raise RequestError(f"{name}: cannot look for {path} ({error.strerror}); check the path") from None
    if not there:
        raise RequestError(f"{name}: {path} does not exist; check the path")
    if name == "pose" and path.is_dir():
        # Pose estimators write one file a frame.
        return
    if not path.is_file():
        raise RequestError(f"{name}: {path} is not a regular file; name a file")
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise RequestError(f"{name}: cannot read {path} ({error.strerror}); check its permissions") from None
    if empty:
        raise RequestError(f"{name}: {path} is empty; give another file")
