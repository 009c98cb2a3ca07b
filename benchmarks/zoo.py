"""The architectures of the table: those of the tests, and many more of transformers, tiny and random.

A configuration gets the sizes under whatever name it has for them, and then what is its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import transformers as tf
from tests.architectures import ARCHITECTURES, PAD, VOCABULARY, Architecture

SIZES: Mapping[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "emb_dim"), 32),
    **dict.fromkeys(("intermediate_size", "d_ff", "ffn_dim", "d_inner", "encoder_ffn_dim", "decoder_ffn_dim"), 48),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "num_encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "num_heads", "n_head", "n_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_encoder_attention_heads", "num_decoder_attention_heads"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx"), 128),
    "num_key_value_heads": 2, "head_dim": 8, "d_kv": 8, "vocab_size": VOCABULARY, "pad_token_id": PAD, "bos_token_id": 1,
    "eos_token_id": 2, "embedding_size": 24, "image_size": 16, "patch_size": 4,
}  # fmt: skip
"""Sizes, by every name that a configuration may have for them."""

EXPERTS: Mapping[str, Any] = {
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 5),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_top_k"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 24),
}


def config_of(kind: type, own: Mapping[str, Any]) -> Any:
    """A configuration of a class, tiny."""
    known = inspect.signature(kind).parameters
    return kind(**{name: size for name, size in SIZES.items() if name in known} | dict(own))


def text(
    name: str, model: str, config: str, *, own: Mapping[str, Any] | None = None, **kind: Any
) -> Architecture:
    """An architecture that takes token ids."""
    make = partial(config_of, getattr(tf, config), own or {})
    return Architecture(name, make, getattr(tf, model), **kind)


def decoder(name: str, stem: str, **own: Any) -> Architecture:
    return text(name, f"{stem}ForCausalLM", f"{stem}Config", own=own)


def encoder(name: str, stem: str, **own: Any) -> Architecture:
    return text(name, f"{stem}Model", f"{stem}Config", own=own, causal=False)


def two_streams(name: str, stem: str, **own: Any) -> Architecture:
    return text(name, f"{stem}ForConditionalGeneration", f"{stem}Config", own=own, causal=False, decoder=True)


# --- what is no text -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Media:
    """Inputs of a model that takes something else than token ids alone.

    Attributes:
        row: makes one sample's inputs, each `[1, ...]`, from a generator.
        padded: given one sample's inputs, the same with padding on the right and the mask that says so; None where the
            model takes no padding.
    """

    row: Callable[[torch.Generator], dict[str, torch.Tensor]]
    padded: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]] | None = None


def _pixels(generator: torch.Generator, side: int = 16) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(1, 3, side, side, generator=generator)}


def _wave(generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {
        "input_values": torch.randn(1, 70, generator=generator),
        "attention_mask": torch.ones(1, 70, dtype=torch.long),
    }


def _features(
    generator: torch.Generator, name: str = "input_features", size: int = 8
) -> dict[str, torch.Tensor]:
    return {
        name: torch.randn(1, 12, size, generator=generator),
        "attention_mask": torch.ones(1, 12, dtype=torch.long),
    }


def _longer(inputs: dict[str, torch.Tensor], more: int = 27) -> dict[str, torch.Tensor]:
    """Sound with silence behind it, and the mask."""
    found: dict[str, torch.Tensor] = {}
    for name, value in inputs.items():
        of_time = name in ("input_values", "input_features", "attention_mask")
        found[name] = torch.cat([value, value.new_zeros(1, more, *value.shape[2:])], 1) if of_time else value
    return found


def _larger(inputs: dict[str, torch.Tensor], side: int = 32) -> dict[str, torch.Tensor]:
    """An image in the upper left corner of a larger one, and the mask."""
    pixels = inputs["pixel_values"]
    whole = pixels.new_zeros(*pixels.shape[:2], side, side)
    whole[..., : pixels.shape[2], : pixels.shape[3]] = pixels
    mask = torch.zeros(1, side, side, dtype=torch.long)
    mask[:, : pixels.shape[2], : pixels.shape[3]] = 1
    return {**inputs, "pixel_values": whole, "pixel_mask": mask}


def _masked_pixels(generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {**_pixels(generator), "pixel_mask": torch.ones(1, 16, 16, dtype=torch.long)}


def _ids(generator: torch.Generator, length: int = 6, leading: tuple[int, ...] = ()) -> torch.Tensor:
    drawn = torch.randint(3, VOCABULARY - 1, (1, length), generator=generator)
    return torch.cat([torch.tensor([leading], dtype=torch.long), drawn], 1)


def _captioned(generator: torch.Generator) -> dict[str, torch.Tensor]:
    ids = _ids(generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **_pixels(generator)}


def _told(inputs: dict[str, torch.Tensor], more: int = 5) -> dict[str, torch.Tensor]:
    """A caption with padding behind it, and the mask."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    return {
        **inputs,
        "input_ids": torch.cat([ids, ids.new_full((1, more), PAD)], 1),
        "attention_mask": torch.cat([mask, mask.new_zeros(1, more)], 1),
    }


