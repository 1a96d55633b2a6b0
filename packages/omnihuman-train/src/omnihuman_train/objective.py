"""Flow-matching objective under omni-conditions (paper sections 3.1 and 3.3).

``x_s = (1 - s) x0 + s noise``; the model predicts ``noise - x0``; the loss is the mean squared error, averaged over
latent positions with optional weights for mouths and hands. Dropped conditions are replaced by their encoders' nulls,
sample by sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from omnihuman_core.contracts import (
    AudioCondition,
    Conditioning,
    LossOutput,
    MotionCondition,
    PoseCondition,
    ReferenceCondition,
    TextFeatures,
)
from omnihuman_core.dropout import drop, null_latents
from omnihuman_core.flow.path import interpolate, velocity_target
from omnihuman_core.flow.sigmas import logit_normal, shift
from omnihuman_train.config import FlowConfig
from omnihuman_train.model import OmniModel


class FlowObjective:
    """Loss of an :class:`OmniModel`.

    Batch keys: ``latents`` (B, C, n, h, w) of whole clips, ``start``/``stop`` of the segment in them,
    ``motion_latents`` clean frames in front, ``reference`` (B, C, 1, h, w), ``text_values``/``text_mask`` and, where
    the extractor gives one, ``text_pooled``, where it is known ``text_length`` and ``text_padded`` (the end of the
    texts, and whether any ends before it), ``audio`` (B, T, layers, D) aligned with the frames of the whole clip,
    ``pose_maps`` (kept samples, 3, T, H, W) or None,
    ``keep`` masks (B,) by condition, ``mouth_region``/``hand_region`` (B, n, h, w), ``mouth_open`` (B, T),
    ``has_audio`` (B,), ``seeds`` (B,) int64 of each sample's sigma and noise. Latents, reference and audio
    may be of any float dtype.

    Args:
        config: Weights and noise levels.
    """

    def __init__(self, config: FlowConfig) -> None:
        self.config = config

    def __call__(self, model: OmniModel, batch: Mapping[str, Any]) -> LossOutput:
        """The loss, with ``loss/<conditions kept>`` and ``loss/sigma<quartile>`` as metrics.

        The metrics hold the flow-matching part alone, one value per sample; ``loss/mouth_probe`` is the probe's.
        """
        per_sample, sigma = self.sample_losses(model, batch)
        loss = per_sample.mean()
        metrics = {**by_condition_set(per_sample, batch["keep"]), **by_sigma_quartile(per_sample, sigma)}
        if model.mouth_probe is not None:
            probe = probe_loss(model, batch)
            metrics["loss/mouth_probe"] = probe.detach()
            loss = loss + self.config.mouth_probe_weight * probe
        return LossOutput(loss=loss, metrics=metrics)

    def sample_losses(self, model: OmniModel, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Flow-matching loss of each sample, and its sigma, both ``(B,)``.

        The sigma is that of ``sigma`` (B,) where the batch has one; the noise is that of the seed in any case.
        """
        segment, motion = slice(batch["start"], batch["stop"]), batch["motion_latents"]
        clean = batch["latents"][:, :, segment].float()  # (B, C, m + t, h, w)
        conditioning = condition(model, batch, segment)
        if motion:
            conditioning = replace(conditioning, motion=MotionCondition(latents=clean[:, :, :motion]))
        x0 = clean[:, :, motion:]  # (B, C, t, h, w)
        sigma, noise = self._draw(batch["seeds"], x0)
        sigma = batch.get("sigma", sigma)
        velocity = model.backbone(interpolate(x0, noise, sigma), sigma, conditioning)
        error = (velocity.float() - velocity_target(x0, noise)).square().mean(1)  # (B, t, h, w)
        weight = self._weight(batch, slice(segment.start + motion, segment.stop))
        return (error * weight).flatten(1).sum(1) / weight.flatten(1).sum(1), sigma

    def _draw(self, seeds: Tensor, x0: Tensor) -> tuple[Tensor, Tensor]:
        """Sigma ``(B,)`` and noise ``(B, C, t, h, w)``; a sample's draws depend on its own seed alone.

        So a batch may be split over devices in any way, and every part of one sample sees the same noise.
        """
        sigmas, noises = [], []
        for seed in seeds.tolist():
            generator = torch.Generator().manual_seed(seed)
            mean, std = self.config.sigma_mean, self.config.sigma_std
            sigmas.append(logit_normal(1, mean=mean, std=std, generator=generator))
            noises.append(torch.randn(x0.shape[1:], generator=generator))
        sigma = shift(torch.cat(sigmas), self.config.sigma_shift)
        return sigma.to(x0.device), torch.stack(noises).to(x0)

    def _weight(self, batch: Mapping[str, Any], frames: slice) -> Tensor:
        mouth = batch["mouth_region"][:, frames].float()
        hand = batch["hand_region"][:, frames].float()
        weight: Tensor = 1 + (self.config.mouth_weight - 1) * mouth + (self.config.hand_weight - 1) * hand
        return weight


