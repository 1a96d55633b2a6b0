"""The trained module: a backbone and the condition encoders that are trained and saved with it."""

from __future__ import annotations

from typing import Any

from torch import nn

from omnihuman_core.contracts import Ops
from omnihuman_core.plugins import plugin


class OmniModel(nn.Module):
    """Backbone with its condition encoders, each reached through its contract.

    Args:
        backbone: A :class:`~omnihuman_core.contracts.Backbone`.
        text_encoder: Text :class:`~omnihuman_core.contracts.ConditionEncoder`.
        audio_encoder: Audio condition encoder.
        pose_encoder: Pose condition encoder.
        mouth_probe: Linear layer that reads the mouth opening off the audio states, where the truth is known; it helps
            to train the audio encoder and is not part of the model that is exported.
    """

    def __init__(
        self,
        backbone: nn.Module,
        text_encoder: nn.Module,
        audio_encoder: nn.Module,
        pose_encoder: nn.Module,
        mouth_probe: nn.Module | None = None,
    ) -> None:
        super().__init__()
        # Contracts, not classes: the concrete types come from plugins.
        self.backbone: Any = backbone
        self.text_encoder: Any = text_encoder
        self.audio_encoder: Any = audio_encoder
        self.pose_encoder: Any = pose_encoder
        self.mouth_probe = mouth_probe

    @staticmethod
    def from_preset(preset: str, *, probe: bool = False, ops: Ops | None = None) -> OmniModel:
        """Fresh MMDiT and encoders of one preset, with a mouth probe where asked for; None takes the eager ops."""
        audio_encoder = build("condition_encoder", "audio", preset)
        return OmniModel(
            build("backbone", "mmdit", preset, ops=ops),
            build("condition_encoder", "text_bytes", preset),
            audio_encoder,
            build("condition_encoder", "pose_guider", preset),
            nn.Linear(audio_encoder.config.hidden_dim, 1) if probe else None,
        )


def build(group: str, name: str, preset: str, **given: Any) -> Any:
    """An instance of plugin ``name`` with one of its named presets; ``given`` goes to its constructor.

    Raises:
        ValueError: the plugin has no such preset.
    """
    chosen = plugin(group, name)
    if preset not in chosen.presets:
        raise ValueError(f"preset {preset!r} of {name!r} does not exist; it has {sorted(chosen.presets)}")
    return chosen(chosen.presets[preset](), **given)
