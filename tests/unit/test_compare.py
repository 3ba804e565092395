"""Two reports held against each other: what counts as a fix, and what does not."""

from __future__ import annotations

import copy
import io
import json
import random
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from unit.reports import BASE, HOSTILE, a_range, a_report, finding

from uffdtrace.reporters import compare_text
from uffdtrace.reporters.compare import Amount, change, compare
from uffdtrace.reporters.match import match

SCHEMA = json.loads(Path(compare_text.__file__).with_name("compare.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
Report = dict[str, Any]
ELSEWHERE = 0x7F5500000000


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def compared(before: Report, after: Report) -> dict[str, Any]:
    """The comparison, which is what the schema says and can be shown in 80 columns."""
    untouched = copy.deepcopy((before, after))
    made = compare(before, after)
    assert (before, after) == untouched
    VALIDATOR.validate(json.loads(json.dumps(made)))
    out = rendered(made)
    assert all(len(line) <= 80 for line in out.splitlines())
    assert "None" not in out
    assert made["answer"].endswith(".") and made["answer"].count(". ") == 0
    return made


def rendered(made: dict[str, Any]) -> str:
    out = io.StringIO()
    compare_text.render(made, out)
    return out.getvalue()


def both(before: Report, after: Report) -> tuple[str, list[str]]:
    """The change of all, and of each range."""
    made = compared(before, after)
    return made["change"], [found["change"] for found in made["ranges"]]


def never_armed(start: int = BASE, **changes: Any) -> dict[str, Any]:
    return a_range(
        start,
        **{
            "armed_pages": 0,
            "messages": {"missing": 0, "wp": 0, "minor": 0},
            "faults": {"missing": 0, "wp": 0, "minor": 0},
            "notified_pages": 0,
            "verdict": "never-armed",
            "findings": [finding("never-armed", 16)],
            **changes,
        },
    )


def quiet(start: int = BASE, **changes: Any) -> dict[str, Any]:
    """Armed, and nobody wrote."""
    return never_armed(start, armed_pages=16, verdict="ok", findings=[], **changes)


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


# ---- counts ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ((3, True), (0, True), "gone"),
        ((3, True), (2, True), "fewer"),
        ((3, True), (3, True), "same"),
        ((0, True), (0, True), "same"),
        ((3, True), (4, True), "more"),
        ((0, True), (4, True), "new"),
        # At least 3 before.
        ((3, False), (0, True), "gone"),
        ((3, False), (2, True), "fewer"),
        ((3, False), (3, True), "unknown"),
        ((0, False), (0, True), "unknown"),
        ((3, False), (9, True), "unknown"),
        # At least that many after.
        ((3, True), (0, False), "unknown"),
        ((3, True), (3, False), "unknown"),
        ((3, True), (4, False), "more"),
        ((0, True), (1, False), "new"),
        ((3, False), (0, False), "unknown"),
        ((None, True), (0, True), "unknown"),
        ((3, True), (None, True), "unknown"),
        ((None, False), (None, False), "unknown"),
    ],
)
def test_change(before: tuple[Any, bool], after: tuple[Any, bool], expected: str) -> None:
    assert change(Amount(*before), Amount(*after)) == expected


# ---- one range -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (a_range(lost=3), a_range(), "fixed"),
        (a_range(lost=3), a_range(modes=["missing", "wp"], memory=None), "fixed"),
        (a_range(lost=3), a_range(lost=1), "better"),
        (a_range(lost=3), a_range(lost=3), "same"),
        (a_range(lost=3), a_range(lost=4), "worse"),
        (a_range(), a_range(lost=4), "worse"),
        (a_range(), a_range(), "same"),
        (never_armed(), a_range(), "fixed"),
        (a_range(), never_armed(), "worse"),
        (never_armed(), never_armed(), "same"),
        # What shows no fix.
        (a_range(lost=3), never_armed(), "unknown"),
        (a_range(lost=3), never_armed(findings=[], verdict="idle"), "unknown"),
        (a_range(lost=3), quiet(), "unknown"),
        (a_range(lost=3), a_range(verdict="async", armed_pages=16), "unknown"),
        (never_armed(), quiet(), "unknown"),
        # Not known.
        (a_range(lost=None), a_range(), "unknown"),
        (a_range(lost=3), a_range(lost=None), "unknown"),
        # No write is lost any more, but threads hang, or something else went wrong.
        (a_range(lost=3), a_range(pending=1, verdict="pending"), "better"),
        (a_range(lost=3), a_range(findings=[finding("cannot-wait", 1, "error", "faults")]), "better"),
        (a_range(pending=1, verdict="pending"), a_range(), "fixed"),
        (a_range(lost=3), a_range(findings=[finding("slow-service", 1, "warning", "faults")]), "fixed"),
    ],
)
def test_one_range(before: dict[str, Any], after: dict[str, Any], expected: str) -> None:
    assert both(a_report(before), a_report(after)) == (expected, [expected])


