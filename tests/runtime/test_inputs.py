"""Every kind of wrong ids is one clear error, before any backend sees it."""

import numpy as np
import pytest

from gptexport_runtime import ContextLengthError, InputError
from gptexport_runtime.inputs import check_out, check_predicted, is_count, items_of, to_batch

V, BLOCK = 61, 16
U64 = np.uint64
HUGE = np.array([[1, 2**64 - 1]], dtype=U64)  # -1 as an int64


class OnAnotherDevice:
    def __array__(self) -> None:
        raise TypeError("copy it to host memory first")


WRONG = {
    "none": (None, "ids is None; expected (B,T)"),
    "text": ("hello", "ids is a str ('hello'); expected (B,T) integer token ids. Encode text"),
    "bytes": (b"hi", "ids is a bytes (b'hi')"),
    "number": (7, "ids is an int (7)"),
    "generator": ((row for row in [[1]]), "ids is a generator"),
    "dict": ({0: [1]}, "ids is a dict"),
    "tensor elsewhere": (OnAnotherDevice(), "does not convert to numpy (copy it to host memory first)"),
    "float array": (np.zeros((2, 3)), "ids has dtype float64; expected integers. Convert it"),
    "bool array": (np.zeros((2, 3), bool), "ids has dtype bool; expected integers"),
    "object array": (np.array([[1], [1, 2]], object), "ids has dtype object; expected integers. For ragged rows"),
    "0-D": (np.array(3), "ids has shape (); expected 2 dimensions"),
    "1-D": (np.arange(3), "ids has shape (3,); expected 2 dimensions (B,T). For one row pass [ids]"),
    "3-D": (np.zeros((1, 2, 3), int), "ids has shape (1, 2, 3); expected 2 dimensions (B,T)."),
    "no rows": (np.zeros((0, 3), int), "ids has shape (0, 3), an empty batch; expected B of 1 or more"),
    "no tokens": (np.zeros((2, 0), int), "each row of ids is empty; expected T of 1 or more"),
    "too long": (np.zeros((2, 17), int), "each row of ids has 17 tokens; the model's block_size is 16"),
    "id = V": (np.array([[0, 60], [61, 99]]), "ids[1][0] is 61; expected 0 <= id < 61, the model's vocab_size"),
    "negative": (np.array([[0, 1], [2, -1]], np.int8), "ids[1][1] is -1; expected 0 <= id < 61"),
    "first of both": (np.array([[0, 70], [-1, 1]]), "ids[0][1] is 70"),
    "uint64": (HUGE, "ids[0][1] is 18446744073709551615; expected"),
    "flat list": ([1, 2], "ids is a flat list; expected a list of B rows. For one row pass [ids]"),
    "flat numpy ints": ([np.int64(1)], "ids is a flat list"),
    "number among rows": ([[1], 2], "row 1 of ids is an int (2); expected a list of ints"),
    "numpy number among rows": ([[1], np.int64(2)], "row 1 of ids is an int64"),
    "0-D among rows": ([[1], np.array(2)], "row 1 of ids has dtype int64 and shape (); expected 1-D integers"),
    "empty list": ([], "ids is empty, a batch without rows; expected B of 1 or more"),
    "empty row": ([[1], []], "row 1 of ids is empty; expected 1 or more tokens in every row"),
    "empty array row": ([[1], np.array([])], "row 1 of ids is empty; expected 1 or more tokens in every row"),
    "text row": ([[1], "hello"], "row 1 of ids is a str ('hello'); expected a list of ints"),
    "float row": ([[1], [2, 2.0]], "ids[1][1] is a float (2.0); expected an int"),
    "bool row": ([[1, True]], "ids[0][1] is a bool (True); expected an int"),
    "none in row": ([[1], [None]], "ids[1][0] is None; expected an int"),
    "nested twice": ([[[1]]], "ids[0][0] is a list; expected an int"),
    "float array row": ([np.zeros(2)], "row 0 of ids has dtype float64 and shape (2,); expected 1-D integers"),
    "bool array row": ([np.zeros(2, bool)], "row 0 of ids has dtype bool and shape (2,)"),
    "long row": ([[1], [0] * 17], "row 1 of ids has 17 tokens; the model's block_size is 16"),
    "id = V in a row": ([[1], [2, 61]], "ids[1][1] is 61; expected 0 <= id < 61"),
    "negative in a row": ([[1], [-2]], "ids[1][0] is -2"),
    "past 64 bits": ([[1], [3, 2**70]], f"ids[1][1] is {2**70}; expected 0 <= id < 61"),
    "uint64 row": ([[-1], HUGE[0]], "ids[0][0] is -1"),
    "uint64 rows alone": ([HUGE[0], HUGE[0]], "ids[0][1] is 18446744073709551615"),
    "negative after others, beside uint64": ([[5, -1], HUGE[0]], "ids[0][1] is -1"),
    "past 64 bits after 0": ([[0, 2**70]], f"ids[0][1] is {2**70}; expected 0 <= id < 61"),
    "masked": (np.ma.masked_equal([[1, 2]], 2), "ids is a masked array; expected ids that all count"),
    "masked row": ([[1], np.ma.masked_equal([1, 2], 2)], "row 1 of ids is a masked array"),
    "uint64 row only": ([[1], HUGE[0]], "ids[1][1] is 18446744073709551615"),
}


