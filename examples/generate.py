"""From Python: load the model once, then make one video after the other.

Run it from the repository's root: ``python examples/generate.py``.
"""

from pathlib import Path

from omnihuman_infer import GenerateRequest, OmniHumanPipeline

ASSETS = Path(__file__).parent / "assets"


def main() -> None:
    pipeline = OmniHumanPipeline.from_pretrained("tiny")
    for seed in (0, 1):
        request = GenerateRequest(
            image=ASSETS / "demo.png",
            audio=ASSETS / "demo.wav",
            prompt=(ASSETS / "demo.txt").read_text(encoding="utf-8").strip(),
            out=Path(f"out/example_{seed}.mp4"),
            seed=seed,
        )
        result = pipeline(request)
        print(f"{result.path}: {result.num_frames} frames at {result.width}x{result.height}")

    # Frames as arrays, while they are made: nothing is written.
    request = GenerateRequest(image=ASSETS / "demo.png", audio=ASSETS / "demo.wav", seconds=1.0)
    for frames in pipeline.frames(pipeline.prepare(request)):
        print("piece of", frames.shape, frames.dtype)


if __name__ == "__main__":
    main()
