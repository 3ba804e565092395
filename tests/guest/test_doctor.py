"""What doctor says of a kernel is what attach does there."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from guest.features import SERIES
from guest.results import Guest, Json

from uffdtrace.model.records.events import Feature
from uffdtrace.reporters import doctor_text

SCHEMA = json.loads(Path(doctor_text.__file__).with_name("doctor.schema.json").read_text())

_EVENTS = {"EVENT_FORK", "EVENT_REMAP", "EVENT_REMOVE", "EVENT_UNMAP"}
_5_10 = _EVENTS | {"PAGEFAULT_FLAG_WP", "MISSING_HUGETLBFS", "MISSING_SHMEM", "SIGBUS", "THREAD_ID"}
_6_1 = _5_10 | {"MINOR_HUGETLBFS", "MINOR_SHMEM", "EXACT_ADDRESS", "WP_HUGETLBFS_SHMEM"}
_6_12 = _6_1 | {"WP_UNPOPULATED", "POISON", "WP_ASYNC", "MOVE"}
FEATURES = {"bullseye": _5_10, "bookworm": _6_1, "trixie": _6_12, "sid": _6_12}
KNOWN = {str(feature.name) for feature in Feature}


@pytest.fixture
def found(guest: Guest) -> Json:
    step = guest.step("doctor")
    assert step["exit_status"] == 0, step
    said: Json = json.loads(step["stdout"])
    jsonschema.validate(said, SCHEMA, format_checker=jsonschema.FormatChecker())
    return said


def test_attach_works(found: Json, suite: str) -> None:
    assert found["kernel"]["release"].startswith(SERIES[suite] + ".")
    assert {name: check["ok"] for name, check in found["checks"].items()} == dict.fromkeys(found["checks"], True)
    assert not [problem for problem in found["problems"] if problem["blocks_attach"]]
    assert found["attach_works"]
    assert found["checks"]["bcc"]["version"]
    assert found["checks"]["btf"]["bytes"] > 1 << 20


def test_probes_are_those_of_attach(found: Json, guest: Guest) -> None:
    said = [[one["row"], one["place"], one["kind"]] for one in found["probes"] if one["kind"]]
    assert said == guest.step("plans")["auto"]
    assert all(one["kind"] for one in found["probes"] if one["required"])


def test_offers(found: Json, suite: str) -> None:
    offers = found["offers"]
    old = suite == "bullseye"
    assert offers["access"] == "full"
    assert set(offers["features"]) & KNOWN == FEATURES[suite]
    assert offers["write_protect"] == {"anon": True, "shmem": not old, "hugetlb": not old}
    assert offers["pagemap_scan"] is (suite in ("trixie", "sid"))
    assert offers["pagemap_tells_protection"] is not old
    assert offers["unprivileged_userfaultfd"] is old
    # shmem and hugetlb, and pagemap.
    assert len(found["problems"]) == (2 if old else 0)
