"""What is compared: seven ways through the conditions, as chains of phases that share their beginnings.

The order rule of training (`omnihuman_train.stages.check_stages`) refuses two of them on purpose. They are built here
from stages that go straight to the batches, and no recipe can ask for them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from omnihuman_train.stages import Ratios


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What every variant has in common.

    Attributes:
        fit: Clips that pass the audio filter; all variants and the shared first stage train on them.
        pool: Further clips that count as failing it: text and reference alone.
        first_steps: Steps of the shared first stage, without audio and pose.
        phase_steps: Steps of each of a variant's two phases.
        batch_size: Samples per step.
        width: Width of the backbone, a multiple of 64.
        double_blocks: Its dual-stream blocks.
        single_blocks: Its single-stream blocks.
        learning_rate: Peak rate of AdamW; that of Muon is twice as high.
        clips: Held-out clips of the evaluation; every other one shows hands.
        num_steps: Euler steps of a generation.
        guidance_scale: Guidance on audio and text.
    """

    fit: int = 512
    pool: int = 1024
    first_steps: int = 400
    phase_steps: int = 450
    batch_size: int = 12
    width: int = 128
    double_blocks: int = 1
    single_blocks: int = 4
    learning_rate: float = 1e-3
    clips: int = 40
    num_steps: int = 12
    guidance_scale: float = 3.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0 and name != "pool":
                raise ValueError(f"{name} must be positive, got {value}")
        if self.pool < 0 or self.width % 64 or self.clips < 4:
            raise ValueError(
                f"pool must not be negative, width must be a multiple of 64 and clips at least 4, "
                f"got {self.pool}, {self.width}, {self.clips}"
            )


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One row of the table.

    Attributes:
        share: Share of the pool of text-only clips that is trained on.
        phases: Keep ratios of the two phases after the shared first stage.
        title: What the table calls it.
    """

    share: float
    phases: tuple[Ratios, Ratios]
    title: str

    def chain(self) -> Iterator[tuple[str, tuple[Ratios, ...]]]:
        """Name and ratios of the path up to and with each phase; paths of one name are one training."""
        for end in (1, 2):
            path = self.phases[:end]
            tags = [f"a{round(100 * ratios.audio)}p{round(100 * ratios.pose)}" for ratios in path]
            yield "-".join([f"text{round(100 * self.share)}", *tags]), path


# Text 0.9, audio 0.5 and pose 0.25 are the ratios of the paper's section 3.3; "A < P" swaps the last two.
AUDIO = Ratios(text=0.9, audio=0.5, pose=0.0)
POSE = Ratios(text=0.9, audio=0.0, pose=0.25)
AUDIO_OVER_POSE = Ratios(text=0.9, audio=0.5, pose=0.25)
POSE_OVER_AUDIO = Ratios(text=0.9, audio=0.25, pose=0.5)

VARIANTS: dict[str, Variant] = {
    "text_0": Variant(share=0.0, phases=(AUDIO, AUDIO), title="0 % text-only data"),
    "text_25": Variant(share=0.25, phases=(AUDIO, AUDIO), title="25 %"),
    "text_50": Variant(share=0.5, phases=(AUDIO, AUDIO), title="50 %"),
    "text_100": Variant(share=1.0, phases=(AUDIO, AUDIO), title="100 % (= IA)"),
    "ipa": Variant(share=1.0, phases=(POSE, AUDIO_OVER_POSE), title="IPA"),
    "iap_a_lt_p": Variant(share=1.0, phases=(AUDIO, POSE_OVER_AUDIO), title="IAP, A < P"),
    "iap_a_gt_p": Variant(share=1.0, phases=(AUDIO, AUDIO_OVER_POSE), title="IAP, A > P"),
}
# Rendered truth through the VAE: what the measures say of a model without a fault.
CEILING = "truth"


def trainings(names: list[str]) -> list[str]:
    """Names of the phases that the variants need, in order, each once."""
    return list(dict.fromkeys(name for variant in names for name, _ in VARIANTS[variant].chain()))
