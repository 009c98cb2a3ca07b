"""Conversions of litgpt, and what goes wrong in them: the configuration, or the weights.

litgpt is no dependency; tests of it are skipped where it is not there.
"""

from __future__ import annotations

import litgpt.model as lm
import torch
import transformers as tf
from litgpt.config import Config
from litgpt.scripts import convert_hf_checkpoint as conv
from tests.ports.by_hand.parts import common, trained


def rope(theta=10000.0, **more):
    return {"rope_type": "default", "rope_theta": theta, **more}


COMMON = common()


def pythia():
    hf = tf.GPTNeoXForCausalLM(
        tf.GPTNeoXConfig(
            hidden_size=48,
            num_attention_heads=3,
            intermediate_size=80,
            vocab_size=101,
            max_position_embeddings=64,
            use_parallel_residual=True,
            hidden_act="gelu",
            rope_parameters=rope(partial_rotary_factor=0.25),
            **COMMON,
        )
    )
    return (
        hf,
        "pythia-14m",
        {
            "n_layer": 2,
            "n_embd": 48,
            "n_head": 3,
            "intermediate_size": 80,
            "padded_vocab_size": 101,
            "block_size": 64,
        },
        conv.copy_weights_gpt_neox,
        False,
    )


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def llama():
    hf = tf.LlamaForCausalLM(
        tf.LlamaConfig(
            hidden_size=32,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=56,
            vocab_size=97,
            rms_norm_eps=1e-5,
            max_position_embeddings=64,
            rope_parameters=rope(
                500000.0, **{**LLAMA3, "rope_type": "llama3"}, original_max_position_embeddings=32
            ),
            **COMMON,
        )
    )
    return (
        hf,
        "Llama-3.1-8B",
        {
            "n_layer": 2,
            "n_embd": 32,
            "n_head": 4,
            "n_query_groups": 2,
            "intermediate_size": 56,
            "padded_vocab_size": 97,
            "block_size": 64,
            "rope_adjustments": dict(LLAMA3, original_max_seq_len=32),
        },
        conv.copy_weights_hf_llama,
        True,
    )


def gemma2():
    hf = tf.Gemma2ForCausalLM(
        tf.Gemma2Config(
            hidden_size=32,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=12,
            intermediate_size=56,
            vocab_size=89,
            max_position_embeddings=64,
            sliding_window=4,
            query_pre_attn_scalar=20,
            rms_norm_eps=1e-6,
            attn_logit_softcapping=5.0,
            final_logit_softcapping=8.0,
            rope_parameters=rope(),
            **COMMON,
        )
    )
    return (
        hf,
        "Gemma-2-2b",
        {
            "n_layer": 2,
            "n_embd": 32,
            "n_head": 4,
            "n_query_groups": 2,
            "head_size": 12,
            "intermediate_size": 56,
            "padded_vocab_size": 89,
            "block_size": 64,
            "norm_eps": 1e-6,
            "sliding_window_size": 4,
            "sliding_window_indices": [1, 0],
            "attention_scores_scalar": 20,
            "attention_logit_softcapping": 5.0,
            "final_logit_softcapping": 8.0,
        },
        conv.copy_weights_gemma_2,
        True,
    )


def qwen3():
    hf = tf.Qwen3ForCausalLM(
        tf.Qwen3Config(
            hidden_size=32,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            intermediate_size=40,
            vocab_size=83,
            max_position_embeddings=64,
            rope_parameters=rope(1000000.0),
            tie_word_embeddings=False,
            **COMMON,
        )
    )
    return (
        hf,
        "Qwen3-8B",
        {
            "n_layer": 2,
            "n_embd": 32,
            "n_head": 4,
            "n_query_groups": 2,
            "head_size": 16,
            "intermediate_size": 40,
            "padded_vocab_size": 83,
            "block_size": 64,
        },
        conv.copy_weights_qwen_3,
        True,
    )


def qwen25():
    hf = tf.Qwen2ForCausalLM(
        tf.Qwen2Config(
            hidden_size=40,
            num_attention_heads=5,
            num_key_value_heads=1,
            intermediate_size=64,
            vocab_size=71,
            max_position_embeddings=64,
            rope_parameters=rope(1000000.0),
            rms_norm_eps=1e-6,
            tie_word_embeddings=True,
            **COMMON,
        )
    )
    return (
        hf,
        "Qwen2.5-0.5B",
        {
            "n_layer": 2,
            "n_embd": 40,
            "n_head": 5,
            "n_query_groups": 1,
            "intermediate_size": 64,
            "padded_vocab_size": 71,
            "block_size": 64,
        },
        conv.copy_weights_qwen_2_5,
        True,
    )


