"""Every kind of published checkpoint: saved by the public library, converted, loaded, the same numbers, no fault."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from omnihuman_core.contracts import Conditioning, PoseCondition
from omnihuman_core.model_dir import load_component, read_index
from omnihuman_core.testing.numerics import randomize, relative_error
from omnihuman_infer.cli import main
from omnihuman_infer.doctor import examine

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

from tests.conditions.tiny_text import VOCAB_SIZE, save_tokenizer  # noqa: E402
from tests.vae.adapters.conftest import HUNYUAN, OTHERS, native, noise, other, reference  # noqa: E402

CPU = torch.device("cpu")


def converted(source: Path, out: Path, plugins: dict[str, str], *flags: str) -> Path:
    """Convert, and let the doctor look at the result."""
    assert main(["convert", str(source), "--out", str(out), *flags]) == 0
    assert {name: entry.plugin for name, entry in read_index(out).components.items()} == plugins
    report = examine(out)
    missing = {name for name in ("vae", "backbone") if name not in plugins}
    assert {fault.split(": ")[1].split()[0] for fault in report.faults} == missing
    lines = {line.split()[0]: line for line in report.text.splitlines() if line.startswith("  ") and "M values" in line}
    assert {name: line.split()[1] for name, line in lines.items()} == plugins
    return out


def save_wav2vec2(folder: Path, *, stable: bool) -> Path:
    """wav2vec 2.0 base, or XLS-R, which normalises elsewhere."""
    config = transformers.Wav2Vec2Config(
        hidden_size=16, num_hidden_layers=5, num_attention_heads=2, intermediate_size=16, conv_dim=(8,) * 7,
        num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, vocab_size=8, do_stable_layer_norm=stable,
        feat_extract_norm="layer" if stable else "group",
    )  # fmt: skip
    torch.manual_seed(0)
    # As it is published: a head for pretraining, and its own prefix before every name.
    transformers.Wav2Vec2ForPreTraining(config).eval().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("stable", [False, True], ids=["wav2vec2", "xls_r"])
@torch.no_grad()
def test_speech_encoders(tmp_path: Path, stable: bool) -> None:
    source = save_wav2vec2(tmp_path / "public", stable=stable)
    out = converted(source, tmp_path / "out", {"audio_extractor": "wav2vec2"})
    extractor: Any = load_component(out, "audio_extractor")
    assert extractor.config.layers == (1, 2, 3, 5)
    # The level of the voice is set before the model hears it; the public model is asked without that.
    plain = type(extractor)(replace(extractor.config, loudness=False))
    waveform = 0.1 * torch.randn(2, 8000)
    processor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True)
    inputs = processor([row.numpy() for row in waveform], sampling_rate=16000, return_tensors="pt").input_values
    public = transformers.Wav2Vec2Model.from_pretrained(source).eval()
    hidden = public(inputs, output_hidden_states=True).hidden_states
    want = torch.stack([hidden[layer] for layer in (1, 2, 3, 5)], 2)
    assert relative_error(plain.extract(waveform).values, want) <= 1e-5


@torch.no_grad()
def test_whisper(tmp_path: Path) -> None:
    source = tmp_path / "public"
    settings = transformers.WhisperConfig(
        vocab_size=40, num_mel_bins=16, d_model=16, encoder_layers=3, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_source_positions=1500,
        max_target_positions=20, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.WhisperForConditionalGeneration(settings).eval().save_pretrained(source)
    processor = transformers.WhisperFeatureExtractor(feature_size=16)
    processor.save_pretrained(source)
    out = converted(source, tmp_path / "out", {"audio_extractor": "whisper"})
    extractor: Any = load_component(out, "audio_extractor")
    plain = type(extractor)(replace(extractor.config, loudness_db=None))
    waveform = 0.1 * torch.randn(1, 30 * 16000)
    inputs = processor([waveform[0].numpy()], sampling_rate=16000, return_tensors="pt").input_features
    public = transformers.WhisperModel.from_pretrained(source).eval().encoder
    hidden = public(inputs.to(public.dtype), output_hidden_states=True).hidden_states
    want = torch.stack([hidden[layer] for layer in plain.config.layers], 2)
    assert relative_error(plain.extract(waveform).values, want) <= 1e-5


def save_t5(folder: Path, kind: str) -> Path:
    sizes = {
        "vocab_size": VOCAB_SIZE, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2,
        "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
    }  # fmt: skip
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**sizes)
    getattr(transformers, f"{kind}EncoderModel")(config).save_pretrained(folder / "text_encoder")
    save_tokenizer(folder / "tokenizer", end=True)
    return folder


TEXT = ["a red coat", ""]


def same_states(out: Path, want: torch.Tensor, mask: torch.Tensor) -> None:
    """Both components against what the public pipeline computes in the precision of the component."""
    extractor, encoder = load_component(out, "text_extractor"), load_component(out, "text_encoder")
    features: Any = extractor.extract(TEXT)  # type: ignore[attr-defined]
    assert features.values.dtype == want.dtype == torch.bfloat16
    assert torch.equal(features.mask, mask.bool())
    assert torch.equal(features.values, want)
    condition: Any = encoder.encode(features)  # type: ignore[attr-defined]
    null: Any = encoder.null(condition)  # type: ignore[attr-defined]
    assert torch.equal(condition.tokens, want)
    assert torch.equal(null.tokens, want[1:].expand_as(want))


@pytest.mark.parametrize("kind", ["T5", "UMT5"])
@torch.no_grad()
def test_t5_family(tmp_path: Path, kind: str) -> None:
    source = save_t5(tmp_path / "public", kind)
    out = converted(source, tmp_path / "out", {"text_extractor": "text_t5", "text_encoder": "text_states"})
    model_class = getattr(transformers, f"{kind}EncoderModel")
    pipeline = SimpleNamespace(
        tokenizer=transformers.AutoTokenizer.from_pretrained(source / "tokenizer"),
        text_encoder=model_class.from_pretrained(source / "text_encoder", dtype=torch.bfloat16).eval(),
        _execution_device=CPU,
    )
    want = diffusers.WanPipeline._get_t5_prompt_embeds(pipeline, TEXT, max_sequence_length=512)
    mask = torch.arange(512) < torch.tensor([[len(text) + 1] for text in TEXT])
    same_states(out, want, mask)


def save_qwen(folder: Path) -> Path:
    config = transformers.Qwen2_5_VLTextConfig(
        vocab_size=VOCAB_SIZE, hidden_size=16, intermediate_size=24, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=1, pad_token_id=0,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.Qwen2_5_VLTextModel(config).save_pretrained(folder / "text_encoder")
    save_tokenizer(folder / "tokenizer")
    return folder


def qwen_states(source: Path) -> tuple[torch.Tensor, torch.Tensor]:
    model = transformers.Qwen2_5_VLTextModel.from_pretrained(source / "text_encoder", dtype=torch.bfloat16).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(source / "tokenizer")
    states, mask = diffusers.HunyuanVideo15Pipeline._get_mllm_prompt_embeds(model, tokenizer, TEXT, CPU)
    return states, mask


@torch.no_grad()
def test_qwen(tmp_path: Path) -> None:
    source = save_qwen(tmp_path / "public")
    out = converted(source, tmp_path / "out", {"text_extractor": "text_qwen25_vl", "text_encoder": "text_states"})
    same_states(out, *qwen_states(source))


@torch.no_grad()
def test_the_pipeline_of_hunyuan_video_15(tmp_path: Path) -> None:
    """Backbone, both text encoders and VAE at once; the states go into the backbone as the public pipeline's do."""
    source = save_qwen(tmp_path / "public")
    byt5 = transformers.T5Config(vocab_size=VOCAB_SIZE, d_model=12, d_kv=6, d_ff=24, num_layers=2, num_heads=2)
    transformers.T5EncoderModel(byt5).save_pretrained(source / "text_encoder_2")
    save_tokenizer(source / "tokenizer_2", end=True)
    public = diffusers.HunyuanVideo15Transformer3DModel(
        in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=2,
        num_refiner_layers=1, text_embed_dim=16, text_embed_2_dim=12, image_embed_dim=8, rope_axes_dim=(4, 6, 6),
    ).eval()  # fmt: skip
    randomize(public)
    public.save_pretrained(source / "transformer", max_shard_size="10MB")
    vae = other("hunyuan_video_1_5").vae
    vae.save_pretrained(source / "vae")
    plugins = {
        "backbone": "mmdit",
        "vae": "diffusers",
        "text_extractor": "text_hunyuan_15",
        "text_encoder": "text_states",
    }
    out = converted(source, tmp_path / "out", plugins)
    generation = read_index(out).generation
    assert (generation.fps, generation.segment_frames, generation.guidance_scale) == (24.0, 121, 6.0)
    same_video(out, vae)
    prompts = ['a sign "open"', "no words"]
    extractor, encoder = load_component(out, "text_extractor"), load_component(out, "text_encoder")
    condition: Any = encoder.encode(extractor.extract(prompts))  # type: ignore[attr-defined]
    auto, half = transformers.AutoTokenizer.from_pretrained, {"dtype": torch.bfloat16}
    model = transformers.Qwen2_5_VLTextModel.from_pretrained(source / "text_encoder", **half).eval()
    states, mask = diffusers.HunyuanVideo15Pipeline._get_mllm_prompt_embeds(
        model, auto(source / "tokenizer"), prompts, CPU
    )
    model = transformers.T5EncoderModel.from_pretrained(source / "text_encoder_2", **half).eval()
    words, words_mask = diffusers.HunyuanVideo15Pipeline._get_byt5_prompt_embeds(
        auto(source / "tokenizer_2"), model, prompts, CPU, tokenizer_max_length=256
    )
    latents, sigma = torch.randn(2, 4, 3, 2, 2), torch.tensor([0.3, 0.8])
    want = public(
        torch.cat([latents, torch.zeros(2, 5, 3, 2, 2)], dim=1), 1000 * sigma, states.float(), mask.float(),
        encoder_hidden_states_2=words.float(), encoder_attention_mask_2=words_mask.float(),
        image_embeds=torch.zeros(2, 3, 8),
    ).sample  # fmt: skip
    pose = PoseCondition(features=torch.zeros(2, 5, 3, 2, 2))
    got = load_component(out, "backbone")(latents, sigma, Conditioning(text=condition, pose=pose))
    assert words_mask.any(1).tolist() == [True, False]
    assert relative_error(got, want) <= 1e-5