@pytest.mark.parametrize(("ids", "message"), WRONG.values(), ids=WRONG)
def test_wrong_ids_are_refused_with_what_was_got(ids: object, message: str) -> None:
    with pytest.raises(InputError) as caught:
        to_batch(ids, vocab_size=V, block_size=BLOCK)
    assert message in str(caught.value)
    assert isinstance(caught.value, ContextLengthError) == ("tokens; the model's block_size" in message)


DTYPES = ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", ">i4"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_integer_dtype_is_taken(dtype: str) -> None:
    batch = to_batch(np.array([[0, 60], [5, 1]], dtype), vocab_size=V, block_size=BLOCK)
    assert batch.ids.dtype == np.int64 and batch.ids.tolist() == [[0, 60], [5, 1]] and batch.lengths.tolist() == [2, 2]


class Row:
    """Of another library, that numpy converts."""

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        return np.array([5, 6])


RAGGED = {
    "lists": [[1, 2, 3], [4], [5, 6]],
    "tuples": ((1, 2, 3), (4,), (5, 6)),
    "arrays": [np.array([1, 2, 3], np.uint8), np.array([4], np.int16), np.array([5, 6])],
    "of another library": [[1, 2, 3], [4], Row()],
    "mixed": [range(1, 4), [np.int32(4)], np.array([5, 6], U64)],
}


@pytest.mark.parametrize("rows", RAGGED.values(), ids=RAGGED)
def test_ragged_rows_are_padded_on_the_right(rows: object) -> None:
    batch = to_batch(rows, vocab_size=V, block_size=BLOCK)
    assert batch.ids.dtype == np.int64 and batch.ids.flags.c_contiguous
    assert batch.ids.tolist() == [[1, 2, 3], [4, 0, 0], [5, 6, 0]] and batch.lengths.tolist() == [3, 1, 2]
    assert batch.ragged and not to_batch([[1, 2], [3, 4]], vocab_size=V, block_size=BLOCK).ragged


def test_zero_beside_unsigned_ids_is_an_id() -> None:
    assert to_batch([[0, 1], np.array([5, 6], U64)], vocab_size=V, block_size=BLOCK).ids.tolist() == [[0, 1], [5, 6]]


@pytest.mark.parametrize("value", [True, np.True_, 1.0, "1", None, 0, -1, 2**63])
def test_what_is_no_count(value: object) -> None:
    assert not is_count(value)
    assert is_count(1) and is_count(2**63 - 1) and is_count(np.uint8(1)) and is_count(0, least=0)


def test_ids_that_are_never_predicted_only_begin_a_row() -> None:
    check_predicted(to_batch([[60, 1], [2, 59]], vocab_size=V, block_size=BLOCK), 60)
    with pytest.raises(InputError, match=r"ids\[1\]\[2\] is 60, which the model takes and never predicts"):
        check_predicted(to_batch([[60, 1, 1], [2, 59, 60]], vocab_size=V, block_size=BLOCK), 60)


def test_what_a_backend_gets_is_contiguous() -> None:
    ids = np.arange(12).reshape(3, 4).T
    batch = to_batch(ids, vocab_size=V, block_size=BLOCK)
    assert batch.ids.flags.c_contiguous and (batch.ids == ids).all()


def test_int64_ids_are_not_copied() -> None:
    ids = np.zeros((2, 3), np.int64)
    assert to_batch(ids, vocab_size=V, block_size=BLOCK).ids is ids


def test_whole_block_is_allowed_and_unknown_block_size_is_not_checked() -> None:
    assert to_batch(np.zeros((1, BLOCK), int), vocab_size=V, block_size=BLOCK).shape == (1, BLOCK)
    assert to_batch(np.zeros((1, 99), int), vocab_size=V, block_size=None).shape == (1, 99)


@pytest.mark.parametrize(
    "out",
    [np.zeros((2, 3), np.float64), np.zeros((3, 2), np.float32), np.zeros((3, 2), np.float32).T, [[0.0] * 3] * 2],
    ids=["of another type", "of another shape", "not contiguous", "no array"],
)
def test_a_buffer_that_is_wrong_in_one_way_is_refused(out: object) -> None:
    with pytest.raises(InputError, match=r"expected a writable, C-contiguous float32 array of shape \(2, 3\)"):
        check_out(out, (2, 3))
    check_out(np.zeros((2, 3), np.float32), (2, 3))


@pytest.mark.parametrize("value", [np.array(3), "ab", b"ab", 3, None])
def test_what_holds_no_items_is_no_list_of_them(value: object) -> None:
    assert items_of(value) is None
    assert items_of(np.array([3, 4])) == items_of([3, 4]) == items_of((3, 4)) == [3, 4]
