"""Text of public language models: what the diffusers pipelines compute, on tiny random models and tokenizers."""

import re
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import HunyuanVideo15Pipeline, HunyuanVideoPipeline, WanPipeline
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from transformers import (
    AutoTokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)
from transformers import Qwen2_5_VLTextConfig as PublicQwenConfig
from transformers import Qwen2_5_VLTextModel as PublicQwen

from omnihuman_conditions.language.decoder import (
    HUNYUAN_VIDEO_CROP,
    HUNYUAN_VIDEO_TEMPLATE,
    LlamaTextConfig,
    LlamaTextExtractor,
)
from omnihuman_conditions.language.hunyuan import HunyuanTextConfig, HunyuanTextExtractor
from omnihuman_conditions.language.hunyuan15 import Hunyuan15TextConfig, Hunyuan15TextExtractor
from omnihuman_conditions.language.model import LanguageModel
from omnihuman_conditions.language.qwen import (
    GlyphTextConfig,
    GlyphTextExtractor,
    Qwen25VLTextConfig,
    Qwen25VLTextExtractor,
)
from omnihuman_conditions.language.t5 import T5TextConfig, T5TextExtractor
from omnihuman_core.testing import FeatureExtractorConformance

from .tiny_text import VOCAB_SIZE, save_tokenizer

PROMPTS = ["A red {coat}.", "", "Two   people &amp; a dog dance"]
CPU = torch.device("cpu")
# The tiny tokenizer makes one token of a character, so a template has other lengths than with the public one.
LLAMA_CROP = 1 + len(re.sub(r"<\|\w+\|>", "x", HUNYUAN_VIDEO_TEMPLATE.split("{}")[0]))


@pytest.fixture(scope="module")
def hunyuan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A HunyuanVideo diffusers folder, text half."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("hunyuan")
    llama = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        pad_token_id=0,
    )
    model = LlamaModel(llama)
    torch.nn.init.normal_(model.norm.weight)
    model.save_pretrained(path / "text_encoder")
    save_tokenizer(path / "tokenizer", begin=True)
    clip = CLIPTextConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=12,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    CLIPTextModel(clip).save_pretrained(path / "text_encoder_2")
    save_tokenizer(path / "tokenizer_2", begin=True, end=True)
    return path


def hunyuan_config(path: Path, **fields: object) -> LlamaTextConfig:
    base = LlamaTextConfig.hunyuan_video(str(path), dtype="float32")
    return replace(base, **({"crop_start": LLAMA_CROP, "max_tokens": 120} | fields))  # type: ignore[arg-type]


def hunyuan_pipeline(path: Path) -> SimpleNamespace:
    """What the pipeline's methods use of it."""
    return SimpleNamespace(
        tokenizer=AutoTokenizer.from_pretrained(path / "tokenizer"),
        tokenizer_2=AutoTokenizer.from_pretrained(path / "tokenizer_2"),
        text_encoder=LlamaModel.from_pretrained(path / "text_encoder").eval(),
        text_encoder_2=CLIPTextModel.from_pretrained(path / "text_encoder_2").eval(),
        _execution_device=CPU,
    )


def test_the_template_is_that_of_the_pipeline() -> None:
    assert {"template": HUNYUAN_VIDEO_TEMPLATE, "crop_start": HUNYUAN_VIDEO_CROP} == DEFAULT_PROMPT_TEMPLATE


@pytest.mark.parametrize("skip", [0, 1, 2, 3])
@pytest.mark.parametrize("crop_start", [HUNYUAN_VIDEO_CROP, LLAMA_CROP])
def test_llama_states_equal_diffusers(hunyuan: Path, skip: int, crop_start: int) -> None:
    texts = ["a red coat", "", "two dogs"]
    with torch.no_grad():
        expected, mask = HunyuanVideoPipeline._get_llama_prompt_embeds(
            hunyuan_pipeline(hunyuan),
            texts,
            DEFAULT_PROMPT_TEMPLATE | {"crop_start": crop_start},
            max_sequence_length=120,
            num_hidden_layers_to_skip=skip,
        )
    extractor = LlamaTextExtractor(hunyuan_config(hunyuan, crop_start=crop_start, skip_layers=skip))
    if crop_start == HUNYUAN_VIDEO_CROP:
        with pytest.warns(UserWarning, match="llama tokens, only the first 215"):
            features = extractor.extract(texts)
    else:
        features = extractor.extract(texts)
    assert torch.equal(features.mask, mask.bool())
    torch.testing.assert_close(features.values, expected, atol=1e-5, rtol=0)
    assert len(extractor._language.model.layers) == 4 - skip


