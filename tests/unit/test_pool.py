"""The states of pages in blocks, against one state for each page."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uffdtrace.model import pool as pool_module
from uffdtrace.model.events import Array
from uffdtrace.model.pages import Op
from uffdtrace.model.pool import BLOCK, Pool, PoolError
from uffdtrace.model.states import BITS, CHANGES, EFFECT, NEXT

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


@pytest.mark.parametrize("stretch", [pool_module._STRETCH, BLOCK])
@given(before=st.integers(0, 2 * BLOCK), steps=st.lists(STEPS, max_size=8))
def test_against_a_state_for_each_page(stretch: int, before: int, steps: list[tuple[str, Op, list[int]]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool_module, "_STRETCH", stretch)
        check(before, steps)


def check(before: int, steps: list[tuple[str, Op, list[int]]]) -> None:
    pool, plain = Pool(), np.zeros(PAGES, dtype=np.uint16)
    # Somebody else's pages, in the same blocks as ours.
    other = pool.take(before)
    base = pool.take(PAGES)
    pool.do(other, before, Op.ARM_FULL, WANTED)
    untouched = pool.states(other, before).tolist()
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
            pool.write(base + first, plain[first:end])
            continue
        counts, wanted = told(plain, op, first, end)
        befell, runs = pool.do(base + first, end - first, op, WANTED)
        assert befell.tolist() == counts
        found = zip((runs.places() - base).tolist(), np.repeat(runs.effects, runs.pages).tolist())
        assert dict(found) == wanted
    assert pool.states(base, PAGES).tolist() == plain.tolist()
    assert pool.read(base + np.arange(0, PAGES, 7)).tolist() == plain[::7].tolist()
    assert pool.count(base + 5, PAGES - 9).tolist() == np.bincount(plain[5:-4], minlength=len(BITS)).tolist()
    assert pool.states(other, before).tolist() == untouched


def test_what_nothing_happened_to_takes_no_memory() -> None:
    pool = Pool()
    pages = 1 << 28
    place = pool.take(pages)
    befell, _ = pool.do(place, pages, Op.ARM_FULL, WANTED)
    assert int(befell.sum()) == pages
    pool.apply(np.array([place + 12345]), np.array([int(Op.RELEASE)], dtype=np.uint8))
    assert pool._rows < 8
    assert int(pool.count(place, pages).sum()) == pages


def test_more_than_any_machine_has() -> None:
    with pytest.raises(PoolError, match="pages"):
        Pool().take(1 << 60)
