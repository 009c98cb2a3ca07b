"""ConvBERT, Nyströmformer, MobileBERT, Funnel: padding on the right changes real tokens, though the attention mask is given.

In float64 a gap of rounding would be about 1e-15.
"""

import torch
import transformers as tf

sizes = {"vocab_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
small = {"hidden_size": 32, "embedding_size": 24}
configs = {
    tf.ConvBertModel: tf.ConvBertConfig(**sizes, **small, conv_kernel_size=3),
    tf.NystromformerModel: tf.NystromformerConfig(
        **sizes, hidden_size=32, num_landmarks=4, segment_means_seq_len=4
    ),
    tf.MobileBertModel: tf.MobileBertConfig(**sizes, **small, intra_bottleneck_size=16),
    tf.FunnelModel: tf.FunnelConfig(vocab_size=64, block_sizes=[1, 1], d_model=32, n_head=4, d_head=8),
}
for kind, config in configs.items():
    torch.manual_seed(0)
    model = kind(config).double().eval()
    torch.nn.init.normal_(model.get_input_embeddings().weight)  # trained weights have one for padding
    ids = torch.randint(3, 60, (1, 8))
    padded = torch.nn.functional.pad(ids, (0, 6))
    with torch.no_grad():
        alone = model(ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        beside = model(padded, attention_mask=(padded != 0).long()).last_hidden_state[:, :8]
    print(f"{kind.__name__}: {(alone - beside).abs().max():.2g} of {alone.abs().max():.2g}")
