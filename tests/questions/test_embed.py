"""Pipelines that take texts: which text is in which row, what they return, and what a pooling over padding is."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest
import torch
import transformers as tf
from tests.architectures import ARCHITECTURES
from tests.questions.words import word_tokenizer
from torch import nn

import forkpoint as fp
from forkpoint.questions.pipelines import pipeline_run
from forkpoint.result import VerdictKind

TEXTS = ["w5 w6", "w7 w8 w9 w10 w11 w12", "w13", "w5 w6", "w20 w21 w22 w23"]
SOUND = (VerdictKind.IDENTICAL, VerdictKind.ROUNDING)
needs_sentence_transformers = pytest.mark.skipif(
    importlib.util.find_spec("sentence_transformers") is None, reason="needs sentence-transformers"
)


class Mean(nn.Module):
    """The mean of the hidden states of each row: of its tokens, or of all columns."""

    def __init__(self, masked: bool) -> None:
        super().__init__()
        self.masked = masked

    def forward(self, features):
        hidden, mask = features["hidden"], features["attention_mask"][..., None].float()
        if not self.masked:
            mask = torch.ones_like(mask)
        return {**features, "embedding": (hidden * mask).sum(1) / mask.sum(1)}


class Encode(nn.Module):
    def __init__(self, bert) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, features):
        given = {name: features[name] for name in ("input_ids", "attention_mask")}
        return {**features, "hidden": self.bert(**given).last_hidden_state}


class Sorting(nn.Sequential):
    """Encodes as sentence-transformers does: the longest texts first, back in order as an array of NumPy."""

    def __init__(self, bert, masked=True) -> None:
        super().__init__(Encode(bert), Mean(masked))
        self.words = word_tokenizer()

    @torch.inference_mode()
    def encode(self, sentences, batch_size=32, show_progress_bar=None):
        assert show_progress_bar is False
        order = np.argsort([-len(text) for text in sentences])
        rows = []
        for start in range(0, len(sentences), batch_size):
            batch = [sentences[index] for index in order[start : start + batch_size]]
            features = self.words(batch, padding=True, return_tensors="pt")
            rows.extend(self(dict(features))["embedding"].cpu())
        return np.asarray([rows[index].numpy() for index in np.argsort(order)])


@pytest.fixture
def bert():
    return ARCHITECTURES["bert"].build(attention="sdpa")


# --- which text is in which row -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 32])
def test_every_text_is_a_sample_and_its_vector_is_in_its_row(bert, size):
    pipeline = Sorting(bert)
    run = pipeline_run(
        pipeline, TEXTS, size, lambda p, t, n: p.encode(t, n, show_progress_bar=False), "a run"
    )
    whole = pipeline.encode(TEXTS, 32, show_progress_bar=False)
    seen = []
    for call, entry, vectors in zip(run.calls, run.layout.calls, run.execute(), strict=True):
        samples = entry["main"].sample.max(-1).values.tolist()
        seen += samples
        assert [call["texts"][place] for place in call["order"]] == [TEXTS[sample] for sample in samples]
        assert np.allclose(vectors, whole[samples], atol=1e-5)
        lengths = (entry["main"].sample >= 0).sum(-1).tolist()
        assert lengths == [len(TEXTS[sample].split()) for sample in samples]
    assert sorted(seen) == [0, 1, 2, 3, 4]
    assert len(run.calls) == -(-len(TEXTS) // size)


def test_a_pipeline_that_forms_rows_in_another_order_of_the_same_texts(bert):
    """The second time it is asked it puts them the other way round: its vectors go back to their rows."""
    tokenizer, asked = word_tokenizer(), []

    def ask(model, texts, size):
        asked.append(len(texts))
        turned = len(texts) > 1 and asked.count(len(texts)) > 1
        rows = texts[::-1] if turned else texts
        features = tokenizer(rows, padding=True, return_tensors="pt")
        vectors = model(**features).last_hidden_state[:, 0].numpy()
        return vectors[::-1].copy() if turned else vectors

    run = pipeline_run(bert, TEXTS, 5, ask, "a run")
    samples = run.layout.calls[0]["main"].sample.max(-1).values.tolist()
    assert [TEXTS[sample] for sample in samples] == TEXTS[::-1]
    with torch.no_grad():
        features = tokenizer(TEXTS, padding=True, return_tensors="pt")
        expected = bert(**features).last_hidden_state[:, 0].numpy()
    assert np.allclose(run.execute()[0], expected[samples], atol=1e-6)


def test_a_sound_pipeline_and_one_that_pools_padding(bert):
    sound = fp.embed(Sorting(bert), TEXTS, (1, 3))
    assert sound.verdict.kind in SOUND, str(sound)
    assert sound.impact.tokens == len(TEXTS)
    wrong = fp.embed(Sorting(bert, masked=False), TEXTS, (1, 3))
    assert (wrong.verdict.kind, wrong.verdict.mechanism) == (VerdictKind.SEMANTIC, "pooling"), str(wrong)
    assert wrong.origin.module == "1"
    assert all("forward" not in vars(module) for module in bert.modules())


# --- what is asked, and what comes back -----------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_an_encoder_is_pooled(bert, pooling):
    result = fp.embed(bert, TEXTS, (1, 32), tokenizer=word_tokenizer(), pooling=pooling)
    assert result.verdict.kind in SOUND, str(result)
    assert result.impact.tokens == len(TEXTS)
    tokenizer = word_tokenizer()
    vectors = fp.Run(bert, {"input_ids": torch.tensor([tokenizer(TEXTS[1])["input_ids"]])}).execute()[0][0]
    from forkpoint.questions.embed import Encoder

    found = Encoder(bert, tokenizer, pooling)(TEXTS, 2)[1]
    expected = vectors[0].mean(0) if pooling == "mean" else vectors[0, 0]
    assert torch.allclose(found, expected, atol=1e-5)


def test_lists_of_vectors_of_tokens_meet_token_by_token(bert):
    pipeline = tf.pipeline("feature-extraction", model=bert, tokenizer=word_tokenizer())
    result = fp.embed(pipeline, TEXTS, (1, 4))
    assert result.verdict.kind in SOUND, str(result)
    assert result.impact.tokens == sum(len(text.split()) for text in TEXTS)


def test_floats_and_labels_of_a_classifier(bert):
    config = tf.BertConfig(**{**bert.config.to_dict(), "num_labels": 3})
    model = tf.BertForSequenceClassification(config).eval()
    pipeline = tf.pipeline("text-classification", model=model, tokenizer=word_tokenizer(), top_k=None)
    result = fp.embed(pipeline, TEXTS, (1, 4))
    assert result.verdict.kind in SOUND, str(result)
    assert result.impact.tokens == len(TEXTS)


class Entities:
    """A pipeline that returns for each text as many mappings as it has tokens; for one text, no list of them."""

    def __init__(self, model) -> None:
        self.model, self.words = model, word_tokenizer()

    def __call__(self, texts, batch_size):
        found = []
        for start in range(0, len(texts), batch_size):
            features = self.words(texts[start : start + batch_size], padding=True, return_tensors="pt")
            logits = self.model(**features).logits.softmax(-1)
            found += [
                [{"score": float(row[at].max()), "index": at} for at in range(int(mask.sum()))]
                for row, mask in zip(logits, features["attention_mask"], strict=True)
            ]
        return found[0] if len(found) == 1 else found


def test_what_is_found_in_texts_meets_text_by_text(bert):
    plain = {key: value for key, value in bert.config.to_dict().items() if "label" not in key}
    model = tf.BertForTokenClassification(tf.BertConfig(**plain, num_labels=3)).eval()
    whole = sum(len(text.split()) for text in TEXTS)
    for pipeline in (
        Entities(model),
        tf.pipeline("token-classification", model=model, tokenizer=word_tokenizer()),
    ):
        result = fp.embed(pipeline, TEXTS, (1, 4))
        assert result.verdict.kind in SOUND, str(result)
        assert result.impact.elements == whole
        assert result.impact.max_abs < 1e-5
    pipeline = Entities(model)
    pipeline.model.classifier.register_forward_hook(lambda _, given, out: out + out.mean(1, keepdim=True))
    result = fp.embed(pipeline, TEXTS, (1, 4))
    assert result.verdict.kind is VerdictKind.SEMANTIC, str(result)


def test_results_that_are_no_texts_are_refused(bert):
    def ask(pipeline, texts, size):
        features = word_tokenizer()(texts, padding=True, return_tensors="pt")
        pipeline(**features)
        return [0.5] * (len(texts) + 1)

    with pytest.raises(fp.InputError, match="a pipeline that returns 6 results for 5 texts"):
        fp.embed(bert, TEXTS, (1, 4), call=ask)


def test_tensors_text_by_text(bert):
    def ask(pipeline, texts, size):
        return list(torch.from_numpy(pipeline.encode(texts, size, show_progress_bar=False)))

    result = fp.embed(Sorting(bert), TEXTS, (1, 32), call=ask)
    assert result.verdict.kind in SOUND, str(result)
    again = "of 'w5 w6', text 3"  # a text that stands there twice has two results
    assert {line.module.split(" (call")[0] for line in result.drift if line.module.startswith("of ")} == {
        *(f"of {text!r}" for text in TEXTS), again
    }  # fmt: skip


def test_heads_for_tokens_are_compared_token_by_token(bert):
    plain = {key: value for key, value in bert.config.to_dict().items() if "label" not in key}
    config = tf.BertConfig(**plain, num_labels=6)  # as many as the longest text has tokens
    for kind in (tf.BertForTokenClassification, tf.BertForQuestionAnswering):
        model = kind(config if kind is tf.BertForTokenClassification else tf.BertConfig(**plain)).eval()
        result = fp.embed(model, TEXTS, (1, 5), tokenizer=word_tokenizer())
        assert result.verdict.kind in SOUND, str(result)
        labels = 6 if kind is tf.BertForTokenClassification else 2
        assert result.impact.elements == labels * sum(len(text.split()) for text in TEXTS)
    classifier = tf.BertForSequenceClassification(config).eval()
    result = fp.embed(classifier, TEXTS, (1, 5), tokenizer=word_tokenizer())
    assert result.impact.elements == 6 * len(TEXTS)


def test_a_head_that_sees_padding_is_found(bert):
    model = tf.BertForTokenClassification(tf.BertConfig(**{**bert.config.to_dict(), "num_labels": 3})).eval()
    model.classifier.register_forward_hook(lambda _, given, out: out + out.mean(1, keepdim=True))
    result = fp.embed(model, TEXTS, (1, 5), tokenizer=word_tokenizer())
    assert result.verdict.kind is VerdictKind.SEMANTIC, str(result)


def test_pairs_for_a_cross_encoder(bert):
    model = tf.BertForSequenceClassification(
        tf.BertConfig(**{**bert.config.to_dict(), "num_labels": 1})
    ).eval()
    pairs = [("w5 w6", "w7"), ("w8", "w9 w10 w11"), ("w5", "w6")]
    result = fp.embed(model, pairs, (1, 2), tokenizer=word_tokenizer())
    assert result.verdict.kind in SOUND, str(result)
    assert result.impact.tokens == 3


@needs_sentence_transformers
def test_sentence_transformers(bert, tmp_path):
    from forkpoint.models.embedding import load_embedding

    bert.save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    pooling = {"type": "sentence_transformers.models.Pooling", "idx": 1, "name": "1", "path": "1_Pooling"}
    inner = {"type": "sentence_transformers.models.Transformer", "idx": 0, "name": "0", "path": ""}
    (tmp_path / "modules.json").write_text(json.dumps([inner, pooling]))
    (tmp_path / "1_Pooling").mkdir()
    how = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(how))
    model = load_embedding(str(tmp_path)).model
    assert callable(model.encode)
    result = fp.embed(model, TEXTS, (1, 32))
    assert result.verdict.kind in SOUND, str(result)
    assert result.impact.tokens == len(TEXTS)


# --- what can't be asked --------------------------------------------------------------------------------------


def test_what_is_refused(bert):
    tokenizer = word_tokenizer()
    for arguments, said in (
        ({"texts": "one text"}, "no list of texts"),
        ({"texts": []}, "no list of texts"),
        ({"texts": TEXTS, "batch_sizes": (1, 0)}, "batch sizes"),
        ({"texts": TEXTS, "pooling": "max"}, "pooling 'max'"),
    ):
        with pytest.raises(fp.InputError, match=said):
            fp.embed(bert, tokenizer=tokenizer, **arguments)
    with pytest.raises(fp.InputError, match="takes pixel_values and no token ids"):
        fp.embed(ARCHITECTURES["vit"].build(), TEXTS, tokenizer=tokenizer)
    with pytest.raises(fp.InputError, match="neither encode nor predict"):
        fp.embed(bert, TEXTS)
    with pytest.raises(fp.InputError, match="no module is called with tensors"):
        fp.embed(bert, TEXTS, call=lambda model, texts, size: [len(text) for text in texts])
    with pytest.raises(fp.InputError, match=r"can't be asked for these texts \(no\)"):
        fp.embed(bert, TEXTS, call=lambda model, texts, size: (_ for _ in ()).throw(ValueError("no")))


# --- the command ----------------------------------------------------------------------------------------------


def test_the_command(bert, tmp_path, capsys):
    from forkpoint.cli import main

    folder = tmp_path / "model"
    bert.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    (folder / "modules.json").write_text(
        json.dumps([{"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}])
    )
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(TEXTS))
    out = tmp_path / "result.json"
    arguments = ["embed", str(folder), "--texts", str(texts), "--batch-size", "2,5", "--json", str(out)]
    with pytest.raises(SystemExit) as caught:
        main([*arguments, "--pooling", "mean"])
    assert caught.value.code == 0
    found = json.loads(out.read_text())
    assert (found["a"]["name"], found["b"]["samples"]) == ("in batches of 2", 5)
    for more, said in (
        (["--batch-size", "1"], "two batch sizes, as 1,32"),
        (["--texts", "/dev/null"], "--texts FILE with a line in it"),
    ):
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main([*arguments, *more])
        assert caught.value.code == 2
        assert said in capsys.readouterr().err


def test_what_a_folder_of_sentence_transformers_says(bert, tmp_path, monkeypatch):
    from forkpoint.models import embedding

    bert.save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    listed = [{"type": "evil.module.Class", "path": ""}]
    (tmp_path / "modules.json").write_text(json.dumps(listed))
    monkeypatch.setattr(embedding.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(fp.ModelError, match=r"evil\.module\.Class"):
        embedding.load_embedding(str(tmp_path))
    monkeypatch.undo()
    (tmp_path / "modules.json").write_text("[1")
    with pytest.raises(fp.ModelError, match="can't be read"):
        embedding.load_embedding(str(tmp_path))
    (tmp_path / "modules.json").write_text(
        json.dumps([{"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}])
    )
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    if importlib.util.find_spec("sentence_transformers") is None:
        found = embedding.load_embedding(str(tmp_path))
        assert found.pooling == "cls"
        assert "Without sentence-transformers" in found.notes[-1]


def test_the_encoder_of_an_encoder_decoder_embeds_by_itself():
    """The tokenizer says that it has no limit, by a number that is none."""
    tokenizer = word_tokenizer()
    assert tokenizer.model_max_length > 1 << 60
    result = fp.embed(ARCHITECTURES["t5"].build(), TEXTS, (1, 5), tokenizer=tokenizer)
    assert result.verdict.kind in SOUND
    assert result.impact.tokens == len(TEXTS)
