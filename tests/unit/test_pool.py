"""The states of pages in blocks, against one state for each page."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uffdtrace.model.account import pool as pool_module
from uffdtrace.model.account.pages import Op
from uffdtrace.model.account.pool import BLOCK, REGION, Pool, States
from uffdtrace.model.account.states import BITS, CHANGES, EFFECT, NEXT
from uffdtrace.model.records.events import Array

PAGES = 4 * BLOCK
PLACES = st.one_of(st.integers(0, PAGES - 1), st.integers(0, 3).map(lambda block: block * BLOCK))
SPANS = st.tuples(PLACES, PLACES).filter(lambda span: span[0] != span[1]).map(sorted)
OPS = st.sampled_from([Op.ARM, Op.ARM_FULL, Op.DISCARD, Op.FRESH, Op.WP_MESSAGE, Op.RELEASE, Op.COPY, Op.ENDED])
# What happens to pages in a row, to single ones, or puts states there.
STEPS = st.one_of(
    st.tuples(st.just("row"), OPS, SPANS),
    st.tuples(st.just("single"), OPS, st.lists(PLACES, min_size=1, max_size=5)),
    st.tuples(st.just("written"), OPS, SPANS),
)
WANTED = np.arange(len(CHANGES)) % 2 == 1


def told(plain: Array, op: Op, first: int, end: int) -> tuple[list[int], dict[int, int]]:
    """Does the operation to each page of `plain`; how many each effect befell, and those of the wanted ones."""
    effects = EFFECT[op][plain[first:end]]
    plain[first:end] = NEXT[op][plain[first:end]]
    wanted = {first + at: effect for at, effect in enumerate(effects.tolist()) if WANTED[effect]}
    return np.bincount(effects, minlength=len(CHANGES)).tolist(), wanted


def regions_of(patch: pytest.MonkeyPatch, shift: int) -> None:
    """Regions of 2^shift pages."""
    patch.setattr(pool_module, "_REGION_SHIFT", shift)
    patch.setattr(pool_module, "REGION", 1 << shift)
    patch.setattr(pool_module, "_IN_REGION", 1 << (shift - 9))
    patch.setattr(pool_module, "_BLOCKS_BYTES", 6 << (shift - 9))


def in_runs(states: Array) -> States:
    """Cut where nothing changes, too."""
    return States(np.array([1] * len(states) + [0] * (not len(states))), states if len(states) else np.zeros(1, "u2"))


@pytest.mark.parametrize("shift", [9, 10, 11, 23], ids=lambda shift: f"regions of {1 << shift}")
@given(before=st.integers(0, 2 * BLOCK), steps=st.lists(STEPS, max_size=8))
def test_against_a_state_for_each_page(shift: int, before: int, steps: list[tuple[str, Op, list[int]]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        regions_of(patch, shift)
        check(before, steps)


def check(before: int, steps: list[tuple[str, Op, list[int]]]) -> None:
    pool, plain = Pool(), np.zeros(PAGES, dtype=np.uint16)
    # Somebody else's pages, in the same blocks as ours.
    other = pool.take(before)
    base = pool.take(PAGES)
    pool.do(other, before, Op.ARM_FULL, WANTED)
    untouched = pool.states(other, before).every().tolist() if before else []
    for what, op, pages in steps:
        if what == "single":
            places = np.array(pages)
            effects = pool.apply(base + places, np.full(len(places), int(op), dtype=np.uint8))
            for place, effect in zip(pages, effects.tolist()):
                assert effect == EFFECT[op][plain[place]]
                plain[place] = NEXT[op][plain[place]]
            continue
        first, end = pages
        if what == "written":
            plain[first:end] = NEXT[op][plain[first:end]]
            pool.write(base + first, in_runs(plain[first:end]))
            continue
        counts, wanted = told(plain, op, first, end)
        befell, runs = pool.do(base + first, end - first, op, WANTED)
        assert befell.tolist() == counts
        found = zip((runs.places() - base).tolist(), np.repeat(runs.effects, runs.pages).tolist())
        assert dict(found) == wanted
    kept = pool.states(base, PAGES)
    assert kept.every().tolist() == plain.tolist()
    assert (kept.sizes > 0).all() and (kept.states[1:] != kept.states[:-1]).all()
    assert not pool.lacks(base, PAGES)
    assert pool.read(base + np.arange(0, PAGES, 7)).tolist() == plain[::7].tolist()
    assert pool.count(base + 5, PAGES - 9).tolist() == np.bincount(plain[5:-4], minlength=len(BITS)).tolist()
    assert not before or pool.states(other, before).every().tolist() == untouched


def test_what_nothing_happened_to_takes_no_memory() -> None:
    pool = Pool()
    pages = 1 << 34
    for _ in range(100):
        place = pool.take(pages)
        befell, _ = pool.do(place, pages, Op.ARM_FULL, WANTED)
        assert int(befell.sum()) == pages
        assert len(pool.states(place, pages).sizes) == 1
    assert pool._blocks == pool_module._IN_REGION and pool._rows == 2
    pool.apply(np.array([place + 12345]), np.array([int(Op.RELEASE)], dtype=np.uint8))
    assert pool._blocks == 2 * pool_module._IN_REGION and pool._rows == 3
    assert pool.states(place, pages).sizes.tolist() == [12345, 1, pages - 12346]
    assert int(pool.count(place, pages).sum()) == pages


def test_more_than_any_machine_has() -> None:
    """What is not kept says nothing, and what is kept is not touched by it."""
    pool = Pool()
    kept = pool.take(100)
    pool.do(kept, 100, Op.ARM_FULL, WANTED)
    before = pool.states(kept, 100).every().tolist()
    place = pool.take(1 << 60)
    assert pool.lacks(place, 1 << 60) and not pool.lacks(kept, 100)
    befell, runs = pool.do(place, 1 << 60, Op.ARM_FULL, WANTED)
    assert not befell.any() and not len(runs.firsts)
    assert not pool.count(place, 1 << 60).any()
    pool.apply(np.array([place + (1 << 59), kept]), np.array([int(Op.RELEASE), int(Op.ARM)], dtype=np.uint8))
    assert len(pool.read(np.array([place + 5, kept]))) == 2
    pool.write(place, pool.states(place, 1 << 60))
    assert pool.states(kept, 100).every().tolist()[1:] == before[1:]
    assert pool.lacks(place, 1) and not pool.lacks(kept, 100)


def test_more_touched_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "MOST_BYTES", 4 * pool_module._BLOCKS_BYTES)
    pool = Pool()
    first, last = pool.take(1000), pool.take(8 * REGION)
    pool.do(first, 1000, Op.ARM_FULL, WANTED)
    states = pool.states(first, 1000).every().tolist()
    for region in range(8):
        pool.apply(np.array([last + region * REGION + 7]), np.array([int(Op.ARM)], dtype=np.uint8))
    assert pool.lacks(last, 8 * REGION) and not pool.lacks(first, 1000)
    assert not pool.lacks(last, REGION)
    pool.do(last, 8 * REGION, Op.DISCARD, WANTED)
    assert pool.states(first, 1000).every().tolist() == states
    # Cells run out, too.
    places = last + np.arange(0, REGION, BLOCK)
    pool.apply(places, np.full(len(places), int(Op.ARM), dtype=np.uint8))
    assert pool.lacks(last, REGION)
    assert pool.states(first, 1000).every().tolist() == states