def test_hunyuan_pair_equals_diffusers(hunyuan: Path) -> None:
    texts = ["a red coat", "", "x" * 100]
    config = HunyuanTextConfig.hunyuan_video(str(hunyuan), dtype="float32")
    extractor = HunyuanTextExtractor(replace(config, llama=hunyuan_config(hunyuan)))
    with torch.no_grad():
        pooled = HunyuanVideoPipeline._get_clip_prompt_embeds(hunyuan_pipeline(hunyuan), texts)
    with pytest.warns(UserWarning, match="102 clip tokens, only the first 77"):
        features = extractor.extract(texts)
    assert features.pooled is not None
    torch.testing.assert_close(features.pooled, pooled, atol=1e-6, rtol=0)
    assert features.values.shape == (3, 120, 16)
    assert not torch.allclose(features.pooled[0], features.pooled[1], atol=1e-3)


def test_braces_in_a_prompt_are_text(hunyuan: Path) -> None:
    extractor = LlamaTextExtractor(hunyuan_config(hunyuan))
    features = extractor.extract(PROMPTS)
    assert features.mask.sum(1).tolist()[0] - features.mask.sum(1).tolist()[1] == len(PROMPTS[0])


def test_llama_with_a_head_and_left_padding(hunyuan: Path, tmp_path: Path) -> None:
    """A causal language model's directory, and a tokenizer that says to pad on the left."""
    torch.manual_seed(0)
    base = LlamaModel.from_pretrained(hunyuan / "text_encoder")
    head = LlamaForCausalLM(base.config)
    head.model = base
    head.save_pretrained(tmp_path / "text_encoder")
    tokenizer = save_tokenizer(tmp_path / "tokenizer", begin=True)
    tokenizer.padding_side = "left"
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    whole = LlamaTextExtractor(hunyuan_config(hunyuan)).extract(["a coat"])
    features = LlamaTextExtractor(hunyuan_config(tmp_path)).extract(["a coat"])
    assert torch.equal(features.mask, whole.mask)
    torch.testing.assert_close(features.values, whole.values)


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("wan")
    sizes = {
        "vocab_size": VOCAB_SIZE,
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 24,
        "num_layers": 2,
        "num_heads": 2,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
    }
    UMT5EncoderModel(UMT5Config(**sizes)).save_pretrained(path / "text_encoder")
    T5EncoderModel(T5Config(**sizes)).save_pretrained(path / "t5")
    save_tokenizer(path / "tokenizer", end=True)
    return path


@pytest.mark.parametrize(("folder", "model_class"), [("text_encoder", UMT5EncoderModel), ("t5", T5EncoderModel)])
def test_t5_states_equal_diffusers(wan: Path, folder: str, model_class: type) -> None:
    pipeline = SimpleNamespace(
        tokenizer=AutoTokenizer.from_pretrained(wan / "tokenizer"),
        text_encoder=model_class.from_pretrained(wan / folder).eval(),  # type: ignore[attr-defined]
        _execution_device=CPU,
    )
    texts = [*PROMPTS, " tabs\tand\n lines ", "&amp;lt;"]
    with torch.no_grad():
        expected = WanPipeline._get_t5_prompt_embeds(pipeline, texts, max_sequence_length=40)
    config = T5TextConfig.wan(str(wan), dtype="float32")
    extractor = T5TextExtractor(replace(config, model=str(wan / folder), max_tokens=40))
    features = extractor.extract(texts)
    torch.testing.assert_close(features.values, expected, atol=1e-6, rtol=0)
    assert features.mask.sum(1).tolist()[:2] == [14, 1]
    assert features.values[1, 1:].abs().max() == 0
    with pytest.warns(UserWarning, match="61 t5 tokens, only the first 40"):
        extractor.extract(["x" * 60])


@pytest.fixture(scope="module")
def hunyuan15(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(2)
    path = tmp_path_factory.mktemp("hunyuan15")
    config = PublicQwenConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
        pad_token_id=0,
    )
    PublicQwen(config).save_pretrained(path / "text_encoder")
    save_tokenizer(path / "tokenizer")
    byt5 = T5Config(vocab_size=VOCAB_SIZE, d_model=12, d_kv=6, d_ff=24, num_layers=2, num_heads=2)
    T5EncoderModel(byt5).save_pretrained(path / "text_encoder_2")
    save_tokenizer(path / "tokenizer_2", end=True)
    return path


@pytest.mark.parametrize("skip", [0, 2])
def test_qwen_states_equal_diffusers(hunyuan15: Path, skip: int) -> None:
    texts = ["a red coat", "", "two dogs"]
    config = Qwen25VLTextConfig.hunyuan_video_15(str(hunyuan15), dtype="float32")
    sizes = {"tokenizer_max_length": 80, "crop_start": 420, "num_hidden_layers_to_skip": skip}
    with torch.no_grad():
        expected, mask = HunyuanVideo15Pipeline._get_mllm_prompt_embeds(
            PublicQwen.from_pretrained(hunyuan15 / "text_encoder").eval(),
            AutoTokenizer.from_pretrained(hunyuan15 / "tokenizer"),
            texts,
            CPU,
            **sizes,
        )
    extractor = Qwen25VLTextExtractor(replace(config, max_tokens=80, crop_start=420, skip_layers=skip))
    with pytest.warns(UserWarning, match=r"qwen2.5-vl tokens, only the first 500"):
        features = extractor.extract(texts)
    assert torch.equal(features.mask, mask.bool())
    torch.testing.assert_close(features.values, expected, atol=1e-5, rtol=0)


