"""Memory of the weights of every public checkpoint that loads, at its published shapes: ``docs/checkpoints.md``.

    python benchmarks/checkpoint_memory.py

Modules are built on the meta device, which holds no value. Public classes stand in for parts that we load through them,
with the layers that we leave out left out. Activations, which grow with the clip, are not counted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from omnihuman_conditions.audio.encoder import AudioEncoder, AudioEncoderConfig
from omnihuman_conditions.pose.guider import PoseGuider, PoseGuiderConfig
from omnihuman_core.mmdit import MMDiT, hunyuan_video
from omnihuman_core.mmdit.presets import hunyuan_video_15
from omnihuman_vae.adapters import HunyuanVideoVAE, WanVAE
from omnihuman_vae.adapters.hunyuan_config import hunyuan_video as hunyuan_video_vae
from omnihuman_vae.adapters.wan_config import wan_2_1


def values(*modules: nn.Module) -> int:
    """Numbers in the weights of modules; one that two layers share counts once."""
    return sum(value.numel() for module in modules for value in module.parameters())


def cell(count: int, *, kept: int = 0) -> str:
    """Gigabytes in fp32 and bf16, as the tables have them; ``kept`` numbers stay fp32."""
    sizes = (4 * (count + kept), 2 * count + 4 * kept)
    return " / ".join(f"{size / 1e9:.1f}" if size >= 1e9 else f"{size / 1e9:.2f}" for size in sizes)


def _diffusers(name: str, **settings: Any) -> int:
    import diffusers

    return values(getattr(diffusers, name)(**settings))


def _transformers(name: str, config: str, **settings: Any) -> int:
    import transformers

    return values(getattr(transformers, name)(getattr(transformers, config)(**settings)))


def _omni() -> int:
    backbone = MMDiT(hunyuan_video(audio_dim=768, pose_channels=16))
    audio, pose = AudioEncoder(AudioEncoderConfig.wav2vec2_base()), PoseGuider(PoseGuiderConfig.tiny())
    # Three vectors that tell reference, motion and video tokens apart.
    return values(backbone, audio, pose) + 3 * backbone.config.hidden_size


def _llama() -> int:
    return _transformers(
        "LlamaModel", "LlamaConfig", vocab_size=128320, hidden_size=4096, intermediate_size=14336,
        num_hidden_layers=30, num_attention_heads=32, num_key_value_heads=8,
    )  # fmt: skip


def _clip() -> int:
    return _transformers(
        "CLIPTextModel", "CLIPTextConfig", hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
        num_attention_heads=12,
    )  # fmt: skip


def _qwen() -> int:
    return _transformers(
        "Qwen2_5_VLTextModel", "Qwen2_5_VLTextConfig", vocab_size=152064, hidden_size=3584, intermediate_size=18944,
        num_hidden_layers=26, num_attention_heads=28, num_key_value_heads=4,
    )  # fmt: skip


def _byt5() -> int:
    return _transformers(
        "T5EncoderModel", "T5Config", vocab_size=1510, d_model=1472, d_kv=64, d_ff=3584, num_layers=12, num_heads=6,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip


def _umt5() -> int:
    return _transformers(
        "UMT5EncoderModel", "UMT5Config", vocab_size=256384, d_model=4096, d_kv=64, d_ff=10240, num_layers=24,
        num_heads=64, feed_forward_proj="gated-gelu",
    )  # fmt: skip


def _wav2vec(layers: int, width: int, heads: int, *, stable: bool) -> int:
    return _transformers(
        "Wav2Vec2Model", "Wav2Vec2Config", hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=4 * width, do_stable_layer_norm=stable, feat_extract_norm="layer" if stable else "group",
        conv_bias=stable,
    )  # fmt: skip


def _whisper(layers: int, width: int, heads: int, mels: int) -> int:
    import transformers
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    config = transformers.WhisperConfig(
        d_model=width, encoder_layers=layers, encoder_attention_heads=heads, encoder_ffn_dim=4 * width,
        num_mel_bins=mels,
    )  # fmt: skip
    return values(WhisperEncoder(config))


PARTS: dict[str, Callable[[], int]] = {
    "HunyuanVideo's backbone": lambda: values(MMDiT(hunyuan_video())),
    "HunyuanVideo's backbone with our paths": _omni,
    "HunyuanVideo-1.5's backbone": lambda: values(MMDiT(hunyuan_video_15())),
    "HunyuanVideo's VAE": lambda: values(HunyuanVideoVAE(hunyuan_video_vae())),
    "Wan 2.1's VAE": lambda: values(WanVAE(wan_2_1())),
    "HunyuanVideo-1.5's VAE": lambda: _diffusers("AutoencoderKLHunyuanVideo15"),
    "Wan 2.2 5B's VAE": lambda: _diffusers(
        "AutoencoderKLWan",
        base_dim=160,
        decoder_base_dim=256,
        z_dim=48,
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=16,
    ),  # fmt: skip
    "LTX-Video's VAE": lambda: _diffusers("AutoencoderKLLTXVideo"),
    "CogVideoX's VAE": lambda: _diffusers("AutoencoderKLCogVideoX"),
    "Mochi 1's VAE": lambda: _diffusers("AutoencoderKLMochi"),
    "LLaMA 8B, 30 of 32 layers": _llama,
    "CLIP-L, its text half": _clip,
    "HunyuanVideo's text encoders": lambda: _llama() + _clip(),
    "UMT5-XXL, its encoder": _umt5,
    "Qwen2.5-VL 7B, 26 of 28 language layers": _qwen,
    "ByT5, its encoder": _byt5,
    "HunyuanVideo-1.5's text encoders": lambda: _qwen() + _byt5(),
    "wav2vec 2.0 base": lambda: _wav2vec(12, 768, 12, stable=False),
    "wav2vec 2.0 large, XLS-R 300M": lambda: _wav2vec(24, 1024, 16, stable=True),
    "Whisper tiny, its encoder": lambda: _whisper(4, 384, 6, 80),
    "Whisper large-v3, its encoder": lambda: _whisper(32, 1280, 20, 128),
}


def table() -> dict[str, str]:
    """Memory cell by part, and of all that one model holds while it generates."""
    with torch.device("meta"):
        counts = {name: count() for name, count in PARTS.items()}
    held = ("HunyuanVideo's backbone with our paths", "HunyuanVideo's VAE", "HunyuanVideo's text encoders")
    whole = cell(sum(counts[name] for name in held), kept=counts["wav2vec 2.0 base"])
    # Speech encoders are small and stay in fp32.
    cells = {name: cell(0, kept=count) if name.startswith("wav2vec") else cell(count) for name, count in counts.items()}
    return cells | {"these, with wav2vec 2.0 base in fp32": whole}


def main() -> None:
    """Print the table of the guide."""
    print("| part | weights, GB fp32 / bf16 |\n|---|---|")
    for name, memory in table().items():
        print(f"| {name} | {memory} |")


if __name__ == "__main__":
    main()
