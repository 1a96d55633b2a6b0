"""Stage 1 (paper section 3.3): text and a reference picture; audio and pose are dropped.

Lengths, noise levels and the ratio of the reference are our choice; the ratios of the other conditions are the paper's
(section 3.3), and so are optimiser, batch and resolution of the large model (4.1). The stages share what is said here.
"""

from __future__ import annotations

from omnihuman_core.model_dir import GenerationSettings
from omnihuman_train.config import FlowConfig, OptimizerConfig, ParallelConfig, RunConfig, SegmentConfig
from omnihuman_train.data.plan import BatchConfig
from omnihuman_train.data.stream import StreamConfig
from omnihuman_train.stage_config import ComponentConfig, ModelConfig, StageConfig
from omnihuman_train.stages import Ratios, Stage
from omnihuman_train.watch import WatchConfig

RATIOS = Ratios(text=0.9, audio=0.0, pose=0.0, reference=0.9)


def hunyuan_video() -> StageConfig:
    """The 13B backbone at 832 x 480 pixels and five seconds, from HunyuanVideo's public weights.

    ``omnihuman-train init --base DIR --out models/hunyuan_video_omni`` makes what it starts from.
    """
    audio_dim, pose_channels = 768, 16
    backbone = {
        "audio_dim": audio_dim,
        "audio_blocks": list(range(60)),
        "pose_channels": pose_channels,
        "segment_embedding": True,
        # Training teaches velocities without guidance, and inference adds its own.
        "embedded_guidance": 1.0,
    }
    stages = (Stage(name="text", steps=20_000, ratios=RATIOS),)
    return StageConfig(
        name="omni-hunyuan-video",
        start="models/hunyuan_video_omni",
        model=ModelConfig(
            backbone=ComponentConfig(plugin="mmdit", preset="hunyuan_video", changes=backbone),
            text_encoder=ComponentConfig(plugin="text_states", preset="hunyuan_video"),
            audio_encoder=ComponentConfig(plugin="audio", preset="wav2vec2_base", changes={"token_dim": audio_dim}),
            pose_encoder=ComponentConfig(plugin="pose_guider", preset="tiny", changes={"out_channels": pose_channels}),
            pose_extractor=ComponentConfig(plugin="skeleton", preset="full"),
            ops="triton",
        ),
        vae=None,
        data="data/omni_480p",
        stream=StreamConfig(batch=BatchConfig()),
        stages=stages,
        flow=FlowConfig(sigma_shift=3.0),
        segment=SegmentConfig(latent_frames=32),
        run=RunConfig(
            steps=stages[-1].steps,
            batch_size=256,
            # Half a sample at a time on 64 GPUs of 80 GB: `plan` counts 41 GiB; whole ones leave none to spare.
            accumulate=8,
            parallel=ParallelConfig(sequence=2),
            device="cuda",
            ema_decay=0.9999,
            checkpoint_minutes=30.0,
            optimizer=OptimizerConfig(lr=5e-5, betas=(0.9, 0.99), weight_decay=0.01, warmup_steps=500, grad_clip=1.0),
        ),
        activation_checkpoint="selective",
        compile=True,
        watch=WatchConfig(tensorboard=True, validation_every=1000),
        generation=GenerationSettings(
            segment_frames=125,
            area=832 * 480,
            max_aspect=16 / 9,
            size_multiple=16,
            num_steps=50,
            guidance_scale=6.5,
            guidance_schedule="constant",
            guidance_end_scale=6.5,
            sigma_shift=7.0,
            sampler="euler",
            default_prompt="A person is talking.",
        ),
    )


def small() -> StageConfig:
    """The 0.2B backbone at 256 x 256 pixels and two seconds, from random weights, on one GPU.

    There is no text-to-video model to start from, so this stage is longer than the others. The VAE is what
    :func:`omnihuman_train.recipes.vae.base` leaves in ``runs/vae``.
    """
    width, pose_channels = 512, 32
    text = {"token_dim": width, "pooled_dim": width, "hidden_dim": width, "max_words": 48}
    stages = (Stage(name="text", steps=100_000, ratios=RATIOS),)
    return StageConfig(
        name="omni-small",
        start=None,
        model=ModelConfig(
            backbone=ComponentConfig(plugin="mmdit", preset="small"),
            text_encoder=ComponentConfig(plugin="text_bytes", preset="tiny", changes=text),
            audio_encoder=ComponentConfig(plugin="audio", preset="wav2vec2_base", changes={"token_dim": width}),
            pose_encoder=ComponentConfig(plugin="pose_guider", preset="tiny", changes={"out_channels": pose_channels}),
            pose_extractor=ComponentConfig(plugin="skeleton", preset="full"),
        ),
        vae="runs/vae/model",
        data="data/omni_256p",
        stream=StreamConfig(batch=BatchConfig()),
        stages=stages,
        flow=FlowConfig(),
        segment=SegmentConfig(latent_frames=12),
        run=RunConfig(
            steps=stages[-1].steps,
            batch_size=64,
            # 16 samples at a time on one GPU of 80 GB.
            accumulate=4,
            device="cuda",
            ema_decay=0.9995,
            checkpoint_minutes=15.0,
            optimizer=OptimizerConfig(lr=1e-4, warmup_steps=1000),
        ),
        watch=WatchConfig(tensorboard=True, validation_every=2000),
        generation=GenerationSettings(
            segment_frames=45,
            area=256 * 256,
            max_aspect=5 / 3,
            size_multiple=16,
            num_steps=30,
            guidance_scale=4.0,
            guidance_schedule="constant",
            guidance_end_scale=4.0,
            sigma_shift=1.0,
            sampler="euler",
        ),
    )


def debug() -> StageConfig:
    """The shape of the shipped small model, on clips of about 64 x 64 pixels and 17 frames; minutes on a CPU.

    It shows that data, stages and export go together; the model is of no use. Data is encoded with the shipped model,
    or with a VAE of yours, ``log_mel:tiny`` and ``text_bytes:tiny``.
    """
    stages = (Stage(name="text", steps=30, ratios=RATIOS),)
    return StageConfig(
        name="omni-debug",
        start=None,
        model=ModelConfig(
            backbone=ComponentConfig(plugin="mmdit", preset="tiny"),
            text_encoder=ComponentConfig(plugin="text_bytes", preset="tiny"),
            audio_encoder=ComponentConfig(plugin="audio", preset="tiny"),
            pose_encoder=ComponentConfig(plugin="pose_guider", preset="tiny"),
            pose_extractor=ComponentConfig(plugin="skeleton", preset="tiny"),
        ),
        vae=None,
        data="data/debug",
        stream=StreamConfig(batch=BatchConfig()),
        stages=stages,
        flow=FlowConfig(),
        segment=SegmentConfig(latent_frames=4),
        run=RunConfig(
            steps=stages[-1].steps,
            batch_size=4,
            precision="fp32",
            ema_decay=0.9,
            log_every=5,
            optimizer=OptimizerConfig(lr=1e-3, warmup_steps=5),
        ),
        generation=GenerationSettings(
            segment_frames=13,
            area=64 * 64,
            max_aspect=5 / 3,
            size_multiple=16,
            num_steps=4,
            guidance_scale=3.0,
            guidance_schedule="constant",
            guidance_end_scale=3.0,
            sigma_shift=1.0,
            sampler="euler",
        ),
    )