@torch.no_grad()
def test_llama_and_clip(tmp_path: Path) -> None:
    source = tmp_path / "public"
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "vocab_size": VOCAB_SIZE}
    llama = transformers.LlamaConfig(**sizes, num_hidden_layers=4, max_position_embeddings=2048)
    transformers.LlamaModel(llama).eval().save_pretrained(source / "text_encoder")
    clip = transformers.CLIPTextConfig(**sizes, num_hidden_layers=1, eos_token_id=2, bos_token_id=1)
    transformers.CLIPTextModel(clip).eval().save_pretrained(source / "text_encoder_2")
    save_tokenizer(source / "tokenizer", begin=True)
    save_tokenizer(source / "tokenizer_2", begin=True, end=True)
    out = converted(source, tmp_path / "out", {"text_extractor": "text_hunyuan", "text_encoder": "text_states"})
    auto, half = transformers.AutoTokenizer.from_pretrained, {"dtype": torch.bfloat16}
    pipeline = SimpleNamespace(
        tokenizer=auto(source / "tokenizer"),
        tokenizer_2=auto(source / "tokenizer_2"),
        text_encoder=transformers.LlamaModel.from_pretrained(source / "text_encoder", **half).eval(),
        text_encoder_2=transformers.CLIPTextModel.from_pretrained(source / "text_encoder_2", **half).eval(),
        _execution_device=CPU,
    )
    from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE

    method = diffusers.HunyuanVideoPipeline._get_llama_prompt_embeds
    want, mask = method(pipeline, TEXT, DEFAULT_PROMPT_TEMPLATE, max_sequence_length=256)
    same_states(out, want, mask)
    pooled = diffusers.HunyuanVideoPipeline._get_clip_prompt_embeds(pipeline, TEXT)
    features: Any = load_component(out, "text_extractor").extract(TEXT)  # type: ignore[attr-defined]
    assert torch.equal(features.pooled, pooled)