def test_qwen_message_is_that_of_the_pipeline(hunyuan15: Path) -> None:
    import inspect

    public = inspect.signature(HunyuanVideo15Pipeline._get_mllm_prompt_embeds).parameters
    config = Qwen25VLTextConfig.hunyuan_video_15(str(hunyuan15))
    assert config.system_message == public["system_message"].default
    assert config.crop_start == public["crop_start"].default
    assert config.max_tokens == public["tokenizer_max_length"].default
    assert config.skip_layers == public["num_hidden_layers_to_skip"].default


def test_glyph_states_equal_diffusers(hunyuan15: Path) -> None:
    texts = ['A sign "open" and “now open”', "no words", 'twice "a" and "a"', '""']
    with torch.no_grad():
        expected, mask = HunyuanVideo15Pipeline._get_byt5_prompt_embeds(
            AutoTokenizer.from_pretrained(hunyuan15 / "tokenizer_2"),
            T5EncoderModel.from_pretrained(hunyuan15 / "text_encoder_2").eval(),
            texts,
            CPU,
            tokenizer_max_length=60,
        )
    config = GlyphTextConfig.hunyuan_video_15(str(hunyuan15), dtype="float32")
    features = GlyphTextExtractor(replace(config, max_tokens=60)).extract(texts)
    assert torch.equal(features.mask, mask.bool())
    assert not features.mask[1].any()
    torch.testing.assert_close(features.values, expected, atol=1e-6, rtol=0)


def test_both_states_stand_behind_each_other(hunyuan15: Path, tmp_path: Path) -> None:
    texts = ['A sign "open"', "no words"]
    base = Hunyuan15TextConfig.hunyuan_video_15(str(hunyuan15), dtype="float32")
    config = replace(base, prompt=replace(base.prompt, max_tokens=40), glyphs=replace(base.glyphs, max_tokens=30))
    both, alone = Hunyuan15TextExtractor(config), Qwen25VLTextExtractor(config.prompt)
    with pytest.warns(UserWarning, match=r"qwen2.5-vl tokens"):
        features = both.extract(texts)
    with pytest.warns(UserWarning, match=r"qwen2.5-vl tokens"):
        prompt = alone.extract(texts)
    glyphs = GlyphTextExtractor(config.glyphs).extract(texts)
    assert features.values.shape == (2, 70, 16)
    assert torch.equal(features.values[:, :40], prompt.values)
    assert torch.equal(features.values[:, 40:, :12], glyphs.values)
    assert not features.values[:, 40:, 12:].any()
    assert torch.equal(features.mask, torch.cat([prompt.mask, glyphs.mask], 1))
    wide = T5Config(vocab_size=VOCAB_SIZE, d_model=20, d_kv=6, d_ff=24, num_layers=1, num_heads=2)
    T5EncoderModel(wide).save_pretrained(tmp_path)
    other = Hunyuan15TextExtractor(replace(config, glyphs=replace(config.glyphs, model=str(tmp_path))))
    with (
        pytest.warns(UserWarning, match=r"qwen2.5-vl tokens"),
        pytest.raises(ValueError, match="byt5 states are 4 wider"),
    ):
        other.extract(texts)


