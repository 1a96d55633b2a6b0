"""The command line: ``omnihuman-infer generate``, ``info``, ``convert``, ``doctor`` and ``pose``.

Nothing heavy is imported before arguments, files and model names are checked: a wrong request ends in one line and exit
code 2 at once.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, get_args

from omnihuman_infer.__about__ import __version__
from omnihuman_infer.request import GenerateRequest, NegativeAudio, RequestError, Schedule, parse_aspect, parse_region
from omnihuman_infer.terminal import notes, progress, terminate_cleanly

if TYPE_CHECKING:
    from omnihuman_infer.preparation import Clip

FAULTS, BAD_INPUT, INTERRUPTED, NO_READER = 1, 2, 130, 141
DTYPES = ("float32", "bfloat16", "float16")

# A full disk, a spent quota, a file larger than this user may write.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0 on success, 1 where ``doctor`` finds a fault, 2 on bad input, 130 after Ctrl-C, 141 where nobody reads what is
        printed any more, as after ``| head``.
    """
    try:
        arguments, unknown = _parser().parse_known_args(argv)
        if unknown:
            command = f"omnihuman-infer {arguments.command}"
            raise RequestError(f"unrecognized arguments: {' '.join(unknown)}; see {command} --help")
        with warnings.catch_warnings():
            # On metadata, of which one entry counts here, and on sizes, which are answered for.
            warnings.filterwarnings("ignore", module=r"PIL\.")
            code = int(arguments.run(arguments))
        sys.stdout.flush()
        return code
    except RequestError as error:
        print(f"omnihuman-infer: error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("omnihuman-infer: interrupted, nothing was written", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Python writes what is left when it ends, and would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NO_READER
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        print(f"omnihuman-infer: error: {error.strerror}, nothing was written; make room for it", file=sys.stderr)
        return BAD_INPUT


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, without the usage."""
        raise RequestError(f"{message}; see {self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="omnihuman-infer", description="A picture or a prompt and a voice in, a talking video out.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    _add_generate(commands.add_parser("generate", help="generate one video"))
    info = commands.add_parser("info", help="show what a model directory holds")
    info.add_argument("model", help="name of a shipped model, or a model directory")
    info.set_defaults(run=_info)
    _add_convert(commands.add_parser("convert", help="make a model directory of published weights, or add to one"))
    doctor = commands.add_parser("doctor", help="show what a directory lacks and how this machine runs it")
    doctor.add_argument(
        "directory", nargs="?", metavar="tiny|DIR", help="shipped model, model directory or published weights"
    )
    doctor.set_defaults(run=_doctor)
    _add_pose(commands.add_parser("pose", help="find the keypoints of the person in a video"))
    return parser


def _add_generate(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--image", type=Path, metavar="P", help="picture of the person (PNG, JPEG, WEBP); without one, see --prompt")
    add("--audio", type=Path, metavar="W", help="sound that drives the person; any file with a sound track")
    add("--pose", type=Path, metavar="K", help="keypoint file, or folder of one for each frame, that drives the person")
    add("--prompt", metavar="TEXT", help="what the video shows; needed without --image")
    add("--captioner", metavar="DIR|URL", help="who describes the picture where there is no prompt: a model, a server")
    add("--captioner-model", metavar="NAME", help="model of the server at --captioner URL")
    add("--captioner-key", metavar="VARIABLE", help="environment variable with the key of that server")
    add("--aspect", metavar="W:H", help="width over height of a video without --image (default: 1:1)")
    add("--out", type=Path, default=Path("out.mp4"), metavar="O.mp4", help="video to write (default: %(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="same seed, same file (default: %(default)s)")
    add("--seconds", type=float, metavar="S", help="length without audio and pose; with them, the most that is made")
    add("--num-steps", type=int, metavar="N", help="denoising steps (default: the model's)")
    add("--guidance-scale", type=float, metavar="X", help="how strongly audio and text guide (default: the model's)")
    add("--guidance-schedule", choices=get_args(Schedule), help="how the scale falls (default: the model's)")
    add("--negative-audio", choices=get_args(NegativeAudio), default="auto", help="what audio is guided away from")
    add("--speaker-region", type=str, metavar="x0,y0,x1,y1", help="who speaks, in fractions of the picture (0 to 1)")
    add("--model", default="tiny", metavar="tiny|DIR", help="shipped model or model directory (default: %(default)s)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: %(default)s)")
    add("--dtype", choices=DTYPES, help="of the weights (default: bfloat16 on CUDA, float32 elsewhere)")
    add("--ops", default="eager", metavar="NAME", help="ops of the backbone, such as triton (default: %(default)s)")
    add("--attention", default="auto", metavar="NAME", help="its attention backend (default: the fastest measured)")
    add("--sampler", metavar="NAME", help="euler, heun or dpmpp_2m (default: the model's)")
    add("--segment-frames", type=int, metavar="N", help="video frames denoised together (default: the model's)")
    add("--max-seconds", type=float, default=600.0, metavar="S", help="longest input accepted (default: %(default)g)")
    add("--allow-silence", action="store_true", help="accept a silent recording")
    add("--quiet", action="store_true", help="print nothing but errors")
    parser.set_defaults(run=_generate)


def _add_convert(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", type=Path, metavar="SRC", help="published folder, whole pipeline, or weight file")
    add("--out", required=True, type=Path, metavar="DIR", help="model directory to write or to add to")
    add("--component", action="append", default=[], metavar="NAME", help="take this component only; may be repeated")
    add("--dtype", choices=DTYPES, help="precision of the weights (default: theirs)")
    add("--trust-pickle", action="store_true", help="read pickled weights, in a process of their own")
    parser.set_defaults(run=_convert)


def _add_pose(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("video", type=Path, metavar="VIDEO", help="video of one person, or of one best seen in the first frame")
    add("--out", required=True, type=Path, metavar="K.json", help="keypoint file to write (.json, .npz, .safetensors)")
    add("--preview", type=Path, metavar="P.mp4", help="copy of the video with the skeleton drawn on it")
    add("--retarget-to", type=Path, metavar="P", help="picture, or its keypoint file, of the person who shall move so")
    add("--models", required=True, type=Path, metavar="DIR", help="directory of the .onnx files")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where they run (default: %(default)s)")
    parser.set_defaults(run=_pose)


def _generate(arguments: argparse.Namespace) -> int:
    region, aspect = arguments.speaker_region, arguments.aspect
    request = GenerateRequest(
        image=arguments.image,
        audio=arguments.audio,
        pose=arguments.pose,
        prompt=arguments.prompt,
        captioner=arguments.captioner,
        captioner_model=arguments.captioner_model,
        captioner_key=arguments.captioner_key,
        aspect=None if aspect is None else parse_aspect(aspect),
        out=arguments.out,
        seed=arguments.seed,
        seconds=arguments.seconds,
        num_steps=arguments.num_steps,
        guidance_scale=arguments.guidance_scale,
        guidance_schedule=arguments.guidance_schedule,
        negative_audio=arguments.negative_audio,
        speaker_region=None if region is None else parse_region(region),
        model=arguments.model,
        device=arguments.device,
        sampler=arguments.sampler,
        segment_frames=arguments.segment_frames,
        max_seconds=arguments.max_seconds,
        allow_silence=arguments.allow_silence,
    )
    # Each step costs more than the one before: fields, files, model index, then torch and the weights.
    from omnihuman_infer.inputs import read_inputs
    from omnihuman_infer.presets import model_directory

    model_directory(arguments.model)
    inputs = read_inputs(request)

    import torch

    from omnihuman_infer.pipeline import generate

    def on_prepared(clip: Clip) -> None:
        if arguments.quiet:
            return
        if request.captioner is not None and request.prompt is None:
            print(f'note: the captioner wrote "{clip.prompt}"', file=sys.stderr)
        for notice in clip.notices:
            print(f"note: {notice}", file=sys.stderr)

    begin = time.perf_counter()
    with terminate_cleanly(), notes(quiet=arguments.quiet), progress(quiet=arguments.quiet) as on_progress:
        result = generate(
            request,
            inputs=inputs,
            dtype=None if arguments.dtype is None else getattr(torch, arguments.dtype),
            ops=arguments.ops,
            attention=arguments.attention,
            on_prepared=on_prepared,
            on_progress=on_progress,
        )
    if not arguments.quiet:
        print(
            f"{result.path}  {result.width}x{result.height}, {result.num_frames} frames, "
            f"{result.num_frames / result.fps:.2f} s of video in {time.perf_counter() - begin:.1f} s"
        )
    return 0


def _info(arguments: argparse.Namespace) -> int:
    from omnihuman_infer.presets import model_directory

    directory = model_directory(arguments.model)

    from omnihuman_infer.describe import describe

    print(describe(directory))
    return 0


def _convert(arguments: argparse.Namespace) -> int:
    from omnihuman_infer.convert import convert

    with terminate_cleanly(), notes(quiet=False):
        index = convert(
            arguments.source,
            arguments.out,
            only=arguments.component,
            dtype=arguments.dtype,
            trust_pickle=arguments.trust_pickle,
        )
    print(f"{arguments.out}: {', '.join(index.components)}")
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from omnihuman_infer.doctor import examine
    from omnihuman_infer.presets import SHIPPED, model_directory

    named = arguments.directory
    directory = None if named is None else model_directory(named) if named in SHIPPED else Path(named)
    if directory is not None and not directory.exists():
        shipped = ", ".join(SHIPPED)
        raise RequestError(f"directory: {directory} does not exist; give one, or a shipped model ({shipped})")
    report = examine(directory)
    print(report.text)
    return FAULTS if report.faults else 0


def _pose(arguments: argparse.Namespace) -> int:
    from omnihuman_infer.pose import estimate

    with terminate_cleanly():
        frames = estimate(
            arguments.video,
            arguments.out,
            models=arguments.models,
            preview=arguments.preview,
            retarget_to=arguments.retarget_to,
            device=arguments.device,
        )
    print(f"{arguments.out}: {frames} frames")
    return 0


if __name__ == "__main__":
    sys.exit(main())
