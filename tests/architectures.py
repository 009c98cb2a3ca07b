"""Tiny random models of many architectures, and the inputs that each of them takes.

    >>> llama = ARCHITECTURES["llama"]
    >>> model = llama.build(seed=0, dtype=torch.float32, attention="eager")
    >>> inputs = llama.inputs([[5, 6, 7], [8, 9]], pad_to=5, side="left")
    >>> sorted(inputs), tuple(inputs["input_ids"].shape)
    (['attention_mask', 'input_ids', 'position_ids'], (2, 5))

A model initialised the usual way (standard deviation 0.02) attends almost uniformly and hides
effects by a factor of hundreds, so every weight is drawn again here, wider, and every norm is
moved away from ones and zeros.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import transformers as tf
from torch import nn

VOCABULARY = 101
"""Size of every vocabulary; a prime, so that it can't pass for another size."""

PAD = 0
"""The token id that fills padding. No prompt holds it."""

Rows = Sequence[Sequence[int]]
Side = Literal["left", "right"]


@dataclass(frozen=True)
class Architecture:
    """How to make one kind of tiny model and its inputs."""

    name: str
    make_config: Callable[[], Any]
    """Makes the configuration."""
    model_class: type
    """Made with `model_class._from_config`."""
    positions: bool = False
    """Whether `generate` gives it position ids made from the mask."""
    decoder: bool = False
    """Whether it takes `decoder_input_ids` too."""
    attentions: tuple[str, ...] = ("eager", "sdpa")
    """The attention implementations that it has."""
    causal: bool = True
    """Whether a token sees only the tokens before it."""
    mask: bool = True
    """Whether it takes an attention mask."""
    input_features: Callable[[int], dict[str, torch.Tensor]] | None = None
    """Makes the inputs for that many samples, where they aren't token ids."""
    scale: float = 0.25
    """Standard deviation of the weights."""

    def build(
        self, seed: int = 0, dtype: torch.dtype = torch.float32, attention: str = "eager", **changes: Any
    ) -> nn.Module:
        """A model in eval mode. `changes` are attributes of the configuration to set first."""
        config = self.make_config()
        for name, value in changes.items():
            setattr(config, name, value)
        model = self.model_class._from_config(config, dtype=dtype, attn_implementation=attention)
        redraw_weights(model, seed, self.scale)
        return model.eval()

    def inputs(
        self,
        rows: Rows,
        pad_to: int | None = None,
        side: Side = "right",
        decoder_rows: Rows | None = None,
    ) -> dict[str, torch.Tensor]:
        """Keyword arguments for one forward call on `rows` of token ids, padded to `pad_to`."""
        if self.input_features is not None:
            return self.input_features(len(rows))
        ids, mask = pad(rows, pad_to, side)
        inputs = {"input_ids": ids}
        if self.mask:
            inputs["attention_mask"] = mask
        if self.positions:
            positions = mask.cumsum(-1) - 1
            inputs["position_ids"] = positions.masked_fill(mask == 0, 0)
        if self.decoder:
            inputs["decoder_input_ids"] = torch.tensor(decoder_rows or [answer(row) for row in rows])
        return inputs


def pad(rows: Rows, pad_to: int | None, side: Side) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, both `[len(rows), pad_to]`."""
    width = max(*map(len, rows), pad_to or 0)
    ids = torch.full((len(rows), width), PAD)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for index, row in enumerate(rows):
        columns = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[index, columns] = torch.tensor(row)
        mask[index, columns] = 1
    return ids, mask


def prompt(length: int, seed: int = 0) -> list[int]:
    """Random token ids, none of them special."""
    numbers = random.Random(f"{length} {seed}")
    return [numbers.randrange(3, VOCABULARY) for _ in range(length)]


def answer(row: Sequence[int], length: int = 5) -> list[int]:
    """What the decoder of a two-stream model is given for a prompt."""
    return [PAD, *prompt(length - 1, seed=sum(row))]


def redraw_weights(model: nn.Module, seed: int, scale: float) -> None:
    """Draws weights of two dimensions or more anew, and shifts the others (norms, biases)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            fan_in = parameter.shape[-1] if parameter.dim() > 1 else 1
            if "A_log" in name or "time_decay" in name:
                parameter += 0.1 * noise.to(parameter.dtype)
            elif parameter.dim() < 2:
                parameter += 0.2 * noise.to(parameter.dtype)
            else:
                # A fan-in beyond 64 would let the values explode, at the same spread.
                parameter.copy_(noise * min(scale, 2.0 / fan_in**0.5))


