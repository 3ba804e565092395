"""The comparison by content: what a page held when it was armed, and whether it is called lost."""

from __future__ import annotations

from typing import Any

from guest.compare import Comparison, compare_content, judged_by_content

PAGE = 0x1000


def outcome(runs: list[tuple[int, int, str]], changed: list[int], unchanged: list[int], *findings: str) -> list[str]:
    """What differs, of pages by number."""
    reported = {
        "lost": {
            "runs": [{"start": hex(a * PAGE), "end": hex(b * PAGE), "how": how, "cause": ""} for a, b, how in runs]
        },
        "findings": [{"id": name} for name in findings],
    }
    true: dict[str, Any] = {
        "page_size": PAGE,
        "changed_unannounced": [[hex(page * PAGE), hex((page + 1) * PAGE)] for page in changed],
        "unchanged": [[hex(page * PAGE), hex((page + 1) * PAGE)] for page in unchanged],
    }
    made = Comparison()
    compare_content(reported, true, "range 0", made)
    return made.differences


def test_a_page_that_changed_without_a_message_is_lost() -> None:
    assert outcome([(1, 3, "observed"), (3, 4, "blind")], [1, 2, 3], []) == []
    (said,) = outcome([(1, 3, "observed")], [1, 2, 3], [])
    assert said == "range 0: 1 pages changed without a message and are not lost, from 0x3000"


def test_a_report_that_knows_of_no_loss_claims_none() -> None:
    made = Comparison()
    true = {"page_size": PAGE, "changed_unannounced": [["0x1000", "0x2000"]], "unchanged": []}
    compare_content({"lost": {"runs": None}, "findings": []}, true, "range 0", made)
    assert made.differences == []


def test_what_is_undecided_may_be_either() -> None:
    assert outcome([], [1], [], "undecided") == []
    assert outcome([], [1], [], "exposed") != []


def test_a_page_that_holds_what_it_held_was_not_seen_to_be_written() -> None:
    assert outcome([(1, 2, "blind")], [], [1]) == []
    (said,) = outcome([(1, 3, "observed")], [1], [2])
    assert said.startswith("range 0: 1 pages hold what they held when armed and are lost")


def test_a_scenario_is_judged_where_a_page_is() -> None:
    nothing = {"changed_unannounced": [], "unchanged": [], "announced": []}
    assert not judged_by_content({"ranges": [nothing]})
    assert judged_by_content({"ranges": [nothing, {**nothing, "unchanged": [["0x1000", "0x2000"]]}]})