def phi2():
    hf = tf.PhiForCausalLM(
        tf.PhiConfig(
            hidden_size=40,
            num_attention_heads=2,
            intermediate_size=72,
            vocab_size=67,
            max_position_embeddings=64,
            rope_parameters=rope(partial_rotary_factor=0.4),
            hidden_act="gelu_new",
            **COMMON,
        )
    )
    return (
        hf,
        "phi-2",
        {
            "n_layer": 2,
            "n_embd": 40,
            "n_head": 2,
            "intermediate_size": 72,
            "padded_vocab_size": 67,
            "block_size": 64,
        },
        conv.copy_weights_phi,
        True,
    )


def phi3():
    hf = tf.Phi3ForCausalLM(
        tf.Phi3Config(
            hidden_size=32,
            num_attention_heads=4,
            num_key_value_heads=4,
            intermediate_size=44,
            vocab_size=79,
            pad_token_id=0,
            max_position_embeddings=64,
            original_max_position_embeddings=64,
            rope_parameters=rope(),
            tie_word_embeddings=False,
            sliding_window=None,
            **COMMON,
        )
    )
    return (
        hf,
        "Phi-3-mini-4k-instruct",
        {
            "n_layer": 2,
            "n_embd": 32,
            "n_head": 4,
            "intermediate_size": 44,
            "padded_vocab_size": 79,
            "block_size": 64,
            "sliding_window_size": None,
        },
        conv.copy_weights_phi,
        True,
    )


def falcon():
    hf = tf.FalconForCausalLM(
        tf.FalconConfig(
            hidden_size=36,
            num_attention_heads=3,
            vocab_size=73,
            new_decoder_architecture=False,
            multi_query=True,
            parallel_attn=True,
            bias=False,
            alibi=False,
            max_position_embeddings=64,
            rope_parameters=rope(),
            tie_word_embeddings=False,
            **COMMON,
        )
    )
    return (
        hf,
        "falcon-7b",
        {
            "n_layer": 2,
            "n_embd": 36,
            "n_head": 3,
            "n_query_groups": 1,
            "padded_vocab_size": 73,
            "block_size": 64,
        },
        conv.copy_weights_falcon,
        False,
    )


def olmo2():
    hf = tf.Olmo2ForCausalLM(
        tf.Olmo2Config(
            hidden_size=32,
            num_attention_heads=4,
            num_key_value_heads=4,
            intermediate_size=60,
            vocab_size=61,
            pad_token_id=0,
            max_position_embeddings=64,
            rope_parameters=rope(500000.0),
            rms_norm_eps=1e-6,
            **COMMON,
        )
    )
    return (
        hf,
        "OLMo-2-1124-7B",
        {
            "n_layer": 2,
            "n_embd": 32,
            "n_head": 4,
            "n_query_groups": 4,
            "intermediate_size": 60,
            "padded_vocab_size": 61,
            "block_size": 64,
        },
        conv.copy_weights_olmo2,
        True,
    )


def mistral():
    hf = tf.MistralForCausalLM(
        tf.MistralConfig(
            hidden_size=32,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=48,
            vocab_size=59,
            sliding_window=5,
            max_position_embeddings=64,
            rope_parameters=rope(),
            rms_norm_eps=1e-5,
            **COMMON,
        )
    )
    return (
        hf,
        "Mistral-7B-v0.1",
        {
            "n_layer": 2,
            "n_embd": 32,
            "n_head": 4,
            "n_query_groups": 2,
            "intermediate_size": 48,
            "padded_vocab_size": 59,
            "block_size": 64,
            "sliding_window_size": 5,
            "sliding_window_indices": [1, 1],
        },
        conv.copy_weights_hf_llama,
        True,
    )


def mixtral():
    hf = tf.MixtralForCausalLM(
        tf.MixtralConfig(
            hidden_size=32,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=40,
            vocab_size=53,
            num_local_experts=4,
            num_experts_per_tok=2,
            experts_implementation="eager",
            max_position_embeddings=64,
            rope_parameters=rope(1000000.0),
            sliding_window=None,
            rms_norm_eps=1e-5,
            **COMMON,
        )
    )
    return (
        hf,
        "Mixtral-8x7B-v0.1",
        {
            "n_layer": 2,
            "n_embd": 32,
            "n_head": 4,
            "n_query_groups": 2,
            "intermediate_size": 40,
            "padded_vocab_size": 53,
            "block_size": 64,
            "n_expert": 4,
            "n_expert_per_token": 2,
        },
        conv.copy_weights_hf_llama,
        True,
    )


