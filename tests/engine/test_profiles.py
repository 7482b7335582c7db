"""Profiles as asked for, cut to the model, and as proposed from lengths."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptexport.engine.profiles import make_profiles, propose_profiles, read_lengths
from gptexport.errors import EngineError, OptionError
from gptexport_runtime import InputError
from gptexport_runtime.contract.engine import Profile, choose_profile


def test_defaults_are_cut_to_the_block_size() -> None:
    assert make_profiles([], [], [], block_size=1024) == (Profile(min=(1, 1), opt=(8, 256), max=(8, 1024)),)
    assert make_profiles([], [], [], block_size=128) == (Profile(min=(1, 1), opt=(8, 128), max=(8, 128)),)
    assert make_profiles([], [], [], block_size=None) == (Profile(min=(1, 1), opt=(8, 256), max=(8, 1024)),)


def test_what_is_given_decides_what_is_not() -> None:
    assert make_profiles([], [], [(2, 64)], block_size=1024)[0].opt == (2, 64)
    assert make_profiles([(16, 300)], [], [(32, 512)], block_size=1024)[0].opt == (16, 300)


def test_several_are_paired_in_order() -> None:
    two = make_profiles([(1, 1), (1, 129)], [], [(8, 128), (8, 1024)], block_size=1024)
    assert [(p.min, p.max) for p in two] == [((1, 1), (8, 128)), ((1, 129), (8, 1024))]
    with pytest.raises(OptionError, match="2 profiles, but 1 times --opt"):
        make_profiles([], [(1, 1)], [(8, 128), (8, 1024)], block_size=1024)
    with pytest.raises(OptionError, match="9 profiles; expected at most 8"):
        make_profiles([], [], [(1, 1)] * 9, block_size=1024)


@pytest.mark.parametrize("name", ["low", "opt", "high"])
def test_t_beyond_the_block_size_is_refused(name: str) -> None:
    shapes: dict[str, list[tuple[int, int]]] = {"low": [], "opt": [], "high": []} | {name: [(1, 1025)]}
    with pytest.raises(OptionError, match=r"1x1025: T is beyond the model's block_size, 1024.*Use --\w+ 1x1024"):
        make_profiles(**shapes, block_size=1024)


lengths_lists = st.lists(st.integers(1, 1024), min_size=1, max_size=60)


@given(lengths=lengths_lists, buckets=st.integers(1, 5))
def test_proposed_profiles_take_every_length_once(lengths: list[int], buckets: int) -> None:
    profiles = propose_profiles(lengths, opt_B=4, max_B=8, block_size=1024, buckets=buckets)
    assert len(profiles) <= buckets
    assert (profiles[0].min, profiles[-1].max) == ((1, 1), (8, 1024))
    assert all(after.min[1] == before.max[1] + 1 for before, after in pairwise(profiles))


@given(lengths=lengths_lists)
def test_more_buckets_never_waste_more(lengths: list[int]) -> None:
    def cost(buckets: int) -> int:
        bounds = [p.max[1] for p in propose_profiles(lengths, opt_B=1, max_B=1, block_size=1024, buckets=buckets)]
        return sum(min(bound for bound in bounds if bound >= length) for length in lengths)

    costs = [cost(buckets) for buckets in (1, 2, 3, 4)]
    assert costs == sorted(costs, reverse=True)


def test_bound_is_where_it_wastes_least() -> None:
    lengths = [100] * 90 + [900] * 10
    assert [p.max[1] for p in propose_profiles(lengths, opt_B=1, max_B=1, block_size=1024, buckets=2)] == [128, 1024]
    assert [p.max[1] for p in propose_profiles(lengths, opt_B=1, max_B=1, block_size=1024)] == [128, 960, 1024]


@pytest.mark.parametrize(
    ("lengths", "message"), [([5, 1025], "first: 1025"), ([0], "first: 0"), ([], "there are none")]
)
def test_impossible_lengths_are_refused(lengths: list[int], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        propose_profiles(lengths, opt_B=1, max_B=1, block_size=1024)


def test_lengths_from_text_and_npy(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("1\n2, 3\n")
    np.save(tmp_path / "a.npy", np.array([[1, 2], [3, 4]]))
    np.save(tmp_path / "b.npy", np.array([1.5]))
    (tmp_path / "b.txt").write_text("one\n")
    assert read_lengths(tmp_path / "a.txt") == [1, 2, 3]
    assert read_lengths(tmp_path / "a.npy") == [1, 2, 3, 4]
    for name in ("b.npy", "b.txt"):
        with pytest.raises(EngineError, match="is not a list of lengths"):
            read_lengths(tmp_path / name)


def test_profile_with_the_least_to_spare_is_chosen() -> None:
    profiles = make_profiles([], [], [(8, 1024), (8, 128), (2, 256)], block_size=1024)
    assert [choose_profile(profiles, *shape) for shape in ((1, 1), (2, 200), (8, 129), (8, 128))] == [2, 2, 0, 1]
    with pytest.raises(InputError, match=r"B=9, T=4; this engine takes B 1 to 8 and T 1 to 1024; or B 1 to 8"):
        choose_profile(profiles, 9, 4)
