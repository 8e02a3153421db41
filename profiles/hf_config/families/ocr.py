"""Text models of readers of pages: DeepSeek-OCR 2 and Baidu's Unlimited-OCR, DeepSeek-V2s with plain attention."""

from __future__ import annotations

from dataclasses import replace

from profiles.hf_config.families.deepseek import listed_or_dense_first
from profiles.hf_config.families.family import Family
from profiles.hf_config.fields import Fields
from profiles.hf_config.parts.attention import grouped_query_attention
from profiles.hf_config.parts.decoder import decoder, every_layer
from profiles.tensors import ModelTensors


def _deepseek_ocr2_text(fields: Fields) -> ModelTensors:
    bias = fields.flag("attention_bias", False)
    attention = grouped_query_attention(fields, bias=bias, out_bias=bias)
    return decoder(
        fields, every_layer(attention), listed_or_dense_first(fields, 1, bias=fields.flag("mlp_bias", False))
    )


def _unlimited_ocr_text(fields: Fields) -> ModelTensors:
    """Its window holds for generated tokens only; those of the prompt and its images all stay, and are counted."""
    model = _deepseek_ocr2_text(fields)
    note = "the window holds for generated tokens only; the cache is counted without it"
    return replace(model, notes=(*model.notes, note))


FAMILIES = {
    "deepseek_ocr2_text": Family(_deepseek_ocr2_text),
    "unlimited_ocr_text": Family(_unlimited_ocr_text),
}
