"""The attention of a loaded model: by name, by the table, and what the doctor says of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from omnihuman_core.ops import eager_ops, softmax_attention
from omnihuman_core.ops.attention_table import user_table
from omnihuman_infer import OmniHumanPipeline, RequestError
from omnihuman_infer.doctor import examine


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads the table of whoever runs it."""
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")


def test_a_backbone_gets_the_attention_that_is_asked_for(toy_dir: Path) -> None:
    usual = OmniHumanPipeline.from_pretrained(toy_dir, device="cpu").components.backbone
    named = OmniHumanPipeline.from_pretrained(toy_dir, device="cpu", attention="eager").components.backbone
    assert usual.double_blocks[0].ops == eager_ops()
    assert named.double_blocks[0].ops.attention is softmax_attention


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention": "quick"}, "attention: unknown backend 'quick'; known are auto, sdpa"),
        ({"attention": "flex"}, "attention: flex cannot be used: does not run on cpu"),
        ({"ops": "quick"}, "ops: unknown ops plugin 'quick'"),
    ],
)
def test_what_cannot_be_had_is_one_line(toy_dir: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        OmniHumanPipeline.from_pretrained(toy_dir, device="cpu", **options)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_the_doctor_lists_the_backends_and_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    lines = [line.split() for line in examine(None).text.splitlines()]
    assert ["sdpa", "usable"] in lines
    assert ["flash_attn_2", "does", "not", "run", "on", "cpu"] in lines
    assert ["auto", "takes", "sdpa", "(no", "times", "are", "known)"] in lines


def test_a_broken_table_is_a_fault() -> None:
    user_table().parent.mkdir(parents=True)
    user_table().write_text("{")
    (fault,) = examine(None).faults
    assert str(user_table()) in fault
    assert "delete it" in fault