def _sizes(**more: Any) -> dict[str, Any]:
    """The sizes under their most frequent names."""
    return dict(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        pad_token_id=PAD,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.25,
        **more,
    )


def _gpt2_sizes(**more: Any) -> dict[str, Any]:
    """The sizes under the names of GPT-2's family."""
    return dict(
        vocab_size=VOCABULARY,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=128,
        pad_token_id=PAD,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.25,
        **more,
    )


def _mamba2_config() -> Any:
    # The chunk's length equals no other size.
    return tf.Mamba2Config(
        vocab_size=VOCABULARY, hidden_size=32, state_size=12, num_hidden_layers=2, num_heads=4, head_dim=16,
        expand=2, n_groups=2, chunk_size=7, pad_token_id=PAD, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip


def _whisper_config() -> Any:
    return tf.WhisperConfig(
        vocab_size=VOCABULARY, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, num_mel_bins=8,
        max_source_positions=20, max_target_positions=32, pad_token_id=PAD, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=1, suppress_tokens=[], begin_suppress_tokens=[],
    )  # fmt: skip


def _whisper_inputs(samples: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    ids = torch.tensor([[1, *prompt(5, seed)] for seed in range(samples)])
    return {"input_features": torch.randn(samples, 8, 40, generator=generator), "decoder_input_ids": ids}


def _wav2vec2_config() -> Any:
    return tf.Wav2Vec2Config(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        conv_dim=(16, 16), conv_kernel=(5, 3), conv_stride=(3, 2), num_feat_extract_layers=2,  # pyright: ignore[reportCallIssue]
        num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2, feat_extract_norm="layer",
        do_stable_layer_norm=True,
    )  # fmt: skip


def _wav2vec2_inputs(samples: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    mask = torch.ones(samples, 97, dtype=torch.long)
    mask[-1, 70:] = 0
    return {"input_values": torch.randn(samples, 97, generator=generator), "attention_mask": mask}


def _vit_inputs(samples: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {"pixel_values": torch.randn(samples, 3, 16, 16, generator=generator)}


_ALL = (
    Architecture(
        "llama",
        lambda: tf.LlamaConfig(**_sizes(num_key_value_heads=2)),
        tf.LlamaForCausalLM,
        positions=True,
    ),
    Architecture(
        "gpt2",
        lambda: tf.GPT2Config(**_gpt2_sizes()),
        tf.GPT2LMHeadModel,
        positions=True,
    ),
    Architecture(
        "opt",
        lambda: tf.OPTConfig(
            vocab_size=VOCABULARY, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=128, word_embed_proj_dim=32, pad_token_id=PAD, bos_token_id=1, eos_token_id=2,
        ),
        tf.OPTForCausalLM,
        positions=True,
    ),
    Architecture(
        "qwen3",
        lambda: tf.Qwen3Config(**_sizes(num_key_value_heads=2, head_dim=12)),
        tf.Qwen3ForCausalLM,
        positions=True,
    ),
    Architecture(
        "gemma2",
        lambda: tf.Gemma2Config(
            **_sizes(num_key_value_heads=2, head_dim=12, sliding_window=6, query_pre_attn_scalar=12)
        ),
        tf.Gemma2ForCausalLM,
        positions=True,
        attentions=("eager",),
    ),
    Architecture(
        "phi3",
        lambda: tf.Phi3Config(**_sizes(num_key_value_heads=2)),
        tf.Phi3ForCausalLM,
        positions=True,
    ),
    Architecture(
        "falcon",
        lambda: tf.FalconConfig(
            vocab_size=VOCABULARY, hidden_size=32, ffn_hidden_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_kv_heads=2, new_decoder_architecture=True, max_position_embeddings=128, pad_token_id=PAD,
            bos_token_id=1, eos_token_id=2, alibi=False, bias=True,
        ),
        tf.FalconForCausalLM,
        positions=True,
    ),
    Architecture(
        "gpt_neox",
        lambda: tf.GPTNeoXConfig(**_sizes()),
        tf.GPTNeoXForCausalLM,
        positions=True,
    ),
    Architecture(
        "mixtral",
        lambda: tf.MixtralConfig(**_sizes(num_key_value_heads=2, num_local_experts=5, num_experts_per_tok=2)),
        tf.MixtralForCausalLM,
        positions=True,
    ),
    Architecture("mamba2", _mamba2_config, tf.Mamba2ForCausalLM, attentions=("eager",)),
    Architecture("bert", lambda: tf.BertConfig(**_sizes()), tf.BertModel, causal=False),
    Architecture(
        "t5",
        lambda: tf.T5Config(
            vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_decoder_layers=2, num_heads=4,
            relative_attention_num_buckets=8, relative_attention_max_distance=16, pad_token_id=PAD, eos_token_id=2,
            decoder_start_token_id=PAD,  # pyright: ignore[reportCallIssue]
        ),
        tf.T5ForConditionalGeneration,
        decoder=True,
        causal=False,
    ),
    # From here on: not among the twelve of the oracle.
    Architecture(
        "mistral",
        lambda: tf.MistralConfig(**_sizes(num_key_value_heads=2, sliding_window=6)),
        tf.MistralForCausalLM,
        positions=True,
    ),
    Architecture("roberta", lambda: tf.RobertaConfig(**_sizes()), tf.RobertaModel, causal=False),
    Architecture(
        "distilbert",
        lambda: tf.DistilBertConfig(
            vocab_size=VOCABULARY, dim=32, hidden_dim=48, n_layers=2, n_heads=4, max_position_embeddings=128,
            pad_token_id=PAD,
        ),
        tf.DistilBertModel,
        causal=False,
    ),
    Architecture(
        "bart",
        lambda: tf.BartConfig(
            vocab_size=VOCABULARY, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=128,
            pad_token_id=PAD, bos_token_id=1, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=None,
        ),
        tf.BartForConditionalGeneration,
        decoder=True,
        causal=False,
    ),
    Architecture(
        "bloom",
        lambda: tf.BloomConfig(
            vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4, pad_token_id=PAD, bos_token_id=1,
            eos_token_id=2,
        ),
        tf.BloomForCausalLM,
        attentions=("eager",),
    ),
    Architecture(
        "mpt",
        lambda: tf.MptConfig(
            vocab_size=VOCABULARY, d_model=32, n_heads=4, n_layers=2, max_seq_len=128, expansion_ratio=2,
            pad_token_id=PAD, bos_token_id=1, eos_token_id=2,
        ),
        tf.MptForCausalLM,
        attentions=("eager",),
    ),
    Architecture(
        "qwen2",
        lambda: tf.Qwen2Config(**_sizes(num_key_value_heads=2)),
        tf.Qwen2ForCausalLM,
        positions=True,
    ),
    Architecture(
        "qwen2_moe",
        lambda: tf.Qwen2MoeConfig(
            **_sizes(
                num_key_value_heads=2, num_experts=5, num_experts_per_tok=2, moe_intermediate_size=24,
                shared_expert_intermediate_size=24,
            )
        ),
        tf.Qwen2MoeForCausalLM,
        positions=True,
    ),
    Architecture(
        "gemma",
        lambda: tf.GemmaConfig(**_sizes(num_key_value_heads=1, head_dim=12)),
        tf.GemmaForCausalLM,
        positions=True,
    ),
    Architecture(
        "gemma3",
        lambda: tf.Gemma3TextConfig(
            **_sizes(num_key_value_heads=2, head_dim=12, sliding_window=6, query_pre_attn_scalar=12),
            layer_types=["sliding_attention", "full_attention"],
        ),
        tf.Gemma3ForCausalLM,
        positions=True,
    ),
    Architecture(
        "stablelm",
        lambda: tf.StableLmConfig(**_sizes(num_key_value_heads=2)),
        tf.StableLmForCausalLM,
        positions=True,
    ),
    Architecture(
        "cohere",
        lambda: tf.CohereConfig(**_sizes(num_key_value_heads=2)),
        tf.CohereForCausalLM,
        positions=True,
    ),
    Architecture(
        "olmo2",
        lambda: tf.Olmo2Config(**_sizes(num_key_value_heads=2)),
        tf.Olmo2ForCausalLM,
        positions=True,
    ),
    Architecture(
        "gptj",
        lambda: tf.GPTJConfig(**_gpt2_sizes(rotary_dim=4)),
        tf.GPTJForCausalLM,
        positions=True,
        attentions=("eager",),
    ),
    Architecture(
        "mamba",
        lambda: tf.MambaConfig(
            vocab_size=VOCABULARY, hidden_size=32, state_size=6, num_hidden_layers=2, time_step_rank=4,
            pad_token_id=PAD, bos_token_id=1, eos_token_id=2,
        ),
        tf.MambaForCausalLM,
        attentions=("eager",),
    ),
    Architecture(
        "electra",
        lambda: tf.ElectraConfig(**_sizes(embedding_size=24)),
        tf.ElectraModel,
        causal=False,
    ),
    Architecture(
        "fnet",
        lambda: tf.FNetConfig(**{k: v for k, v in _sizes().items() if k != "num_attention_heads"}),
        tf.FNetModel,
        attentions=("eager",),
        causal=False,
        mask=False,
    ),
    Architecture("whisper", _whisper_config, tf.WhisperForConditionalGeneration, input_features=_whisper_inputs),
    Architecture("wav2vec2", _wav2vec2_config, tf.Wav2Vec2ForCTC, input_features=_wav2vec2_inputs, causal=False),
    Architecture(
        "vit",
        lambda: tf.ViTConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=16,
            patch_size=4,
        ),
        tf.ViTModel,
        input_features=_vit_inputs,
        causal=False,
    ),
    Architecture(
        "granite",
        lambda: tf.GraniteConfig(**_sizes(num_key_value_heads=2)),
        tf.GraniteForCausalLM,
        positions=True,
    ),
    Architecture(
        "starcoder2",
        lambda: tf.Starcoder2Config(**_sizes(num_key_value_heads=2)),
        tf.Starcoder2ForCausalLM,
        positions=True,
    ),
    Architecture(
        "gpt_neo",
        lambda: tf.GPTNeoConfig(
            vocab_size=VOCABULARY, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]],
            max_position_embeddings=128, window_size=6, pad_token_id=PAD, bos_token_id=1, eos_token_id=2,
        ),
        tf.GPTNeoForCausalLM,
        positions=True,
        attentions=("eager",),
    ),
    Architecture(
        "deberta",
        lambda: tf.DebertaV2Config(**_sizes(relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=8)),
        tf.DebertaV2Model,
        attentions=("eager",),
        causal=False,
    ),
)  # fmt: skip

ARCHITECTURES: dict[str, Architecture] = {architecture.name: architecture for architecture in _ALL}

REQUIRED: tuple[str, ...] = tuple(ARCHITECTURES)[:12]
"""The architectures that the brute-force oracle is run on."""