def test_a_run_that_saw_few_writes_is_no_fix() -> None:
    before = a_range(pages=4096, lost=3072)
    few = {"messages": {"missing": 0, "wp": 9, "minor": 0}, "notified_pages": 9}
    made = compared(a_report(before), a_report(a_range(pages=4096, **few)))
    assert made["change"] == "unknown" and "less than a tenth" in made["answer"]
    fewer = a_range(pages=4096, lost=5, notified_pages=9)
    assert compared(a_report(before), a_report(fewer))["change"] == "unknown"


def test_one_error_for_another_is_judged_by_the_verdict() -> None:
    one = a_range(findings=[finding("monitor-fault")], verdict="pending")
    other = a_range(findings=[finding("half-protected")], verdict="ok")
    assert both(a_report(one), a_report(other))[0] == "better"
    assert both(a_report(other), a_report(one))[0] == "worse"
    assert both(a_report(other), a_report({**one, "verdict": "ok", "findings": [finding("moved")]}))[0] == "same"


# ---- lower bounds and unknowns ---------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        ({"events_dropped": 5, "lower_bounds": ["lost"]}, "AFTER dropped 5 events"),
        ({"events_dropped": 5}, "AFTER dropped 5 events"),
        ({"events_dropped": None}, "AFTER's trace has no end"),
        ({"lower_bounds": ["lost"]}, "not everything was seen in AFTER"),
    ],
)
def test_an_after_that_did_not_see_everything_is_no_fix(loss: dict[str, Any], words: str) -> None:
    made = compared(a_report(a_range(lost=3)), a_report(a_range(), **loss))
    assert made["change"] == "unknown" and words in made["answer"]
    assert made["after"]["lost_is_lower_bound"] is True
    assert [one["change"] for one in made["findings"]] == ["unknown"]


def test_a_before_that_did_not_see_everything_can_still_be_fixed() -> None:
    made = compared(a_report(a_range(lost=3), events_dropped=5, lower_bounds=["lost"]), a_report(a_range()))
    assert made["change"] == "fixed"
    assert made["answer"] == "Yes: BEFORE lost at least 3 pages, AFTER none."
    assert any("BEFORE dropped 5 events" in note for note in made["notes"])
    assert [one["change"] for one in made["findings"]] == ["gone"]


def test_a_bound_on_something_else_does_not_matter() -> None:
    made = compared(a_report(a_range(lost=3)), a_report(a_range(), lower_bounds=["pending"]))
    assert made["change"] == "fixed"


def test_a_loss_beyond_the_bound_is_worse() -> None:
    assert both(a_report(a_range(lost=3)), a_report(a_range(lost=4), events_dropped=1))[0] == "worse"


def test_what_after_still_lost_is_said_when_the_change_is_not_known() -> None:
    made = compared(a_report(a_range(lost=None)), a_report(a_range(lost=12)))
    assert made["change"] == "unknown"
    assert "of BEFORE lost is not known; AFTER lost 12 pages." in made["answer"]
    assert made["before"]["lost"] is None and made["after"]["lost"] == 12


def test_whether_faults_wait_is_not_taken_for_no() -> None:
    made = compared(a_report(a_range(lost=3)), a_report(a_range(pending=None, waiting=None)))
    assert any("whether faults still wait" in note for note in made["notes"])
    made = compared(
        a_report(a_range(findings=[finding("pending", 2, "warning", "faults")], pending=2, verdict="pending")),
        a_report(a_range(pending=None, waiting=None)),
    )
    assert [one["change"] for one in made["findings"]] == ["unknown"]


# ---- several ranges --------------------------------------------------------------


