"""The figures that a reader wants first, written between two marks of the README and of the model card."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = (ROOT / "README.md", ROOT / "packages/omnihuman-infer/src/omnihuman_infer/pretrained/tiny/README.md")
BEGIN, END = "<!-- figures: written by benchmarks/run.py --save -->\n", "<!-- end of figures -->\n"

# (measure, number) -> what it says.
SHOWN = {
    ("vae", "psnr_db"): "VAE reconstruction, PSNR (dB)",
    ("lips", "lip_sync_r"): "lip sync: correlation of generated and true mouth opening",
    ("lips", "lip_sync_r_worst"): "the same, worst clip",
    ("lips", "best_lag_median_frames"): "best lag (frames, median)",
    ("lips", "other_voice_r"): "correlation with another clip's voice",
    ("lips", "silence_opening_share_of_speech"): "mouth opening under silence, share of that under speech",
    ("lips", "identity_colour_error"): "colour error of skin, hair, clothes",
    ("lips", "block_edges_over_truth"): "steps in brightness at the edges of tokens, over those of true clips",
    ("prompts", "lip_sync_r"): 'lip sync under prompts such as "a man talking"',
    ("prompts", "identity_colour_error"): "colour error under them",
    ("text", "higher_when_asked_share"): 'hands higher for "raising both hands" than for "arms down", share of clips',
    ("text", "background_named_share"): "background as named, without a picture (chance 0.125)",
    ("text", "clothes_named_share"): "clothes as named, without a picture (chance 0.125)",
    ("text", "hair_named_share"): "hair as named, without a picture (chance 0.143)",
    ("pose", "hand_error_share_of_short_side"): "hand error under poses, share of the short side",
    ("pose", "hand_error_with_voice"): "the same with a voice",
    ("pose", "lip_sync_r_with_pose"): "lip sync with poses",
    ("speaker_region", "outside_movement_share"): (
        "two characters: mouth movement outside the speaker region, share of inside"
    ),
    ("long_clip", "background_drift"): "20 s: background change from first to last second",
    ("footprint", "seconds_for_4s_clip"): "4 s clip on two cores (s, with start-up)",
    ("footprint", "peak_mb_4s"): "its peak memory (MB)",
    ("footprint", "peak_20s_over_5s"): "peak memory of 20 s over 5 s",
}


def figures(rows: Sequence[dict[str, object]]) -> str:
    """Markdown table of the rows in :data:`SHOWN` that were measured."""
    found = {(row["measure"], row["number"]): row for row in rows}
    text = "| measure | value | goal | met |\n|---|---|---|---|\n"
    for key, words in SHOWN.items():
        if key in found:
            text += f"| {words} | {found[key]['value']:.3g} | {found[key]['goal']} | {found[key]['met']} |\n"
    return text


def write_figures(rows: Sequence[dict[str, object]], documents: Sequence[Path] = DOCUMENTS) -> None:
    """Put the table between the marks of every document.

    Raises:
        ValueError: a document lost its marks.
    """
    for path in documents:
        write_between(path, BEGIN, END, figures(rows))


def write_between(path: Path, begin: str, end: str, text: str) -> None:
    """Put ``text`` between two marks of a document.

    Raises:
        ValueError: the document lost its marks.
    """
    before, first, rest = path.read_text().partition(begin)
    _, last, after = rest.partition(end)
    if not first or not last:
        raise ValueError(f"{path}: the marks {begin.strip()!r} and {end.strip()!r} are missing")
    path.write_text(before + begin + "\n" + text + "\n" + end + after)
