"""What a type checker tells whoever calls the package."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Each ignored line must be an error, or the ignoring is one.
CALLER = """
from collections.abc import Iterator
from pathlib import Path
import numpy as np
from numpy.typing import NDArray
from omnihuman_infer import GenerateRequest, GenerationResult, ModelError, OmniHumanPipeline, RequestError

request = GenerateRequest(image="me.png", audio=Path("me.wav"), out="me.mp4", speaker_region=(0, 0, 0.5, 1))
read: Path | None = request.image
written: Path = request.out
GenerateRequest(image=5)  # type: ignore[arg-type]
GenerateRequest(out=None)  # type: ignore[arg-type]

def run(pipeline: OmniHumanPipeline) -> tuple[int, str]:
    try:
        result: GenerationResult = pipeline(request, on_progress=lambda segment, segments, step, steps: None)
    except ModelError as error:
        return 500, str(error)
    except RequestError as error:
        return 400, str(error)
    return 200, str(result.path)

def frames(pipeline: OmniHumanPipeline) -> Iterator[NDArray[np.uint8]]:
    yield from pipeline.frames(pipeline.prepare(request))
"""


def test_a_caller_passes_a_strict_type_checker(tmp_path: Path) -> None:
    """Paths are given as text or as paths, and read as paths."""
    (tmp_path / "caller.py").write_text(CALLER)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", "pyproject.toml", "--cache-dir", "/dev/null"]
    done = subprocess.run([*command, tmp_path / "caller.py"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
