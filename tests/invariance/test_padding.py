"""Products leave out padding: fewer rows are multiplied, tokens have the same bits, and nothing else is taken for padding."""

import pytest
import torch
from tests.architectures import ARCHITECTURES

import forkpoint as fp
from forkpoint.invariance import padding, products

IDS = torch.randint(5, 60, (4, 24), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(IDS)
MASK[1:, :18] = 0


@pytest.fixture(autouse=True)
def _from_one_row_on(monkeypatch):
    monkeypatch.setitem(padding._ROWS, "cpu", 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fewer_rows_are_multiplied_and_tokens_keep_their_bits(monkeypatch, dtype):
    model = ARCHITECTURES["llama"].build(attention="sdpa", dtype=dtype)
    rows: list[int] = []
    own = products.linear

    def counted(stock, x, weight, bias=None):
        rows.append(x.shape[:-1].numel())
        return own(stock, x, weight, bias)

    positions = (MASK.cumsum(-1) - 1).clamp(min=0)
    with torch.inference_mode(), fp.invariant(model):
        monkeypatch.setattr(products, "linear", counted)
        made = model(input_ids=IDS, attention_mask=MASK, position_ids=positions).logits
        assert set(rows) == {24 + 3 * 6}
        for row, begin in enumerate((0, 18, 18, 18)):
            assert torch.equal(model(input_ids=IDS[row : row + 1, begin:]).logits[0], made[row, begin:])
    assert not made[1:, :18].any()


def told(inputs: dict[str, torch.Tensor], name: str = "llama") -> padding.Tokens | None:
    return padding._tokens(ARCHITECTURES[name].build(), (), inputs)


def test_only_a_padded_batch_of_token_ids_is_one():
    inputs = {"input_ids": IDS, "attention_mask": MASK}
    found = told(inputs)
    assert found is not None and len(found.indices) == 42
    x = torch.randn(4, 24, 8)
    assert torch.equal(found.put(found.rows_of(x)), x * MASK[..., None])
    assert told({"input_ids": IDS}) is None
    assert told({**inputs, "attention_mask": torch.ones_like(IDS)}) is None
    assert told({**inputs, "pixel_values": torch.randn(4, 24)}) is None
    assert told({"input_ids": IDS[:, 20:], "attention_mask": MASK[:, 20:]}) is None  # as many rows as columns
    assert told({"input_ids": IDS, "attention_mask": MASK.bool()[:, None, None]}) is None
    assert told(inputs, "t5") is None


def test_a_chunk_after_a_cache_has_its_own_columns():
    found = told({"input_ids": IDS[:, 16:], "attention_mask": MASK})
    assert found is not None and len(found.indices) == 8 + 3 * 6


def test_nothing_is_left_behind():
    model = ARCHITECTURES["llama"].build()
    with fp.invariant(model), torch.no_grad():
        model(input_ids=IDS, attention_mask=MASK)
        assert padding._thread.tokens is None
        with pytest.raises(IndexError):
            model(input_ids=IDS + 10**6, attention_mask=MASK)
        assert padding._thread.tokens is None