def gemma3():
    hf = tf.Gemma3ForCausalLM(
        tf.Gemma3TextConfig(
            hidden_size=32,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            intermediate_size=40,
            vocab_size=77,
            sliding_window=4,
            layer_types=["sliding_attention", "full_attention"],
            query_pre_attn_scalar=16,
            max_position_embeddings=64,
            rope_parameters={
                "sliding_attention": rope(10000.0),
                "full_attention": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0},
            },
            **COMMON,
        )
    )
    return (
        hf,
        "Gemma-3-4b-it",
        {
            "n_layer": 2,
            "n_embd": 32,
            "n_head": 4,
            "n_query_groups": 2,
            "head_size": 16,
            "intermediate_size": 40,
            "padded_vocab_size": 77,
            "block_size": 64,
            "norm_eps": 1e-6,
            "sliding_window_size": 4,
            "sliding_window_indices": [1, 0],
            "rope_indices": [1, 0],
            "attention_scores_scalar": 16,
        },
        "gemma3",
        True,
    )


def stablelm():
    hf = tf.StableLmForCausalLM(
        tf.StableLmConfig(
            hidden_size=40,
            num_attention_heads=5,
            num_key_value_heads=5,
            intermediate_size=52,
            vocab_size=58,
            max_position_embeddings=64,
            rope_parameters=rope(partial_rotary_factor=0.25),
            tie_word_embeddings=False,
            **COMMON,
        )
    )
    return (
        hf,
        "stablelm-3b-4e1t",
        {
            "n_layer": 2,
            "n_embd": 40,
            "n_head": 5,
            "intermediate_size": 52,
            "padded_vocab_size": 58,
            "block_size": 64,
        },
        conv.copy_weights_hf_llama,
        True,
    )


def gemma1():
    hf = tf.GemmaForCausalLM(
        tf.GemmaConfig(
            hidden_size=36,
            num_attention_heads=3,
            num_key_value_heads=1,
            head_dim=8,
            intermediate_size=50,
            vocab_size=58,
            max_position_embeddings=64,
            rms_norm_eps=1e-6,
            hidden_activation="gelu_pytorch_tanh",
            rope_parameters=rope(),
            **COMMON,
        )
    )
    return (
        hf,
        "Gemma-2b",
        {
            "n_layer": 2,
            "n_embd": 36,
            "n_head": 3,
            "n_query_groups": 1,
            "head_size": 8,
            "intermediate_size": 50,
            "padded_vocab_size": 58,
            "block_size": 64,
            "norm_eps": 1e-6,
        },
        conv.copy_weights_hf_llama,
        True,
    )


def falcon40():
    hf = tf.FalconForCausalLM(
        tf.FalconConfig(
            hidden_size=48,
            num_attention_heads=6,
            num_kv_heads=2,
            vocab_size=58,
            new_decoder_architecture=True,
            parallel_attn=True,
            bias=False,
            alibi=False,
            max_position_embeddings=64,
            rope_parameters=rope(),
            tie_word_embeddings=False,
            **COMMON,
        )
    )
    return (
        hf,
        "falcon-40b",
        {
            "n_layer": 2,
            "n_embd": 48,
            "n_head": 6,
            "n_query_groups": 2,
            "padded_vocab_size": 58,
            "block_size": 64,
        },
        conv.copy_weights_falcon,
        False,
    )


def smollm():
    hf = tf.LlamaForCausalLM(
        tf.LlamaConfig(
            hidden_size=27,
            num_attention_heads=3,
            num_key_value_heads=1,
            head_dim=6,
            intermediate_size=45,
            vocab_size=58,
            rms_norm_eps=1e-5,
            max_position_embeddings=64,
            rope_parameters=rope(100000.0),
            tie_word_embeddings=False,
            **COMMON,
        )
    )
    return (
        hf,
        "SmolLM2-135M",
        {
            "n_layer": 2,
            "n_embd": 27,
            "n_head": 3,
            "n_query_groups": 1,
            "head_size": 6,
            "intermediate_size": 45,
            "padded_vocab_size": 58,
            "block_size": 64,
            "rope_base": 100000,
        },
        conv.copy_weights_hf_llama,
        True,
    )


