"""State-dict adapters between HunyuanVideo's public checkpoints and :class:`~omnihuman_core.mmdit.model.MMDiT`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from omnihuman_core.mmdit.config import MMDiTConfig
from omnihuman_core.mmdit.hunyuan_video_layouts import Rule, diffusers_15_rules, diffusers_rules, original_rules

EXTENSION_PREFIX = "omnihuman."
"""Put before the names of our audio, pose and segment weights, which no public layout has a place for."""


class _HunyuanVideoAdapter:
    """Applies the rules of a layout; see :class:`~omnihuman_core.contracts.StateDictAdapter`.

    Args:
        config: Architecture of the MMDiT, of HunyuanVideo's structure.
        rules: The layout, tensor by tensor.

    Raises:
        ValueError: the architecture has parts that HunyuanVideo lacks the weights for.
    """

    config_class = MMDiTConfig
    grouped_text = False

    def __init__(self, config: MMDiTConfig, rules: Iterable[Rule]) -> None:
        # HunyuanVideo has a pooled vector, HunyuanVideo-1.5 several kinds of text tokens instead.
        alike = (config.pooled_dim is None) == (self.grouped_text) == (config.text_groups is not None)
        if config.modulation != "per_block" or config.text_refiner_depth < 1 or not alike:
            raise ValueError(
                "this layout needs MMDiTConfig.modulation='per_block', text_refiner_depth of at least 1 and "
                f"{'text_groups' if self.grouped_text else 'a pooled_dim'}; start from the preset of its model"
            )
        self.config = config
        self.rules = tuple(rules)

    def to_native(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Public layout to ours.

        Raises:
            ValueError: keys are left over, or a packed tensor of ours lacks a part.
        """
        left = dict(state)
        native = {
            key.removeprefix(EXTENSION_PREFIX): left.pop(key) for key in state if key.startswith(EXTENSION_PREFIX)
        }
        for rule in self.rules:
            absent = [name for name in rule.public if name not in left]
            if absent and len(absent) < len(rule.public):
                raise ValueError(f"checkpoint lacks {absent}, needed for {rule.native} together with the keys it has")
            if not absent:
                native[rule.native] = rule.to_native([left.pop(name) for name in rule.public])
        if left:
            raise ValueError(f"keys that are not of this HunyuanVideo layout and size: {sorted(left)[:8]}")
        return native

    def from_native(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Ours to the public layout; weights it has no place for get :data:`EXTENSION_PREFIX`."""
        left = dict(state)
        public: dict[str, Tensor] = {}
        for rule in self.rules:
            if rule.native in left:
                public |= zip(rule.public, rule.from_native(left.pop(rule.native)), strict=True)
        return public | {EXTENSION_PREFIX + key: value for key, value in left.items()}


class HunyuanVideoDiffusersAdapter(_HunyuanVideoAdapter):
    """Layout of ``diffusers.HunyuanVideoTransformer3DModel``.

    Covers text to video and image to video by token replacement, where the picture's latents are our motion condition.
    """

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__(config, diffusers_rules(config))


class HunyuanVideoOriginalAdapter(_HunyuanVideoAdapter):
    """Layout of the single file that the authors published, with fused projections."""

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__(config, original_rules(config))


class _LatentConcatAdapter(_HunyuanVideoAdapter):
    """A layout whose patch embedding reads a picture by channels.

    It reads ``[latents, picture latents (zero after frame 0), mask (1 at frame 0)]``; the channels after the latents
    become the weight of our channel-stacked pose features, so ``pose_channels`` is ``latent_channels + 1``.
    """

    _public = "x_embedder.proj.weight"
    _extra = EXTENSION_PREFIX + "patch_embed.pose_proj.weight"

    def to_native(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Public layout to ours.

        Raises:
            ValueError: keys are left over, or a packed tensor of ours lacks a part.
        """
        split = dict(state)
        if self._public in split:
            channels = self.config.latent_channels
            weight = split[self._public]
            split[self._public], split[self._extra] = weight[:, :channels], weight[:, channels:].flatten(1)
        return super().to_native(split)

    def from_native(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Ours to the public layout; weights it has no place for get :data:`EXTENSION_PREFIX`."""
        public = super().from_native(state)
        if self._extra in public:
            extra = public.pop(self._extra)
            extra = extra.view(extra.shape[0], -1, *self.config.patch_size)
            public[self._public] = torch.cat([public[self._public], extra], dim=1)
        return public


class HunyuanVideoLatentConcatAdapter(_LatentConcatAdapter, HunyuanVideoDiffusersAdapter):
    """Layout of diffusers' image to video by channels."""


class HunyuanVideo15DiffusersAdapter(_LatentConcatAdapter):
    """Layout of ``diffusers.HunyuanVideo15Transformer3DModel``, text to video and image to video alike."""

    grouped_text = True

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__(config, diffusers_15_rules(config))