def scaled(public: Any, mean: torch.Tensor) -> torch.Tensor:
    """Latents as the pipelines scale them."""
    names = ("latents_mean", "latents_std")
    buffers = dict(public.named_buffers())
    if "latents_mean" in buffers:
        shift, std = (buffers[name] for name in names)
    elif "scaling_factor" in public.config and public.config.scaling_factor != 1.0:
        return mean * public.config.scaling_factor
    else:
        shift, std = (torch.tensor(public.config[name]) for name in names)
    return (mean - shift.view(1, -1, 1, 1, 1)) / std.view(1, -1, 1, 1, 1)


@torch.no_grad()
def same_video(out: Path, public: Any) -> None:
    vae: Any = load_component(out, "vae")
    video = noise(1, 3, 1 + 2 * vae.latent_spec.temporal_stride, *vae.latent_spec.pixel_size(2, 2))
    assert relative_error(vae.encode(video), scaled(public, public.encode(video).latent_dist.mode())) <= 1e-5
    mean = torch.randn(1, vae.latent_spec.channels, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    want = public.decode(mean).sample
    # Wan's public decoder clamps.
    got = vae.decode(scaled(public, mean))
    assert relative_error(got.clamp(-1, 1) if "Wan" in type(public).__name__ else got, want) <= 1e-5


@pytest.mark.parametrize("name", ["wan", "hunyuan_video"])
@pytest.mark.parametrize("whole", [False, True], ids=["vae", "pipeline"])
def test_native_vaes(tmp_path: Path, name: str, whole: bool) -> None:
    public = reference(name)
    source = tmp_path / "public"
    public.save_pretrained(source / "vae" if whole else source, max_shard_size="100KB")
    same_video(converted(source, tmp_path / "out", {"vae": name}), public)


@pytest.mark.parametrize("name", OTHERS)
def test_vaes_through_diffusers(tmp_path: Path, name: str) -> None:
    public = other(name).vae
    if name == "ltx":
        public.latents_mean.copy_(torch.linspace(-1, 1, 8))
        public.latents_std.copy_(torch.linspace(0.5, 2, 8))
    public.save_pretrained(tmp_path / "public")
    same_video(converted(tmp_path / "public", tmp_path / "out", {"vae": "diffusers"}), public)


@pytest.mark.parametrize("flags", [(), ("--trust-pickle",)], ids=["safetensors", "pickle"])
def test_hunyuan_video_vae_of_the_authors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...]
) -> None:
    from safetensors.torch import save_file

    from omnihuman_vae.adapters import HunyuanVideoVAEOriginalAdapter, loading

    public = reference("hunyuan_video")
    # The file does not say its sizes; the published one has those of the preset.
    monkeypatch.setattr(loading, "hunyuan_video", lambda: HUNYUAN)
    state = HunyuanVideoVAEOriginalAdapter(HUNYUAN).from_native(native("hunyuan_video").state_dict())
    save: Callable[..., Any] = torch.save if flags else save_file
    source = tmp_path / ("pytorch_model.pt" if flags else "vae.safetensors")
    save({"state_dict": state} if flags else {key: value.contiguous() for key, value in state.items()}, source)
    same_video(converted(source, tmp_path / "out", {"vae": "hunyuan_video"}, *flags), public)