def state(family, config, hf_state, copy, qkv):
    out = {}
    if copy == "gemma3":
        hf_state = dict(hf_state.items())
        for layer in range(config.n_layer):
            p, q = f"model.layers.{layer}.", f"transformer.h.{layer}."
            out[q + "attn.qkv.weight"] = torch.cat(
                [hf_state[p + f"self_attn.{n}_proj.weight"] for n in "qkv"]
            )
            for mine, theirs in (
                ("attn.proj", "self_attn.o_proj"),
                ("attn.norm_q", "self_attn.q_norm"),
                ("attn.norm_k", "self_attn.k_norm"),
                ("mlp.fc_1", "mlp.gate_proj"),
                ("mlp.fc_2", "mlp.up_proj"),
                ("mlp.proj", "mlp.down_proj"),
                ("norm_1", "input_layernorm"),
                ("post_attention_norm", "post_attention_layernorm"),
                ("norm_2", "pre_feedforward_layernorm"),
                ("post_mlp_norm", "post_feedforward_layernorm"),
            ):
                out[q + mine + ".weight"] = hf_state[p + theirs + ".weight"]
        out["transformer.wte.weight"] = out["lm_head.weight"] = hf_state["model.embed_tokens.weight"]
        out["transformer.ln_f.weight"] = hf_state["model.norm.weight"]
        return out
    if family == "mixtral":  # transformers holds its experts in one tensor
        new = {}
        for k, v in hf_state.items():
            if k.endswith("mlp.experts.gate_up_proj"):
                b = k.replace("mlp.experts.gate_up_proj", "block_sparse_moe.experts.")
                for e in range(v.shape[0]):
                    new[f"{b}{e}.w1.weight"], new[f"{b}{e}.w3.weight"] = v[e].chunk(2)
            elif k.endswith("mlp.experts.down_proj"):
                b = k.replace("mlp.experts.down_proj", "block_sparse_moe.experts.")
                for e in range(v.shape[0]):
                    new[f"{b}{e}.w2.weight"] = v[e]
            else:
                new[k.replace("mlp.gate.", "block_sparse_moe.gate.")] = v
        hf_state = new
    if copy is conv.copy_weights_hf_llama:
        copy(config, {}, out, hf_state)
    elif copy is conv.copy_weights_gpt_neox:  # transformers has renamed its head
        copy(config, out, {k.replace("lm_head", "embed_out"): v for k, v in hf_state.items()})
    elif copy == conv.copy_weights_gemma_2:
        copy({}, out, hf_state)
    elif qkv:
        copy(config, {}, out, hf_state)
    else:
        copy(config, out, hf_state)
    return out


FAMILIES = {
    "pythia": pythia,
    "llama": llama,
    "gemma2": gemma2,
    "qwen3": qwen3,
    "qwen25": qwen25,
    "phi2": phi2,
    "phi3": phi3,
    "falcon": falcon,
    "olmo2": olmo2,
    "mistral": mistral,
    "mixtral": mixtral,
    "gemma3": gemma3,
    "stablelm": stablelm,
    "gemma1": gemma1,
    "falcon40": falcon40,
    "smollm": smollm,
}


def build(family, seed=0, weights=None, patch=None, **wrong):
    torch.manual_seed(seed)
    hf, name, over, copy, qkv = FAMILIES[family]()
    trained(hf, seed + 1)
    if getattr(hf.config, "tie_word_embeddings", False):
        hf.tie_weights()
    right = Config.from_name(name, **over)
    config = Config.from_name(name, **{**over, **wrong})
    sd = {k: v.clone() for k, v in state(family, right, hf.state_dict(), copy, qkv).items()}
    if weights:
        weights(sd, config)
    mine = lm.GPT(config)
    if family in ("qwen25", "gemma2", "gemma3"):
        mine.lm_head.weight = mine.transformer.wte.weight
    missing = mine.load_state_dict(sd, strict=False)
    assert not [k for k in missing.missing_keys if "lm_head.weight" not in k] or weights or wrong, missing
    if patch:
        patch(mine)
    return mine.eval(), hf


H0, H1 = "transformer.h.0", "transformer.h.1"
TABLE = ("(model)/getitem", "(model)/unsqueeze", f"{H0}.attn/mul", f"{H0}.attn/view")


