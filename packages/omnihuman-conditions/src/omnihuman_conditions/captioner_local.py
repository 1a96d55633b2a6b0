"""Describes a picture with a vision-language model from a local directory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from omnihuman_conditions.captioner import INSTRUCTION, tidy, to_image
from omnihuman_conditions.pretrained import (
    WeightDtype,
    check_dtype,
    import_transformers,
    load_pretrained,
    load_processor,
    one_line,
)


@dataclass(frozen=True, kw_only=True)
class LocalCaptionerConfig:
    """Settings of a :class:`LocalCaptioner`.

    Attributes:
        path: Local directory of an image-text-to-text model in the transformers layout, with safetensors weights.
        instruction: What the model is asked; unused where its processor has no chat template.
        max_new_tokens: Longest answer.
        max_side: Larger pictures are scaled down to this many pixels.
        dtype: Precision of the weights.
    """

    path: str
    instruction: str
    max_new_tokens: int
    max_side: int
    dtype: WeightDtype

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.max_side < 1:
            raise ValueError(
                "LocalCaptionerConfig.max_new_tokens and max_side must be at least 1, "
                f"got {self.max_new_tokens} and {self.max_side}"
            )
        check_dtype("LocalCaptionerConfig.dtype", self.dtype)

    @classmethod
    def base(cls, path: str, *, dtype: WeightDtype = "bfloat16") -> Self:
        """Answers of up to 120 tokens on pictures of up to 768 pixels."""
        return cls(path=path, instruction=INSTRUCTION, max_new_tokens=120, max_side=768, dtype=dtype)


class LocalCaptioner:
    """Greedy answers of a local vision-language model; nothing is downloaded and no code of the directory is run."""

    config_class = LocalCaptionerConfig

    def __init__(self, config: LocalCaptionerConfig) -> None:
        """Load the model.

        Raises:
            ValueError: the directory is missing, damaged, or holds no model that describes pictures.
        """
        self.config = config
        self._processor = load_processor(config.path, "captioner processor", "AutoProcessor", extra="captioner")
        self._model = load_pretrained(
            config.path,
            "captioner",
            _classes(),
            extra="captioner",
            dtype=config.dtype,
        )

    def to(self, device: str | torch.device) -> Self:
        """Run on ``device`` from now on."""
        self._model.to(device)
        return self

    @torch.no_grad()
    def caption(self, picture: Tensor) -> str:
        """Prompt for a picture ``(3, H, W)`` in [-1, 1]; the same picture gives the same prompt.

        Raises:
            ValueError: another shape, or the model gives no description.
        """
        image = to_image(picture, max_side=self.config.max_side)
        with one_line(f"captioner in {self.config.path} cannot describe the picture"):
            inputs = self._inputs(image).to(self._model.device)
            dtype = next(iter(self._model.parameters())).dtype
            moved = {key: value.to(dtype) if value.is_floating_point() else value for key, value in inputs.items()}
            ids = self._model.generate(**moved, max_new_tokens=self.config.max_new_tokens, do_sample=False)
            # A decoder repeats the question before its answer; an encoder-decoder does not.
            asked = 0 if self._model.config.is_encoder_decoder else moved["input_ids"].shape[1]
            answer: str = self._processor.batch_decode(ids[:, asked:], skip_special_tokens=True)[0]
        return tidy(answer)

    def extract(self, raw: Tensor) -> str:
        """Same as :meth:`caption`."""
        return self.caption(raw)

    def _inputs(self, image: Any) -> Any:
        if not getattr(self._processor, "chat_template", None):
            return self._processor(images=image, return_tensors="pt")
        content = [{"type": "image"}, {"type": "text", "text": self.config.instruction}]
        chat = [{"role": "user", "content": content}]
        prompt = self._processor.apply_chat_template(chat, add_generation_prompt=True)
        return self._processor(images=[image], text=[prompt], return_tensors="pt")


def _classes() -> dict[str, str]:
    """Models of transformers that answer a picture and a text with a text, by ``model_type``."""
    import_transformers("captioner", "captioner")
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    return {
        kind: names if isinstance(names, str) else names[0]
        for kind, names in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.items()
    }