IMAGE = VOCABULARY - 1
"""The token id that stands for a part of an image."""


def _seen(generator: torch.Generator, parts: int = 16) -> dict[str, torch.Tensor]:
    ids = _ids(generator, leading=(IMAGE,) * parts)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **_pixels(generator)}


def _transcribed(generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {
        "input_features": torch.randn(1, 8, 40, generator=generator),
        "decoder_input_ids": _ids(generator),
    }


def _voiced(generator: torch.Generator, row: Callable[..., Any] = _wave) -> dict[str, torch.Tensor]:
    return {**row(generator), "decoder_input_ids": _ids(generator)}


def _image(name: str, stem: str, **own: Any) -> Architecture:
    return text(name, f"{stem}Model", f"{stem}Config", own=own, causal=False)


_WAVE: Mapping[str, Any] = {
    "conv_dim": (16, 16), "conv_kernel": (5, 3), "conv_stride": (3, 2), "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
}  # fmt: skip


def _sound(name: str, stem: str, **own: Any) -> Architecture:
    return text(name, f"{stem}ForCTC", f"{stem}Config", own=own, causal=False)


_VISION: Mapping[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 16,
    "patch_size": 4, "projection_dim": 16,
}  # fmt: skip
_TEXT: Mapping[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": VOCABULARY,
    "max_position_embeddings": 128, "pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": 2, "projection_dim": 16,
}  # fmt: skip


def _pair(name: str, stem: str, **own: Any) -> Architecture:
    sizes = {"text_config": dict(_TEXT), "vision_config": dict(_VISION), "projection_dim": 16, **own}
    return text(name, f"{stem}Model", f"{stem}Config", own=sizes, causal=False)


def _llava(name: str, stem: str, model: str, **own: Any) -> Architecture:
    sizes = {
        "text_config": {**_TEXT, "model_type": "llama", "num_key_value_heads": 2},
        "vision_config": {**_VISION, "model_type": "clip_vision_model"}, "image_token_index": IMAGE, **own,
    }  # fmt: skip
    return text(name, model, f"{stem}Config", own=sizes)


_MORE = (
    decoder("gpt_bigcode", "GPTBigCode"),
    decoder("codegen", "CodeGen", rotary_dim=4),
    decoder("biogpt", "BioGpt"),
    decoder("xglm", "XGLM", attention_heads=4, num_layers=2),
    decoder("phi", "Phi", num_key_value_heads=4),
    decoder("persimmon", "Persimmon"),
    decoder("nemotron", "Nemotron"),
    decoder("glm", "Glm"),
    decoder("cohere2", "Cohere2", sliding_window=6),
    text("gemma3", "Gemma3ForCausalLM", "Gemma3TextConfig", own={"sliding_window": 6, "query_pre_attn_scalar": 8}),
    decoder("olmo3", "Olmo3", sliding_window=6),
    decoder("helium", "Helium"),
    decoder("smollm3", "SmolLM3"),
    decoder("exaone4", "Exaone4", sliding_window=6),
    decoder("bitnet", "BitNet"),
    decoder("diffllama", "DiffLlama"),
    text("ctrl", "CTRLLMHeadModel", "CTRLConfig", own={"dff": 48}),
    text("openai_gpt", "OpenAIGPTLMHeadModel", "OpenAIGPTConfig"),
    decoder("granitemoe", "GraniteMoe", **{k: v for k, v in EXPERTS.items() if k in ("num_local_experts", "num_experts_per_tok")}),
    decoder("olmoe", "Olmoe", num_experts=5, num_experts_per_tok=2),
    decoder("qwen3_moe", "Qwen3Moe", num_experts=5, num_experts_per_tok=2, moe_intermediate_size=24),
    decoder("phimoe", "Phimoe", num_local_experts=5),
    decoder("gpt_oss", "GptOss", num_local_experts=5, num_experts_per_tok=2, sliding_window=6),
    decoder(
        "deepseek_v3", "DeepseekV3", n_routed_experts=8, n_group=2, topk_group=1, num_experts_per_tok=2,
        moe_intermediate_size=24, first_k_dense_replace=1, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8,
        qk_nope_head_dim=8, v_head_dim=8, num_key_value_heads=4,
    ),
    decoder("falcon_mamba", "FalconMamba", state_size=6, time_step_rank=4),
    decoder("rwkv", "Rwkv", attention_hidden_size=32, context_length=128),
    decoder(
        "jamba", "Jamba", attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1,
        num_experts=5, mamba_d_state=6, mamba_dt_rank=4, use_mamba_kernels=False,
    ),
    decoder(
        "bamba", "Bamba", attn_layer_indices=[1], mamba_n_heads=8, mamba_d_head=8, mamba_d_state=12, mamba_chunk_size=7,
        mamba_n_groups=1,
    ),
    decoder(
        "recurrent_gemma", "RecurrentGemma", lru_width=32, attention_window_size=6, num_hidden_layers=3, head_dim=8,
    ),
    decoder("lfm2", "Lfm2", full_attn_idxs=[1], block_multiple_of=8),
    decoder(
        "qwen3_next", "Qwen3Next", num_experts=5, num_experts_per_tok=2, moe_intermediate_size=24,
        shared_expert_intermediate_size=24, linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8,
        linear_value_head_dim=8, layer_types=["linear_attention", "full_attention"],
    ),
    decoder("falcon_h1", "FalconH1", mamba_d_ssm=64, mamba_n_heads=8, mamba_d_head=8, mamba_d_state=12, mamba_n_groups=1, mamba_chunk_size=7),
    encoder("albert", "Albert"),
    encoder("xlm_roberta", "XLMRoberta"),
    encoder("mpnet", "MPNet"),
    encoder("modernbert", "ModernBert", local_attention=6),
    encoder("longformer", "Longformer", attention_window=4),
    encoder("big_bird", "BigBird", block_size=4, num_random_blocks=1),
    encoder("nystromformer", "Nystromformer", num_landmarks=4, segment_means_seq_len=4, conv_kernel_size=3),
    encoder("funnel", "Funnel", block_sizes=[1, 1], d_head=8, num_decoder_layers=1),
    encoder("convbert", "ConvBert", conv_kernel_size=3),
    encoder("squeezebert", "SqueezeBert", embedding_size=32),
    encoder("mobilebert", "MobileBert", intra_bottleneck_size=16),
    encoder("deberta_v1", "Deberta", relative_attention=True, pos_att_type=["p2c", "c2p"]),
    encoder("roformer", "RoFormer"),
    encoder("ibert", "IBert"),
    encoder("esm", "Esm", position_embedding_type="rotary", mask_token_id=3),
    encoder("xlm", "XLM"),
    encoder("xlnet", "XLNet"),
    encoder("layoutlm", "LayoutLM"),
    two_streams("mbart", "MBart"),
    two_streams("pegasus", "Pegasus"),
    two_streams("umt5", "UMT5", decoder_start_token_id=PAD),
    two_streams("longt5", "LongT5", decoder_start_token_id=PAD, local_radius=3),
    two_streams("led", "LED", attention_window=4, max_encoder_position_embeddings=128, max_decoder_position_embeddings=128),
    two_streams("m2m_100", "M2M100", decoder_start_token_id=2),
    two_streams("prophetnet", "ProphetNet", decoder_start_token_id=1),
    two_streams("switch_transformers", "SwitchTransformers", decoder_start_token_id=PAD, num_experts=4, num_sparse_encoder_layers=1, num_sparse_decoder_layers=1),
    _image("deit", "DeiT"),
    _image("beit", "Beit"),
    _image("swin", "Swin", embed_dim=16, depths=[1, 1], num_heads=[2, 4], window_size=2, patch_size=2),
    _image("convnext", "ConvNext", hidden_sizes=[8, 16, 16, 16], depths=[1, 1, 1, 1], patch_size=2),
    _image("dinov2", "Dinov2"),
    _image("resnet", "ResNet", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]),
    _image("segformer", "Segformer", hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=16),
    _image("yolos", "Yolos", image_size=[16, 16], num_detection_tokens=3),
    _image(
        "detr", "Detr", num_queries=5,
        backbone_config=tf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], out_features=["stage2"]),
    ),
    _image("vilt", "Vilt"),
    _sound("hubert", "Hubert", **_WAVE),
    _sound("wavlm", "WavLM", **_WAVE),
    _sound("wav2vec2_conformer", "Wav2Vec2Conformer", **_WAVE),
    _sound("wav2vec2_bert", "Wav2Vec2Bert", feature_projection_input_dim=8),
    text(
        "speech_to_text", "Speech2TextForConditionalGeneration", "Speech2TextConfig",
        own={"input_feat_per_channel": 8, "conv_channels": 16, "conv_kernel_sizes": [3, 3], "max_source_positions": 64,
             "max_target_positions": 64, "decoder_start_token_id": 2}, causal=False,
    ),
    _pair("clip", "CLIP"),
    _pair("siglip", "Siglip"),
    _llava("llava", "Llava", "LlavaForConditionalGeneration"),
)  # fmt: skip

ZOO: dict[str, Architecture] = ARCHITECTURES | {architecture.name: architecture for architecture in _MORE}
"""All of them, by name."""

MEDIA: dict[str, Media] = {
    **dict.fromkeys(("vit", "deit", "beit", "dinov2", "yolos"), Media(_pixels)),
    **dict.fromkeys(("swin", "convnext", "resnet", "segformer"), Media(partial(_pixels, side=32))),
    "detr": Media(partial(_masked_pixels), _larger),
    "vilt": Media(_captioned, _told),
    **dict.fromkeys(("wav2vec2", "hubert", "wavlm", "wav2vec2_conformer"), Media(_wave, _longer)),
    "wav2vec2_bert": Media(_features, _longer),
    "speech_to_text": Media(partial(_voiced, row=_features), _longer),
    "whisper": Media(_transcribed),
    "clip": Media(_captioned, _told),
    "siglip": Media(_captioned),
    "llava": Media(_seen, _told),
}  # fmt: skip
"""How those get their inputs that take no token ids, or something besides."""