def probe_loss(model: OmniModel, batch: Mapping[str, Any]) -> Tensor:
    """Squared error of the mouth opening that the probe reads; a sample whose voice is not its own counts as zero.

    The mean runs over the whole batch, so that the mean over equal parts of a batch is that of the batch.
    """
    assert model.mouth_probe is not None
    states = model.audio_encoder.frame_states(batch["audio"].float())  # (B, T, D)
    error = (model.mouth_probe(states)[..., 0].float() - batch["mouth_open"]).square().mean(1)
    own = batch["has_audio"].float()
    loss: Tensor = (error * own).mean()
    return loss


def condition(model: OmniModel, batch: Mapping[str, Any], segment: slice) -> Conditioning:
    """Conditions of a segment, with the null of every condition that a sample drops (Principle 2)."""
    keep: Mapping[str, Tensor] = batch["keep"]
    words = TextFeatures(values=batch["text_values"], mask=batch["text_mask"], pooled=batch.get("text_pooled"))
    text = model.text_encoder.encode(words)
    audio = model.audio_encoder.encode(batch["audio"].float())
    audio = AudioCondition(tokens=audio.tokens[:, segment])
    reference = ReferenceCondition(latents=batch["reference"].float())
    whole = Conditioning(text=text, audio=audio, reference=reference)
    nulls = Conditioning(
        text=model.text_encoder.null(text), audio=model.audio_encoder.null(audio), reference=null_latents(reference)
    )
    kept = drop(whole, nulls, {name: keep[name] for name in whole.parts()})
    if (length := batch.get("text_length")) is not None and kept.text is not None:
        # After the encoder, which may want texts of one length.
        tokens, mask = kept.text.tokens[:, :length], kept.text.mask[:, :length]
        kept = replace(kept, text=replace(kept.text, tokens=tokens, mask=mask, padded=batch["text_padded"]))
    return replace(kept, pose=_pose(model, batch, keep["pose"], segment))


def _pose(model: OmniModel, batch: Mapping[str, Any], keep: Tensor, segment: slice) -> PoseCondition:
    """Pose features: only the maps of samples that keep their pose are drawn and encoded."""
    count, _, _, height, width = batch["latents"].shape
    frames, channels = segment.stop - segment.start, model.backbone.spec.pose_channels
    empty = batch["latents"].new_zeros(count, channels, frames, height, width)
    features = model.pose_encoder.null(PoseCondition(features=empty)).features
    if batch["pose_maps"] is not None:
        drawn = model.pose_encoder.encode(batch["pose_maps"]).features[:, :, segment]
        rows = keep.nonzero()[:, 0]
        # Where other processes encode poses and no sample here keeps its own, there is one map, of nobody.
        features = features.to(drawn.dtype).index_put((rows,), drawn[: len(rows)])
    return PoseCondition(features=features)


def by_condition_set(per_sample: Tensor, keep: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Loss of the samples that kept each set of text, audio and pose, as ``loss/text+audio`` and so on."""
    names = [name for name in ("text", "audio", "pose") if name in keep]
    code = torch.stack([keep[name] for name in names], 1).to(per_sample.device)
    sets: dict[str, Tensor] = {}
    for row in torch.unique(code, dim=0):
        label = "+".join(name for name, kept in zip(names, row.tolist(), strict=True) if kept) or "none"
        sets[f"loss/{label}"] = per_sample.detach()[(code == row).all(1)]
    return sets


def by_sigma_quartile(per_sample: Tensor, sigma: Tensor) -> dict[str, Tensor]:
    """Loss of the samples whose sigma lies in each quarter of [0, 1], as ``loss/sigma0`` .. ``loss/sigma3``."""
    quarter = (sigma * 4).long().clamp(0, 3)
    return {f"loss/sigma{q}": per_sample.detach()[quarter == q] for q in range(4) if bool((quarter == q).any())}
