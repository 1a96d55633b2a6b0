"""The figures in the README and the model card are those of the results file, and stay between their marks."""

import json
from pathlib import Path

import comparisons
import pytest
from small_model.summary import BEGIN, DOCUMENTS, END, figures, write_figures

ROOT = Path(__file__).parents[2]
RESULTS = sorted((ROOT / "benchmarks/results").glob("small_model_cpu_*.jsonl"))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_document_shows_what_was_measured_last(document: Path) -> None:
    rows = [json.loads(line) for line in RESULTS[-1].read_text().splitlines()]
    shown = document.read_text().partition(BEGIN)[2].partition(END)[0]
    assert shown.strip() == figures(rows).strip()


def test_the_readme_shows_the_last_comparisons() -> None:
    shown = comparisons.README.read_text().partition(comparisons.BEGIN)[2].partition(comparisons.END)[0]
    assert shown.strip() == comparisons.comparisons().strip()


def test_a_comparison_that_nobody_measured_is_named() -> None:
    with pytest.raises(
        ValueError, match="no row .*'width': 256.* of dit_forward; run benchmarks/end_to_end/dit_forward"
    ):
        comparisons.comparisons(lambda _: [])


def test_only_the_text_between_the_marks_changes(tmp_path: Path) -> None:
    document = tmp_path / "README.md"
    document.write_text(f"before\n{BEGIN}old\n{END}after\n")
    row = {"measure": "vae", "number": "psnr_db", "value": 31.4159, "goal": ">= 30", "met": "yes"}
    write_figures([row], [document])
    lines = document.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("before", "after")
    assert "| VAE reconstruction, PSNR (dB) | 31.4 | >= 30 | yes |" in lines
    assert "old" not in lines
    document.write_text("no marks")
    with pytest.raises(ValueError, match="the marks .* are missing"):
        write_figures([], [document])