def test_refusals(hunyuan: Path, wan: Path, hunyuan15: Path, tmp_path: Path) -> None:
    def refused(config: LlamaTextConfig, match: str) -> None:
        with pytest.raises(ValueError, match=match) as caught:
            LlamaTextExtractor(config)
        assert "\n" not in str(caught.value)

    config = hunyuan_config(hunyuan)
    refused(replace(config, model=str(tmp_path / "none")), "llama directory not found")
    refused(replace(config, model=str(wan / "t5")), "holds a 't5' model, not 'llama' or 'llava'")
    refused(replace(config, tokenizer=str(tmp_path / "none")), "llama tokenizer directory not found")
    refused(replace(config, tokenizer=str(tmp_path)), "llama tokenizer in .* cannot be loaded")
    refused(replace(config, skip_layers=4), "leaves none of the 4 layers")
    save_tokenizer(tmp_path / "nopad", pad=False)
    refused(replace(config, tokenizer=str(tmp_path / "nopad")), "no padding token")
    big = save_tokenizer(tmp_path / "big")
    big.add_tokens(["onemore", "twomore"])
    big.save_pretrained(tmp_path / "big")
    refused(replace(config, tokenizer=str(tmp_path / "big")), f"tokens, the model in .* knows {VOCAB_SIZE}")
    with pytest.raises(ValueError, match="crop_start = 900 leaves no token"):
        LlamaTextExtractor(replace(config, crop_start=900)).extract(["short"])
    for wrong in ("a bare string", [], [3]):
        with pytest.raises(ValueError, match="list of at least one string"):
            LlamaTextExtractor(config).extract(wrong)  # type: ignore[arg-type]
    for fields, match in (
        ({"template": "no place"}, "contain {} once"),
        ({"max_tokens": 0}, "LlamaTextConfig.max_tokens must be at least 1"),
        ({"skip_layers": -1}, "LlamaTextConfig.skip_layers must be at least 0"),
        ({"dtype": "int4"}, "LlamaTextConfig.dtype"),
    ):
        with pytest.raises(ValueError, match=match):
            replace(config, **fields)  # type: ignore[arg-type]
    silent = save_tokenizer(tmp_path / "silent")
    silent.chat_template = None
    silent.save_pretrained(tmp_path / "silent")
    (tmp_path / "silent" / "chat_template.jinja").unlink(missing_ok=True)
    qwen = Qwen25VLTextConfig.hunyuan_video_15(str(hunyuan15))
    with pytest.raises(ValueError, match="no chat template"):
        Qwen25VLTextExtractor(replace(qwen, tokenizer=str(tmp_path / "silent")))


def test_precision_of_the_states(hunyuan: Path) -> None:
    features = LlamaTextExtractor(hunyuan_config(hunyuan, dtype="bfloat16")).to("cpu").extract(["a coat"])
    assert features.values.dtype == torch.bfloat16


class TestHunyuanConformance(FeatureExtractorConformance):
    @pytest.fixture
    def extractor(self, hunyuan: Path) -> HunyuanTextExtractor:
        config = HunyuanTextConfig.hunyuan_video(str(hunyuan), dtype="float32")
        return HunyuanTextExtractor(replace(config, llama=hunyuan_config(hunyuan)))

    @pytest.fixture
    def raw(self) -> list[str]:
        return ["a coat", ""]


class TestT5Conformance(FeatureExtractorConformance):
    @pytest.fixture
    def extractor(self, wan: Path) -> T5TextExtractor:
        return T5TextExtractor(replace(T5TextConfig.wan(str(wan), dtype="float32"), max_tokens=20))

    @pytest.fixture
    def raw(self) -> list[str]:
        return ["a coat", ""]


class TestGlyphConformance(TestT5Conformance):
    @pytest.fixture
    def extractor(self, hunyuan15: Path) -> GlyphTextExtractor:  # type: ignore[override]
        return GlyphTextExtractor(GlyphTextConfig.hunyuan_video_15(str(hunyuan15), dtype="float32"))


class TestQwenConformance(TestT5Conformance):
    @pytest.fixture
    def extractor(self, hunyuan15: Path) -> Qwen25VLTextExtractor:  # type: ignore[override]
        config = Qwen25VLTextConfig.hunyuan_video_15(str(hunyuan15), dtype="float32")
        return Qwen25VLTextExtractor(replace(config, system_message="Describe.", crop_start=20, max_tokens=40))


class TestHunyuan15Conformance(TestT5Conformance):
    @pytest.fixture
    def extractor(self, hunyuan15: Path) -> Hunyuan15TextExtractor:  # type: ignore[override]
        config = Hunyuan15TextConfig.hunyuan_video_15(str(hunyuan15), dtype="float32")
        prompt = replace(config.prompt, system_message="Describe.", crop_start=20, max_tokens=40)
        return Hunyuan15TextExtractor(replace(config, prompt=prompt))


@pytest.mark.filterwarnings("ignore:text has")
def test_threads_do_not_read_each_others_padding(tmp_path: Path) -> None:
    """A tokenizer keeps the padding and truncation of its last call."""
    language = LanguageModel(save_tokenizer(tmp_path), torch.nn.Linear(1, 1), name="tiny")
    calls = [(text, length) for text in ("a", "b" * 30) for length in (8, 31)]
    want = {call: language.tokenize([call[0]], max_tokens=call[1]) for call in calls}

    def same(number: int) -> bool:
        text, length = call = calls[number % len(calls)]
        got = language.tokenize([text], max_tokens=length)
        return all(torch.equal(mine, alone) for mine, alone in zip(got, want[call], strict=True))

    before = sys.getswitchinterval()
    try:
        sys.setswitchinterval(1e-5)
        with ThreadPoolExecutor(8) as threads:
            assert all(threads.map(same, range(800)))
    finally:
        sys.setswitchinterval(before)
