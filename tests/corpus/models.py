"""Tiny models of transformers, random and seeded, in eval mode.

Their `initializer_range` is wide: at the usual 0.02 a random model attends almost uniformly and
hides every effect. Biases, zero by default, are random too, since faults often show through them.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers as tf
from torch import nn

from .tokens import BOS, EOS, PAD, VOCABULARY

SPREAD = 0.2


def build(model_class: Any, config: Any, attn: str | None = None, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    how = {} if attn is None else {"attn_implementation": attn}
    model = model_class._from_config(config, **how)
    return shake(model).eval()


def shake(model: nn.Module) -> nn.Module:
    """Make biases random and the scales of norms unequal."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 and name.endswith("bias"):
                parameter.normal_(0, 0.2)
            elif parameter.dim() == 1 and "norm" in name.lower():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def cast(model: Any, dtype: torch.dtype) -> Any:
    """Parameters in another dtype; buffers (rotary tables) stay, as with `from_pretrained(dtype=...)`."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def _config(config_class: Any, **given: Any) -> Any:
    special = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
    return config_class(**{**special, **given})


def _decoder(config_class: Any, **over: Any) -> Any:
    shape = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": SPREAD,
        "tie_word_embeddings": False,
    }
    return _config(config_class, **{**shape, **over})


def llama(attn: str | None = None, seed: int = 0, **over: Any) -> Any:
    return build(tf.LlamaForCausalLM, _decoder(tf.LlamaConfig, **over), attn, seed)


def mistral(attn: str | None = None, seed: int = 0, window: int | None = 4, **over: Any) -> Any:
    config = _decoder(tf.MistralConfig, sliding_window=window, **over)
    return build(tf.MistralForCausalLM, config, attn, seed)


def phi3(original: int = 12, attn: str | None = None, seed: int = 0) -> Any:
    """LongRoPE that takes its long factors beyond `original` positions."""
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 8,
        "long_factor": [1.0 + 0.6 * index for index in range(8)],
        "original_max_position_embeddings": original,
    }
    config = _decoder(
        tf.Phi3Config, rope_parameters=rope, original_max_position_embeddings=original, num_key_value_heads=4
    )
    return build(tf.Phi3ForCausalLM, config, attn, seed)


def mixtral(attn: str | None = None, seed: int = 0, **over: Any) -> Any:
    config = _decoder(tf.MixtralConfig, num_local_experts=4, num_experts_per_tok=2, **over)
    return build(tf.MixtralForCausalLM, config, attn, seed)


def gpt2(attn: str | None = None, seed: int = 0, **over: Any) -> Any:
    shape = {
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 64,
        "initializer_range": SPREAD,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
    }
    return build(tf.GPT2LMHeadModel, _config(tf.GPT2Config, **{**shape, **over}), attn, seed)


def opt(attn: str | None = None, seed: int = 0) -> Any:
    config = _config(
        tf.OPTConfig,
        hidden_size=64,
        word_embed_proj_dim=64,
        ffn_dim=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        init_std=SPREAD,
        dropout=0.0,
    )
    return build(tf.OPTForCausalLM, config, attn, seed)


def bloom(attn: str | None = None, seed: int = 0) -> Any:
    config = _config(
        tf.BloomConfig, hidden_size=64, n_layer=2, n_head=4, initializer_range=SPREAD, hidden_dropout=0.0
    )
    return build(tf.BloomForCausalLM, config, attn, seed)


def mamba(seed: int = 0) -> Any:
    config = _config(
        tf.MambaConfig,
        hidden_size=32,
        state_size=8,
        num_hidden_layers=2,
        initializer_range=SPREAD,
        time_step_rank=4,
    )
    return build(tf.MambaForCausalLM, config, None, seed)


def _encoder(config_class: Any, **over: Any) -> Any:
    shape = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "initializer_range": SPREAD,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    return _config(config_class, **{**shape, **over})


def bert(attn: str | None = None, seed: int = 0, **over: Any) -> Any:
    return build(tf.BertModel, _encoder(tf.BertConfig, **over), attn, seed)


def big_bird(seed: int = 0) -> Any:
    """Block-sparse attention, from more than 5 + 3 blocks of 4 columns on."""
    return build(tf.BigBirdModel, _encoder(tf.BigBirdConfig, block_size=4, num_random_blocks=1), None, seed)


def roberta(attn: str | None = None, seed: int = 0) -> Any:
    return build(tf.RobertaModel, _encoder(tf.RobertaConfig), attn, seed)


def fnet(seed: int = 0) -> Any:
    config = _config(
        tf.FNetConfig,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        max_position_embeddings=64,
        initializer_range=SPREAD,
        hidden_dropout_prob=0.0,
    )
    return build(tf.FNetModel, config, None, seed)


def t5(attn: str | None = None, seed: int = 0) -> Any:
    config = tf.T5Config(
        vocab_size=VOCABULARY,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        # T5 scales its initial weights by sizes itself; this makes attention sharp enough to show faults.
        initializer_factor=2.0,
        pad_token_id=PAD,
        eos_token_id=EOS,
        decoder_start_token_id=PAD,  # pyright: ignore[reportCallIssue]
    )
    return build(tf.T5ForConditionalGeneration, config, attn, seed)


def bart(attn: str | None = None, seed: int = 0) -> Any:
    config = _config(
        tf.BartConfig,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_position_embeddings=64,
        init_std=SPREAD,
        dropout=0.0,
        decoder_start_token_id=EOS,
    )
    return build(tf.BartForConditionalGeneration, config, attn, seed)


def switch(capacity: int, seed: int = 0) -> Any:
    """Encoder whose experts take only the first `capacity` tokens of a row."""
    config = tf.SwitchTransformersConfig(
        vocab_size=VOCABULARY,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_sparse_encoder_layers=2,
        num_heads=4,
        num_experts=2,
        expert_capacity=capacity,
        dropout_rate=0.0,
        initializer_factor=2.0,
        pad_token_id=PAD,
    )
    return build(tf.SwitchTransformersEncoderModel, config, None, seed)


def wav2vec2(norm: str = "group", attn: str | None = None, seed: int = 0) -> Any:
    config = tf.Wav2Vec2Config(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        conv_dim=(16, 16),
        conv_kernel=(4, 3),
        conv_stride=(2, 2),
        conv_bias=True,
        num_feat_extract_layers=2,  # pyright: ignore[reportCallIssue]
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        feat_extract_norm=norm,
        initializer_range=SPREAD,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        feat_proj_dropout=0.0,
        layerdrop=0.0,
        apply_spec_augment=False,
    )
    return build(tf.Wav2Vec2Model, config, attn, seed)


def vit(attn: str | None = None, seed: int = 0) -> Any:
    config = tf.ViTConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=16,
        patch_size=4,
        initializer_range=SPREAD,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return build(tf.ViTModel, config, attn, seed)
