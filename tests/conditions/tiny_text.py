"""Tokenizers of a few dozen tokens in the transformers layout, for tests of text extractors."""

from pathlib import Path

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
SPECIAL = ("<pad>", "<s>", "</s>", "<|start|>", "<|end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
VOCAB_SIZE = len(SPECIAL) + 97


def save_tokenizer(path: Path, *, begin: bool = False, end: bool = False, pad: bool = True) -> PreTrainedTokenizerFast:
    """One token per printable ASCII character; the begin and end tokens go round the text where asked for."""
    characters = [chr(code) for code in range(32, 127)] + ["\n"]
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *characters, "<unk>"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    single = [*(["<s>"] if begin else []), "$A", *(["</s>"] if end else [])]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=" ".join(single), special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>" if pad else None,
        additional_special_tokens=list(SPECIAL[3:]),
        chat_template=CHAT_TEMPLATE,
        padding_side="right",
    )
    fast.save_pretrained(path)
    return fast