def swap(a, b):
    def do(sd, config):
        sd[a], sd[b] = sd[b], sd[a]

    return do


def zero(*names):
    def do(sd, config):
        for n in names:
            sd[n] = torch.zeros_like(sd[n])

    return do


def transpose(n):
    def do(sd, config):
        sd[n] = sd[n].T.contiguous()

    return do


def parts(order, layer=0):
    """qkv fused in another order than q, k, v."""

    def do(sd, c):
        for suffix in ("weight", "bias"):
            n = f"transformer.h.{layer}.attn.qkv.{suffix}"
            if n in sd:
                q, k, v = sd[n].split(
                    [c.n_head * c.head_size, c.n_query_groups * c.head_size, c.n_query_groups * c.head_size]
                )
                sd[n] = torch.cat([{"q": q, "k": k, "v": v}[o] for o in order])

    return do


def grouped(sd, c):
    """q, k, v of each head side by side, as GPT-NeoX has them."""
    for layer in range(c.n_layer):
        for suffix in ("weight", "bias"):
            n = f"transformer.h.{layer}.attn.qkv.{suffix}"
            if n in sd:
                q, k, v = (p.unflatten(0, (-1, c.head_size)) for p in sd[n].chunk(3))
                sd[n] = torch.stack([q, k, v], 1).flatten(0, 2)


def halves(n, heads):
    """Rows permuted for rotation in pairs, as Meta's checkpoints are."""

    def do(sd, c):
        w = sd[n]
        q = w[: c.n_head * c.head_size]
        sd[n] = torch.cat(
            [q.unflatten(0, (c.n_head, 2, -1)).transpose(1, 2).flatten(0, 2), w[c.n_head * c.head_size :]]
        )

    return do


def shift(n, by):
    def do(sd, c):
        sd[n] = sd[n] + by

    return do


def interleave(mine):
    mine.config.rope_interleave = True


def top_k_after_softmax(mine):
    for block in mine.transformer.h:
        block.mlp.__class__ = SoftmaxFirst


class SoftmaxFirst(lm.LLaMAMoE):
    def forward(self, x):
        batch, tokens, size = x.size()
        x = x.view(-1, size)
        router = self.gate(x).softmax(dim=1)
        probs, indices = torch.topk(router, self.config.n_expert_per_token)
        masks = (indices.unsqueeze(-1) == torch.arange(self.config.n_expert)).permute(2, 0, 1)
        y = torch.zeros_like(x)
        for mask, expert in zip(masks, self.experts, strict=False):
            token_idx, expert_idx = torch.where(mask)
            y[token_idx] += probs[token_idx, expert_idx, None] * expert(x[token_idx])
        return y.view(batch, tokens, size)


