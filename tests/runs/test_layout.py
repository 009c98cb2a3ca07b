"""Layouts: where the tokens of every call are, and which row of one run is which row of the other."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from forkpoint import Coordinates, InputError, Layout, LayoutError, Run
from forkpoint.runs.layout import DECODER, IMAGE, MAIN, grid_shape, stream_of, token_tensor
from forkpoint.runs.pairing import Pairing, pair_samples, read_content


def positions(layout: Layout, call: int = 0, stream: str = MAIN) -> list:
    return layout.calls[call][stream].position.tolist()


def samples(layout: Layout, call: int = 0, stream: str = MAIN) -> list:
    return layout.calls[call][stream].sample.tolist()


# --- Masks ----------------------------------------------------------------------------------------


def test_a_mask_may_have_its_zeros_on_either_side_and_in_the_middle():
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 0, 0], [1, 0, 1, 0]])
    layout = Layout.from_mask(mask)
    assert positions(layout) == [[-1, -1, 0, 1], [0, 1, -1, -1], [0, -1, 1, -1]]
    assert samples(layout) == [[-1, -1, 0, 0], [1, 1, -1, -1], [2, -1, 2, -1]]


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=4))
def test_every_token_of_a_mask_counts_the_tokens_before_it(rows):
    layout = Layout.from_mask(torch.tensor(rows))
    for row, wanted in enumerate(rows):
        seen = 0
        for column, token in enumerate(wanted):
            assert positions(layout)[row][column] == (seen if token else -1)
            assert samples(layout)[row][column] == (row if token else -1)
            seen += token


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32, torch.uint8])
def test_a_mask_may_be_of_any_dtype(dtype):
    assert positions(Layout.from_mask(torch.tensor([[0, 1]]).to(dtype))) == [[-1, 0]]


def test_a_mask_of_one_dimension_is_one_row():
    layout = Layout.from_mask(torch.tensor([0, 1, 1]))
    assert positions(layout) == [-1, 0, 1]
    assert samples(layout) == [-1, 0, 0]


def test_a_row_without_a_token_is_no_sample():
    assert Layout.from_mask(torch.tensor([[0, 0], [1, 1]])).samples == [1]


def test_samples_go_by_the_names_given_to_them():
    layout = Layout.from_mask(torch.ones(2, 1), samples=["first", "second"])
    assert [layout.name(0), layout.name(1), layout.name(2)] == ["first", "second", 2]


# --- Several calls ---------------------------------------------------------------------------------


def test_positions_go_on_from_step_to_step():
    layout = Layout.steps([torch.tensor([[0, 1, 1], [1, 1, 1]]), torch.ones(2, 1), torch.ones(2, 2)])
    assert [positions(layout, call) for call in range(3)] == [
        [[-1, 0, 1], [0, 1, 2]],
        [[2], [3]],
        [[3, 4], [4, 5]],
    ]


def test_the_mask_of_a_cached_call_covers_the_earlier_calls_too():
    calls = [
        {"input_ids": torch.tensor([[9, 5, 6], [4, 5, 6]]), "attention_mask": torch.tensor([[0, 1, 1], [1, 1, 1]])},
        {"input_ids": torch.tensor([[7], [7]]), "attention_mask": torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])},
    ]  # fmt: skip
    layout = Layout.read(calls)
    assert positions(layout, 1) == [[2], [3]]


def test_a_cached_call_without_a_mask_goes_on_from_the_earlier_calls():
    layout = Layout.read([{"input_ids": torch.ones(1, 3, dtype=torch.int64)}] * 2)
    assert positions(layout, 1) == [[3, 4, 5]]


def test_the_streams_count_apart():
    ids = torch.ones(1, 3, dtype=torch.int64)
    calls = [{"input_ids": ids, "decoder_input_ids": ids[:, :2]}, {"decoder_input_ids": ids[:, :1]}]
    layout = Layout.read(calls)
    assert positions(layout, 0, DECODER) == [[0, 1]]
    assert MAIN not in layout.calls[1]
    assert positions(layout, 1, DECODER) == [[2]]


# --- Packed rows -----------------------------------------------------------------------------------


def test_a_sample_begins_where_positions_restart():
    ids = torch.tensor([[3, 4, 5, 6, 7], [3, 4, 5, 9, 9]])
    position_ids = torch.tensor([[0, 1, 0, 1, 2], [0, 0, 1, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    layout = Layout.read([{"input_ids": ids, "position_ids": position_ids, "attention_mask": mask}])
    assert samples(layout) == [[0, 0, 1, 1, 1], [2, 3, 3, -1, -1]]
    assert positions(layout) == [[0, 1, 0, 1, 2], [0, 0, 1, -1, -1]]
    by_hand = Layout.packed(position_ids, mask=mask)
    assert samples(by_hand) == samples(layout)
    assert positions(by_hand) == positions(layout)


@pytest.mark.parametrize(
    "position_ids",
    [
        torch.tensor([[0, 1, 2]]),
        torch.tensor([[2, 3, 4]]),  # they begin after the padding index, as in RoBERTa
        torch.tensor([[5, 5, 5]]),
    ],
)
def test_positions_that_do_not_restart_are_no_packing(position_ids):
    layout = Layout.read([{"input_ids": torch.tensor([[4, 5, 6]]), "position_ids": position_ids}])
    assert samples(layout) == [[0, 0, 0]]
    assert positions(layout) == [[0, 1, 2]]


def test_the_zeros_that_a_mask_gives_to_left_padding_are_no_packing():
    mask = torch.tensor([[0, 0, 1, 1]])
    inputs = {
        "input_ids": torch.tensor([[9, 9, 4, 5]]),
        "attention_mask": mask,
        "position_ids": (mask.cumsum(-1) - 1).clamp(min=0),
    }
    assert samples(Layout.read([inputs])) == [[-1, -1, 0, 0]]


@pytest.mark.parametrize("name", ["cu_seqlens", "cu_seq_lens_q", "cu_seqlens_q"])
def test_cumulative_lengths_split_a_row(name):
    inputs = {"input_ids": torch.arange(6)[None], name: torch.tensor([0, 2, 5], dtype=torch.int32)}
    layout = Layout.read([inputs])
    assert samples(layout) == [[0, 0, 1, 1, 1, -1]]
    assert positions(layout) == [[0, 1, 0, 1, 2, -1]]
    assert samples(Layout.packed(cu_seqlens=torch.tensor([0, 2, 5]))) == [[0, 0, 1, 1, 1]]


def test_cumulative_lengths_may_hold_an_empty_sample():
    layout = Layout.packed(cu_seqlens=torch.tensor([0, 2, 2, 3]))
    assert samples(layout) == [[0, 0, 2]]
    assert positions(layout) == [[0, 1, 0]]


# --- An encoder, and a cache that is given ---------------------------------------------------------


def test_what_an_encoder_reads_goes_in_anew_with_every_step_of_its_decoder():
    encoded, steps = torch.ones(2, 4, dtype=torch.int64), torch.ones(2, 3, dtype=torch.int64)
    calls = [{"input_ids": encoded, "decoder_input_ids": steps[:, n : n + 1]} for n in range(3)]
    layout = Layout.read(calls)
    assert [call[MAIN].position[0].tolist() for call in layout.calls] == [[0, 1, 2, 3]] * 3
    assert [call[DECODER].position[0].tolist() for call in layout.calls] == [[0], [1], [2]]
    alone = Layout.read([{"input_ids": call["decoder_input_ids"]} for call in calls])
    assert [call[MAIN].position[0].tolist() for call in alone.calls] == [[0], [1], [2]]


class Cache:
    def __init__(self, length: int) -> None:
        self.length = length

    def get_seq_length(self) -> int:
        return self.length


class States:
    """What a recurrent model keeps: it does not say of how many tokens."""

    def get_seq_length(self) -> int:
        raise ValueError("no attention layer")


def test_positions_may_go_on_from_a_cache_that_is_given():
    ids = torch.ones(2, 2, dtype=torch.int64)
    calls = [{"input_ids": ids, "past_key_values": Cache(3)}, {"input_ids": ids[:, :1]}]
    went = [call[MAIN].position.tolist() for call in Layout.read(calls, after_cache=True).calls]
    assert went == [[[3, 4], [3, 4]], [[5], [5]]]
    assert [call[MAIN].position[0].tolist() for call in Layout.read(calls).calls] == [[0, 1], [2]]
    named = {"input_ids": ids, "cache": Cache(3)}
    assert positions(Layout.read([named], after_cache=True)) == [[3, 4], [3, 4]]
    padded = {**calls[0], "attention_mask": torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 0]])}
    assert positions(Layout.read([padded], after_cache=True)) == [[2, 3], [3, -1]]
    unknown = {**calls[0], "past_key_values": (ids, ids)}
    assert positions(Layout.read([unknown], after_cache=True)) == [[0, 1], [0, 1]]
    states = {"input_ids": ids, "cache_params": States()}
    assert positions(Layout.read([states], after_cache=True)) == [[0, 1], [0, 1]]
    decoder = {"input_ids": ids, "decoder_input_ids": ids, "past_key_values": Cache(3)}
    (call,) = Layout.read([decoder], after_cache=True).calls
    assert (call[MAIN].position.tolist(), call[DECODER].position.tolist()) == ([[0, 1]] * 2, [[3, 4]] * 2)


# --- What is no layout -----------------------------------------------------------------------------

ONES = torch.ones(1, 2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Layout.from_mask([[1, 0]]), "mask of type list; expected a tensor"),
        (lambda: Layout.steps([[[1, 0]]]), "mask of type list; expected a tensor"),
        (lambda: Layout.from_mask(ONES, samples=[["a"]]), r"a sample named \['a'\]; expected a name that can be"),
        (lambda: Coordinates([[0]], [[0]]), "sample of type list; expected a tensor"),
        (lambda: Layout(Coordinates(ONES, ONES)), "calls of type Coordinates; expected a list with one entry a"),
        (lambda: Layout([ONES]), "a call of type Tensor; expected fp.Coordinates, or a mapping from input names"),
        (lambda: Layout([{"input_ids": ONES}]), "a call of type dict; expected fp.Coordinates, or a mapping"),
        (
            lambda: Layout([dict.fromkeys(("input_ids", "x"), Coordinates(ONES, ONES))]),
            r"two inputs of one stream among \['input_ids', 'x'\]",
        ),
        (lambda: Layout.packed([[0, 1]]), "position_ids of type list; expected a tensor"),
        (lambda: Layout.packed(cu_seqlens=[0, 1]), "cu_seqlens of type list; expected a tensor"),
        *(
            (lambda edges=edges: Layout.packed(cu_seqlens=torch.tensor(edges)), "cu_seqlens .*; expected .samples")
            for edges in ([0, 8, 4], [], [4], [[0, 4]], [-1, 4])
        ),
    ],
)  # fmt: skip
def test_what_is_no_layout_is_one_error(make, message):
    with pytest.raises(LayoutError, match=message):
        make()


def test_a_run_takes_a_layout_and_nothing_else():
    with pytest.raises(InputError, match=r"a layout of type Coordinates; expected an fp\.Layout"):
        Run(nn.Linear(4, 4), {"x": torch.ones(1, 2, 4)}, layout=Coordinates(ONES, ONES))


def test_lengths_that_do_not_fall_are_lengths():
    layout = Layout.packed(cu_seqlens=torch.tensor([0, 2, 2, 3]))
    assert samples(layout) == [[0, 0, 2]]


# --- Other inputs ----------------------------------------------------------------------------------


def test_a_bool_key_padding_mask_says_where_the_padding_is():
    mask = torch.tensor([[False, False, True]])
    for name in ("src_key_padding_mask", "key_padding_mask"):
        assert positions(Layout.read([{"src": torch.zeros(1, 3, 2), name: mask}])) == [[0, 1, -1]]


def test_a_mask_may_be_of_rows_for_an_input_of_columns():
    mask = torch.tensor([[False, False, True], [False, True, True]])
    layout = Layout.read([{"src": torch.zeros(3, 2, 4), "src_key_padding_mask": mask}])
    assert positions(layout) == [[0, 0], [1, -1], [-1, -1]]


def test_an_image_is_one_coordinate_a_row():
    layout = Layout.read([{"pixel_values": torch.zeros(2, 3, 4, 4)}])
    assert samples(layout) == [0, 1]
    assert positions(layout) == [0, 0]


def test_audio_has_a_column_for_each_sample_or_frame():
    assert positions(Layout.read([{"input_values": torch.zeros(1, 3)}])) == [[0, 1, 2]]
    frames = {"input_features": torch.zeros(1, 80, 3), "attention_mask": torch.tensor([[1, 1, 0]])}
    assert positions(Layout.read([frames])) == [[0, 1, -1]]


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "grid"),
    [
        ("input_ids", (2, 3), torch.int64, (2, 3)),
        ("inputs_embeds", (2, 3, 4), torch.float32, (2, 3)),
        ("input_values", (2, 3), torch.float32, (2, 3)),
        ("input_features", (2, 80, 3), torch.float32, None),
        ("pixel_values", (2, 3, 4), torch.float32, None),
        ("x", (2, 3), torch.float32, None),
    ],
)
def test_which_dimensions_of_an_input_are_its_tokens(name, shape, dtype, grid):
    assert grid_shape(name, torch.zeros(shape, dtype=dtype)) == grid


def test_the_tokens_of_a_call_are_found_by_name_before_order():
    ids, mask = torch.ones(1, 2, dtype=torch.int64), torch.ones(1, 2)
    assert token_tensor({"attention_mask": mask, "token_type_ids": ids, "input_ids": ids}, MAIN) == (
        "input_ids",
        ids,
    )
    assert token_tensor({"attention_mask": mask, "x": ids}, MAIN) == ("x", ids)
    assert token_tensor({"attention_mask": mask}, MAIN) is None
    hidden = torch.zeros(1, 2, 3)
    found = token_tensor({"encoder_outputs": (hidden,), "decoder_input_ids": ids}, MAIN)
    assert found is not None
    assert found[1] is hidden


def test_streams_are_told_by_the_names_of_inputs():
    assert [stream_of(n) for n in ("input_ids", "decoder_input_ids", "decoder", "decode")] == [
        MAIN, DECODER, DECODER, MAIN,
    ]  # fmt: skip


# --- Pairing ---------------------------------------------------------------------------------------


def pair(
    a: list[dict], b: list[dict], layout_a: Layout | None = None, layout_b: Layout | None = None
) -> Pairing:
    one, two = layout_a or Layout.read(a), layout_b or Layout.read(b)
    return pair_samples(one, two, read_content(one, a), read_content(two, b))


def tokens(*rows: list[int]) -> dict:
    """Rows of ids; 0 is padding."""
    ids = torch.tensor(rows)
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


def test_equal_rows_are_pairs_wherever_they_are():
    found = pair([tokens([1, 2, 3], [4, 5, 6])], [tokens([0, 4, 5, 6], [0, 1, 2, 3])])
    assert found == Pairing(((0, 1), (1, 0)), (), ())


def test_equal_rows_are_paired_in_their_order():
    found = pair([tokens([1, 2], [1, 2])], [tokens([7, 7], [1, 2], [1, 2])])
    assert found == Pairing(((0, 1), (1, 2)), (), (0,))


def test_the_rows_of_one_run_alone_are_its_batch_mates():
    found = pair([tokens([1, 2])], [tokens([3, 3], [1, 2], [4, 4])])
    assert found == Pairing(((0, 1),), (), (0, 2))


def test_what_sits_in_the_padding_pairs_nothing():
    a = {"input_ids": torch.tensor([[1, 9]]), "attention_mask": torch.tensor([[1, 0]])}
    b = {"input_ids": torch.tensor([[8, 1]]), "attention_mask": torch.tensor([[0, 1]])}
    assert pair([a], [b]) == Pairing(((0, 0),), (), ())


def test_a_row_that_begins_as_another_goes_on_is_its_pair():
    found = pair([tokens([1, 2, 3, 4], [5, 6, 7, 8])], [tokens([5, 6, 0], [1, 2, 3], [9, 9, 9])])
    assert found == Pairing(((0, 1), (1, 0)), (), (2,))


def test_the_steps_of_a_run_are_one_content():
    whole = tokens([1, 2, 3])
    steps = [{"input_ids": torch.tensor([[1, 2]])}, {"input_ids": torch.tensor([[3]])}]
    assert pair([whole], steps) == Pairing(((0, 0),), (), ())


def test_as_many_rows_of_different_things_are_paired_in_order():
    found = pair([tokens([1, 2], [3, 4])], [tokens([5, 6], [1, 2])])
    assert found == Pairing(((0, 1), (1, 0)), (), (), by_order=((1, 0),))


def test_float_rows_are_paired_by_their_values():
    x = torch.randn(2, 3, 4)
    padded = torch.cat([torch.randn(2, 1, 4), x.flip(0)], 1)
    layout = Layout.from_mask(torch.tensor([[0, 1, 1, 1]] * 2))
    assert pair([{"x": x}], [{"x": padded}], layout_b=layout) == Pairing(((0, 1), (1, 0)), (), ())


def test_names_pair_rows_that_hold_different_things():
    a, b = tokens([1, 2], [3, 4]), tokens([1, 2], [3, 4], [5, 6])
    found = pair(
        [a], [b],
        Layout.from_mask(torch.ones(2, 2), samples=["x", "y"]),
        Layout.from_mask(torch.ones(3, 2), samples=["y", "z", "x"]),
    )  # fmt: skip
    assert found == Pairing(((0, 2), (1, 0)), (), (1,))


def test_packed_samples_are_rows_of_their_own():
    packed = {"input_ids": torch.tensor([[4, 5, 1, 2, 3]]), "position_ids": torch.tensor([[0, 1, 0, 1, 2]])}
    assert pair([tokens([1, 2, 3], [4, 5, 0])], [packed]) == Pairing(((0, 1), (1, 0)), (), ())


# --- Messages --------------------------------------------------------------------------------------


def message(error: type[Exception], call) -> str:
    with pytest.raises(error) as raised:
        call()
    return str(raised.value)


IDS = torch.ones(2, 3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: Coordinates(torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, 3, dtype=torch.int64)),
            "sample has shape (1, 2) and position (1, 3); expected two integer tensors of one shape",
        ),
        (
            lambda: Coordinates(torch.zeros(1, 2), torch.zeros(1, 2, dtype=torch.int64)),
            "sample has dtype torch.float32; expected integers, -1 for padding",
        ),
        (
            lambda: Layout.from_mask(torch.ones(1, 1, 3, 3)),
            "mask of shape (1, 1, 3, 3); expected [rows, columns] (for 4-D masks give the layout by hand)",
        ),
        (
            lambda: Layout.from_mask(torch.ones(2, 3), samples=["one"]),
            "1 sample names for a mask of 2 rows; expected one name a row",
        ),
        (
            Layout.packed,
            "both or none of position_ids and cu_seqlens; expected exactly one of them",
        ),
        (
            lambda: Layout.packed(torch.tensor([[0]]), cu_seqlens=torch.tensor([0, 1])),
            "both or none of position_ids and cu_seqlens; expected exactly one of them",
        ),
        (
            lambda: Layout.read([{"input_ids": IDS, "cu_seqlens": torch.tensor([0, 7])}]),
            "cu_seqlens ends at 7, the tokens are 6; expected lengths that add up to the tokens",
        ),
        (
            lambda: pair([tokens([1, 2])], [tokens([3, 4], [5, 6])]),
            ("no row of the first run (1) is a row of the second (2); expected runs that share at least one sample "
            "(name the samples by hand: fp.Layout.from_mask(mask, samples=[...]))"),
        ),
    ],
)  # fmt: skip
def test_a_layout_that_contradicts_itself_is_refused(call, text):
    assert message(LayoutError, call) == text


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        (
            {"input_ids": IDS, "attention_mask": torch.zeros(2, 3)},
            ("an attention mask of zeros: no column holds a token; expected a mask with 1 at every real token "
            "(pass the mask that the tokenizer returned)"),
        ),
        (
            {"input_ids": IDS, "attention_mask": torch.ones(2, 2)},
            ("call 0: attention_mask of shape (2, 2) for input_ids of shape (2, 3); expected a mask with a column for "
            "each token (and for each token in the cache)"),
        ),
        (
            {"input_ids": IDS, "attention_mask": torch.ones(1, 3)},
            ("call 0: attention_mask of shape (1, 3) for input_ids of shape (2, 3); expected a mask with a column for "
            "each token (and for each token in the cache)"),
        ),
    ],
)  # fmt: skip
def test_a_mask_that_does_not_fit_its_tokens_is_refused(inputs, text):
    assert message(InputError, lambda: Layout.read([inputs])) == text


# --- Images beside a text -------------------------------------------------------------------------


def test_an_image_beside_a_text_is_that_of_the_sample_in_its_row():
    inputs = {"input_ids": torch.ones(2, 3).long(), "pixel_values": torch.ones(2, 3, 4, 4)}
    layout = Layout.read([inputs])
    assert samples(layout, stream=IMAGE) == [0, 1]
    assert positions(layout, stream=IMAGE) == [0, 0]
    assert token_tensor(inputs, IMAGE) == ("pixel_values", inputs["pixel_values"])
    assert Layout([{"input_ids": layout.calls[0][MAIN], IMAGE: layout.calls[0][IMAGE]}]).calls == layout.calls


@pytest.mark.parametrize(
    "inputs",
    [
        {"pixel_values": torch.ones(2, 3, 4, 4)},  # all that there is
        {"input_ids": torch.ones(2, 3).long(), "pixel_values": torch.ones(5, 3, 4, 4)},  # whose are they?
        {"input_ids": torch.ones(2, 3).long(), "pixel_values": torch.ones(2, 12)},  # patches of all images
        {  # two samples in a row
            "input_ids": torch.ones(1, 4).long(), "position_ids": torch.tensor([[0, 1, 0, 1]]),
            "pixel_values": torch.ones(1, 3, 4, 4),
        },
    ],
)  # fmt: skip
def test_images_that_are_no_row_s_have_no_coordinates(inputs):
    assert IMAGE not in Layout.read([inputs]).calls[0]