def sizes(*pages: int, start: int = BASE, **changes: Any) -> list[dict[str, Any]]:
    return [a_range(start + at * (1 << 32), pages=size, **changes) for at, size in enumerate(pages)]


def paired(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> list[tuple[int | None, int | None]]:
    """Which positions belong together."""
    where = {id(found): at for found in (*before,) for at, one in enumerate(before) if one is found}
    other = {id(found): at for found in (*after,) for at, one in enumerate(after) if one is found}
    return [(one and where[id(one)], two and other[id(two)]) for one, two in match(before, after)]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ((), (), []),
        ((4,), (), [(0, None)]),
        ((), (4,), [(None, 0)]),
        ((4, 8, 4), (4, 8, 4), [(0, 0), (1, 1), (2, 2)]),
        ((4, 8, 16), (4, 16), [(0, 0), (1, None), (2, 1)]),
        ((4, 16), (4, 8, 16), [(0, 0), (1, 2), (None, 1)]),
        ((4,), (8,), [(0, None), (None, 0)]),
        # Another order, but each is the only one of its size.
        ((4, 8), (8, 4), [(0, 1), (1, 0)]),
        ((4, 4), (4,), [(0, 0), (1, None)]),
    ],
)
def test_ranges_are_matched_by_size_and_order(before: Any, after: Any, expected: Any) -> None:
    assert paired(sizes(*before), sizes(*after, start=ELSEWHERE)) == expected


def test_ranges_of_another_userfaultfd_come_after() -> None:
    before = sizes(4, 4)
    before[0]["userfaultfd"] = 1
    assert paired(before, sizes(4, 4)) == [(1, 0), (0, 1)]


def test_names_tell_ranges_of_one_size_apart() -> None:
    before = [{**one, "name": name} for one, name in zip(sizes(4, 4, 4), ("[a]", "[b]", "[c]"))]
    assert paired(before, [{**one} for one in before[1:]]) == [(0, None), (1, 0), (2, 1)]
    # A name that only one run knows is no obstacle.
    assert paired(before, sizes(4, 4, 4)) == [(0, 0), (1, 1), (2, 2)]


def test_memory_of_another_kind_is_another_range() -> None:
    assert paired(sizes(4), sizes(4, memory="shmem")) == [(0, None), (None, 0)]
    assert paired(sizes(4), sizes(4, memory=None)) == [(0, 0)]
    assert paired([*sizes(4, memory="shmem"), *sizes(4, start=ELSEWHERE)], sizes(4)) == [(0, None), (1, 0)]


def test_matching_is_one_to_one_whatever_comes() -> None:
    chance = random.Random(3)
    for _ in range(300):
        before, after = (
            [
                {**one, "memory": chance.choice(["anon", "shmem", None]), "name": chance.choice(["[a]", "[b]", None])}
                for one in sizes(*(chance.choice((1, 2, 3)) for _ in range(chance.randrange(8))))
            ]
            for _ in range(2)
        )
        pairs = paired(before, after)
        assert sorted(one for one, _ in pairs if one is not None) == list(range(len(before)))
        assert sorted(other for _, other in pairs if other is not None) == list(range(len(after)))
        for one, other in pairs:
            if one is not None and other is not None:
                assert before[one]["pages"] == after[other]["pages"]
                assert len({before[one]["memory"], after[other]["memory"]} - {None}) <= 1


@pytest.mark.parametrize("alike", [True, False])
def test_a_thousand_ranges(alike: bool) -> None:
    pages = [8] * 1000 if alike else [8 + at * 7919 % 13 for at in range(1000)]
    before = sizes(*pages, lost=1)
    after = sizes(*pages, start=ELSEWHERE)
    began = time.monotonic()
    made = compared(a_report(*before), a_report(*after))
    assert made["change"] == "fixed"
    # One more in front moves all the others.
    made = compared(a_report(*before), a_report(a_range(pages=5), *after))
    assert [found["change"] for found in made["ranges"]].count("fixed") == 1000
    assert time.monotonic() - began < 20
    out = rendered(made)
    assert len(out.splitlines()) < 80 and "and 981 more ranges: 981 fixed (--all-ranges shows them)" in out