CASES = {
    "pythia-rope-base": ("pythia", {"rope_base": 1000}, TABLE),
    "pythia-rotary-percentage": ("pythia", {"rotary_percentage": 0.5}, (*TABLE, f"{H0}.attn/getitem")),
    "pythia-eps": ("pythia", {"norm_eps": 1e-3}, (f"{H0}.norm_1/layer_norm",)),
    "pythia-sequential": ("pythia", {"parallel_residual": False}, (f"{H0}.norm_2/layer_norm",)),
    "pythia-gelu-tanh": ("pythia", {"gelu_approximate": "tanh"}, (f"{H0}.mlp/gelu",)),
    "pythia-scale": (
        "pythia",
        {"attention_scores_scalar": 48},
        (f"{H0}.attn/scaled_dot_product_attention",),
    ),
    "pythia-qkv-order": (
        "pythia",
        {"weights": grouped},
        (
            f"{H0}.attn/split",
            f"{H0}.attn/view",
            f"{H0}.attn/transpose",
            f"{H0}.attn/getitem",
            f"{H0}.attn/mul",
            f"{H0}.attn/neg",
        ),
    ),
    "pythia-no-bias": ("pythia", {"weights": zero(f"{H1}.mlp.proj.bias")}, (f"{H1}.mlp.proj/linear",)),
    "pythia-condensed": ("pythia", {"rope_condense_ratio": 2}, TABLE),
    "llama-rope-factor": (
        "llama",
        {
            "rope_adjustments": {
                "factor": 32.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_seq_len": 32,
            }
        },
        TABLE,
    ),
    "llama-rope-unscaled": ("llama", {"rope_adjustments": None}, TABLE),
    "llama-eps": ("llama", {"norm_eps": 1e-6}, (f"{H0}.norm_1/add",)),
    "llama-gate-up": (
        "llama",
        {"weights": swap(f"{H1}.mlp.fc_1.weight", f"{H1}.mlp.fc_2.weight")},
        (f"{H1}.mlp/silu",),
    ),
    "llama-o-transposed": (
        "llama",
        {"weights": transpose(f"{H1}.attn.proj.weight")},
        (f"{H1}.attn.proj/linear",),
    ),
    "llama-k-v": (
        "llama",
        {"weights": parts("qvk")},
        (f"{H0}.attn/split", f"{H0}.attn/getitem", f"{H0}.attn/mul", f"{H0}.attn/neg", f"{H0}.attn/cat"),
    ),
    "llama-interleave": (
        "llama",
        {"patch": interleave},
        (
            f"{H0}.attn/view",
            f"{H0}.attn/getitem",
            f"{H0}.attn/reshape",
            f"{H0}.attn/transpose",
            f"{H0}.attn/mul",
        ),
    ),
    "llama-pairs": (
        "llama",
        {"weights": halves(f"{H0}.attn.qkv.weight", 4)},
        (
            f"{H0}.attn.qkv/linear",
            f"{H0}.attn/split",
            f"{H0}.attn/mul",
            f"{H0}.attn/neg",
            f"{H0}.attn/getitem",
        ),
    ),
    "llama-norms": (
        "llama",
        {"weights": swap(f"{H0}.norm_1.weight", f"{H0}.norm_2.weight")},
        (f"{H0}.norm_1/mul",),
    ),
    "gemma2-unscaled": (
        "gemma2",
        {"scale_embeddings": False},
        (f"{H0}.norm_1/mul", f"{H0}.norm_1/mean", "transformer.wte/embedding"),
    ),
    "gemma2-no-cap": ("gemma2", {"final_logit_softcapping": None}, ("lm_head/linear",)),
    "gemma2-cap": ("gemma2", {"attention_logit_softcapping": 4.0}, (f"{H0}.attn/div",)),
    "gemma2-window": (
        "gemma2",
        {"sliding_window_size": 5},
        (f"{H0}.attn/add", f"{H0}.attn/setitem", f"{H0}.attn/softmax"),
    ),
    "gemma2-window-layers": (
        "gemma2",
        {"sliding_window_indices": [0, 1]},
        (f"{H0}.attn/triu", f"{H0}.attn/add", f"{H0}.attn/masked_fill_", f"{H0}.attn/softmax"),
    ),
    "gemma2-scale": ("gemma2", {"attention_scores_scalar": None}, (f"{H0}.attn/mul",)),
    "gemma2-no-post-norm": ("gemma2", {"post_mlp_norm": False}, (f"{H0}/add",)),
    "gemma2-gelu": ("gemma2", {"gelu_approximate": "none"}, (f"{H0}.mlp/gelu",)),
    "gemma2-cap-twice": ("gemma2", {"final_logit_softcapping": 16.0}, ("(model)/div",)),
    "qwen3-no-qk-norm": (
        "qwen3",
        {"norm_qk": False},
        (f"{H0}.attn/getitem", f"{H0}.attn/mul", f"{H0}.attn/neg", f"{H0}.attn/cat"),
    ),
    "qwen3-q-k-norms": (
        "qwen3",
        {"weights": swap(f"{H0}.attn.norm_q.weight", f"{H0}.attn.norm_k.weight")},
        (f"{H0}.attn.norm_q/mul",),
    ),
    "qwen3-rope-base": ("qwen3", {"rope_base": 10000}, TABLE),
    "qwen25-no-bias": ("qwen25", {"attn_bias": False}, (f"{H0}.attn.qkv/linear",)),
    "qwen25-eps": ("qwen25", {"norm_eps": 1e-5}, (f"{H0}.norm_1/add",)),
    "phi2-head-bias": ("phi2", {"lm_head_bias": False}, ("lm_head/linear",)),
    "phi2-gelu": ("phi2", {"gelu_approximate": "none"}, (f"{H0}.mlp/gelu",)),
    "phi2-rotary-percentage": ("phi2", {"rotary_percentage": 0.5}, (*TABLE, f"{H0}.attn/getitem")),
    "phi3-gate-up": (
        "phi3",
        {"weights": swap(f"{H0}.mlp.fc_1.weight", f"{H0}.mlp.fc_2.weight")},
        (f"{H0}.mlp/silu",),
    ),
    "falcon-eps": ("falcon", {"norm_eps": 1e-3}, (f"{H0}.norm_1/layer_norm",)),
    "falcon-q-k": (
        "falcon",
        {
            "weights": lambda sd, c: sd.__setitem__(
                f"{H1}.attn.qkv.weight",
                torch.cat([sd[f"{H1}.attn.qkv.weight"][12:], sd[f"{H1}.attn.qkv.weight"][:12]]),
            )
        },
        (
            f"{H1}.attn/split",
            f"{H1}.attn/getitem",
            f"{H1}.attn/mul",
            f"{H1}.attn/neg",
            f"{H1}.attn/view",
            f"{H1}.attn/transpose",
        ),
    ),
    "olmo2-qk-norm": (
        "olmo2",
        {"norm_qk": False},
        (f"{H0}.attn/view", f"{H0}.attn/getitem", f"{H0}.attn/mul", f"{H0}.attn/neg", f"{H0}.attn/cat"),
    ),
    "olmo2-norm-swap": (
        "olmo2",
        {"weights": swap(f"{H1}.post_attention_norm.weight", f"{H1}.post_mlp_norm.weight")},
        (f"{H1}.post_attention_norm/mul",),
    ),
    "mistral-no-window": (
        "mistral",
        {"sliding_window_size": None},
        (f"{H0}.attn/scaled_dot_product_attention",),
    ),
    "mistral-window": (
        "mistral",
        {"sliding_window_size": 4},
        (f"{H0}.attn/setitem", f"{H0}.attn/view", f"{H0}.attn/scaled_dot_product_attention"),
    ),
    "mixtral-softmax-first": (
        "mixtral",
        {"patch": top_k_after_softmax},
        (f"{H0}.mlp/topk", f"{H0}.mlp/softmax", f"{H0}.mlp/getitem", f"{H0}.mlp/mul"),
    ),
    "mixtral-gate-up": (
        "mixtral",
        {"weights": swap(f"{H0}.mlp.experts.1.fc_1.weight", f"{H0}.mlp.experts.1.fc_2.weight")},
        (f"{H0}.mlp.experts.1/silu",),
    ),
    "mixtral-experts": (
        "mixtral",
        {"weights": swap(f"{H1}.mlp.experts.0.proj.weight", f"{H1}.mlp.experts.2.proj.weight")},
        (f"{H1}.mlp.experts.0.proj/linear", f"{H1}.mlp.experts.2.proj/linear"),
    ),
    "gemma3-local-base": ("gemma3", {"rope_local_base_freq": 20000.0}, (*TABLE, "(model)/getitem")),
    "gemma3-rope-layers": ("gemma3", {"rope_indices": [0, 1]}, TABLE),
    "gemma3-eps-as-it-is": ("gemma3", {"norm_eps": 1e-5}, (f"{H0}.norm_1/add",)),
    "stablelm-eps": ("stablelm", {"norm_eps": 1e-3}, (f"{H0}.norm_1/layer_norm",)),
    "stablelm-up-twice": (
        "stablelm",
        {
            "weights": lambda sd, c: sd.__setitem__(
                f"{H1}.mlp.fc_1.weight", sd[f"{H1}.mlp.fc_2.weight"].clone()
            )
        },
        (f"{H1}.mlp.fc_1/linear", f"{H1}.mlp/silu"),
    ),
    "gemma1-tanh": ("gemma1", {"gelu_approximate": "none"}, (f"{H0}.mlp/gelu",)),
    "gemma1-rope-base": ("gemma1", {"rope_base": 20000}, TABLE),
    "falcon40-norms": (
        "falcon40",
        {
            "weights": lambda sd, c: [
                swap(f"{H0}.norm_1.{s}", f"{H0}.norm_2.{s}")(sd, c) for s in ("weight", "bias")
            ]
        },
        (f"{H0}.norm_1/layer_norm",),
    ),
    "smollm-layers": (
        "smollm",
        {"weights": swap(f"{H0}.mlp.proj.weight", f"{H1}.mlp.proj.weight")},
        (f"{H0}.mlp.proj/linear",),
    ),
    "smollm-scale": ("smollm", {"attention_scores_scalar": 9}, (f"{H0}.attn/scaled_dot_product_attention",)),
}
