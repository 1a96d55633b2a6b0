"""The guide to public checkpoints says of memory what the command counts."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "checkpoints.md").read_text(encoding="utf-8")

# Rows of the first table, by the part whose weights they state.
STATED = {
    "HunyuanVideo, diffusers folder": "HunyuanVideo's backbone",
    "HunyuanVideo, the authors' file": "HunyuanVideo's backbone",
    "HunyuanVideo-I2V, by token or by channel": "HunyuanVideo's backbone",
    "HunyuanVideo-1.5, text or image to video, diffusers folder": "HunyuanVideo-1.5's backbone",
    "HunyuanVideo, its I2V by token, or HunyuanVideo-1.5, with audio, pose and reference paths": (
        "HunyuanVideo's backbone with our paths"
    ),
    "HunyuanVideo's VAE, folder or authors' file": "HunyuanVideo's VAE",
    "Wan 2.1's VAE, folder or authors' file": "Wan 2.1's VAE",
    "VAE of HunyuanVideo-1.5": "HunyuanVideo-1.5's VAE",
    "text encoders of HunyuanVideo": "HunyuanVideo's text encoders",
    "text encoder of Wan (UMT5-XXL), T5": "UMT5-XXL, its encoder",
    "text encoders of HunyuanVideo-1.5 (Qwen2.5-VL 7B, ByT5)": "HunyuanVideo-1.5's text encoders",
    "wav2vec 2.0 base": "wav2vec 2.0 base",
    "wav2vec 2.0 large, XLS-R 300M": "wav2vec 2.0 large, XLS-R 300M",
    "Whisper": "Whisper large-v3, its encoder",
}
MEMORY = re.compile(r"[\d.]+ / [\d.]+")


def test_memory_is_that_of_the_command() -> None:
    spec = importlib.util.spec_from_file_location("checkpoint_memory", ROOT / "benchmarks" / "checkpoint_memory.py")
    assert spec is not None
    assert spec.loader is not None
    command = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(command)
    memory = command.table()
    assert [name for name, cell in memory.items() if f"\n| {name} | {cell} |\n" not in GUIDE] == []
    glance = GUIDE[GUIDE.index("## Every part at a glance") : GUIDE.index("### Memory")]
    rows = [line.strip("|").split("|") for line in glance.splitlines() if line.startswith("|")]
    stated = {row[0].strip(): found[0] for row in rows if (found := MEMORY.search(row[-1]))}
    assert stated == {label: memory[part] for label, part in STATED.items()}