def test_a_range_that_vanished_is_not_fixed() -> None:
    before = a_report(*sizes(4, lost=1), *sizes(8, start=ELSEWHERE, lost=2))
    made = compared(before, a_report(*sizes(4)))
    assert (made["change"], [found["change"] for found in made["ranges"]]) == ("unknown", ["fixed", "only-before"])
    assert "lost writes or had errors, and AFTER has no such range" in made["answer"]
    assert [one["change"] for one in made["findings"]] == ["unknown"]


def test_a_vanished_range_that_was_well_does_not_matter() -> None:
    before = a_report(*sizes(4, lost=1), *sizes(8, start=ELSEWHERE))
    assert both(before, a_report(*sizes(4))) == ("fixed", ["fixed", "only-before"])


def test_which_of_two_alike_vanished_cannot_be_told() -> None:
    before = a_report(*sizes(4, lost=1), *sizes(4, start=ELSEWHERE))
    made = compared(before, a_report(*sizes(4)))
    assert [found["change"] for found in made["ranges"]] == ["unknown", "only-before"]
    assert made["change"] == "unknown" and "cannot be told from another of its size" in made["answer"]


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        (a_range(ELSEWHERE, pages=8), "fixed"),
        (a_range(ELSEWHERE, pages=8, lost=1), "better"),
        (a_range(ELSEWHERE, pages=32, lost=9), "worse"),
        (a_range(ELSEWHERE, pages=8, lost=None), "unknown"),
    ],
)
def test_a_new_range(new: dict[str, Any], expected: str) -> None:
    assert both(a_report(a_range(lost=3)), a_report(a_range(), new)) == (expected, ["fixed", "only-after"])


def test_better_here_and_worse_there() -> None:
    before = a_report(*sizes(4, lost=3), *sizes(8, start=ELSEWHERE))
    for lost, expected in ((1, "better"), (3, "same"), (5, "worse")):
        assert both(before, a_report(*sizes(4), *sizes(8, start=ELSEWHERE, lost=lost)))[0] == expected


def test_worse_here_and_a_doubtful_fix_there() -> None:
    before = a_report(*sizes(4, lost=3), *sizes(8, start=ELSEWHERE), *sizes(16, start=ELSEWHERE * 2, lost=9))
    after = (*sizes(4), *sizes(8, start=ELSEWHERE, lost=1))
    assert both(before, a_report(*after, never_armed(ELSEWHERE * 2, pages=16)))[0] == "unknown"
    after = (*sizes(4), *sizes(8, start=ELSEWHERE, lost=8))
    assert both(before, a_report(*after, *sizes(16, start=ELSEWHERE * 2, lost=9)))[0] == "worse"


def test_fixed_is_never_said_without_proof() -> None:
    """Whatever two runs were: the answer can be made and shown, and a fix has what a fix must have."""
    chance = random.Random(5)
    kinds = [
        lambda start, **changes: a_range(start, lost=chance.choice([0, 0, 1, 2]), **changes),
        lambda start, **changes: a_range(start, lost=None, **changes),
        lambda start, **changes: never_armed(start, **changes),
        lambda start, **changes: quiet(start, **changes),
        lambda start, **changes: a_range(start, pending=1, verdict="pending", **changes),
        lambda start, **changes: a_range(start, findings=[finding("monitor-fault")], **changes),
    ]

    def some() -> Report:
        ranges = [
            chance.choices(kinds, [9, 1, 1, 1, 1, 1])[0](BASE + at * 0x100000, pages=chance.choice([16, 16, 32]))
            for at in range(chance.choice([0, 1, 1, 2, 3]))
        ]
        dropped = chance.choice([0, 0, 0, 0, 0, 1, None])
        return a_report(*ranges, events_dropped=dropped, lower_bounds=["lost"] if dropped else [])

    seen = set()
    for _ in range(400):
        before, after = some(), some()
        made = compared(before, after)
        seen.add(made["change"])
        if made["change"] == "fixed":
            assert made["after"]["lost"] == 0 and after["loss"]["events_dropped"] == 0
            assert all(found["severity"] != "error" for one in after["ranges"] for found in one["findings"])
            fixed = [found for found in made["ranges"] if found["change"] == "fixed"]
            assert fixed and all(found["after"]["armed_pages"] and found["after"]["messages"] for found in fixed)
    assert seen == {"fixed", "better", "same", "worse", "unknown"}


