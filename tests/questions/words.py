"""A tokenizer for the tiny models: the word `w7` is token 7."""

from __future__ import annotations

import transformers as tf
from tests.architectures import VOCABULARY
from tokenizers import Tokenizer, models, pre_tokenizers


def word_tokenizer(**special: str) -> tf.PreTrainedTokenizerFast:
    words = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{index}": index for index in range(3, VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="</s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **(special or {"pad_token": "<pad>", "eos_token": "</s>"})
    )