def test_fixed_here_and_the_same_there_is_better() -> None:
    before = a_report(*sizes(4, 8, lost=3))
    made = compared(before, a_report(*sizes(4), *sizes(8, start=ELSEWHERE, lost=3)))
    assert made["change"] == "better"
    assert made["answer"] == "Partly: BEFORE lost 6 pages, AFTER 3 pages."


def test_nothing_in_common() -> None:
    made = compared(a_report(a_range(lost=3)), a_report(a_range(pages=99)))
    assert made["change"] == "unknown" and "has the size and memory" in made["answer"]
    made = compared(a_report(a_range(lost=3)), a_report())
    assert made["change"] == "unknown" and "AFTER has no range" in made["answer"]
    made = compared(a_report(), a_report(a_range()))
    assert made["change"] == "unknown" and "BEFORE has no range" in made["answer"]
    assert compared(a_report(), a_report())["change"] == "unknown"


# ---- findings --------------------------------------------------------------------


def test_findings_range_by_range_and_together() -> None:
    before = a_report(
        a_range(lost=3, findings=[finding("discarded", 3), finding("eexist", 2, "warning", "calls")]),
        a_range(ELSEWHERE, pages=8, lost=2),
    )
    after = a_report(
        a_range(findings=[finding("eexist", 5, "warning", "calls"), finding("async", 16, "note")]),
        a_range(ELSEWHERE, pages=8, lost=1),
    )
    made = compared(before, after)
    assert [
        [(one["id"], one["before"], one["after"], one["unit"], one["change"]) for one in found["findings"]]
        for found in (*made["ranges"], made)
    ] == [
        [
            ("discarded", 3, 0, "pages", "gone"),
            ("eexist", 2, 5, "calls", "more"),
            ("async", 0, 16, "pages", "new"),
        ],
        [("unpopulated", 2, 1, "pages", "fewer")],
        [
            ("discarded", 3, 0, "pages", "gone"),
            ("unpopulated", 2, 1, "pages", "fewer"),
            ("eexist", 2, 5, "calls", "more"),
            ("async", 0, 16, "pages", "new"),
        ],
    ]


def test_a_finding_of_a_new_range_is_new() -> None:
    made = compared(a_report(a_range()), a_report(a_range(), a_range(ELSEWHERE, pages=8, lost=2)))
    assert [(one["id"], one["change"]) for one in made["findings"]] == [("unpopulated", "new")]


# ---- text ------------------------------------------------------------------------


def test_text() -> None:
    before = a_report(a_range(pages=4096, lost=3072))
    after = a_report(a_range(ELSEWHERE, pages=4096, modes=["missing", "wp"]))
    out = rendered(compared(before, after))
    assert out.splitlines()[-1] == "Verdict: fixed. Yes: BEFORE lost 3,072 pages, AFTER none."
    assert "gone     error   [unpopulated] 3,072 -> 0 pages" in out
    rows = [" ".join(line.split()) for line in out.splitlines()]
    assert "before 7f0000000000 16 MiB anon wp 1,024 3,072 lost-writes" in rows
    assert "after 7f5500000000 16 MiB anon 4,096 0 ok fixed" in rows


def test_programs_and_kernels_that_differ_are_noted() -> None:
    after = a_report(a_range())
    after["process"]["comm"], after["trace"]["kernel"] = "other", "6.12.0"
    out = rendered(compared(a_report(a_range(lost=1)), after))
    assert "Note: BEFORE traced tracker, AFTER other: two different programs." in out
    assert "Note: the kernels differ: 6.1.0 and 6.12.0." in out


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_nothing_from_a_target_reaches_the_terminal_raw(encoding: str) -> None:
    before, after = a_report(a_range(lost=1, name=HOSTILE * 99)), a_report(a_range(name="[/red]"))
    before["process"].update(comm=HOSTILE, cmdline=[HOSTILE])
    after["process"].update(cmdline=[])
    for name in ("file", "kernel", "started"):
        before["trace"][name] = HOSTILE
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    compare_text.render(compare(before, after), stream)
    stream.flush()
    out = raw.getvalue().decode(encoding)
    assert all(one.isprintable() or one == "\n" for one in out)
    assert all(len(line) <= 80 for line in out.splitlines())
    assert "[/red]" in out
