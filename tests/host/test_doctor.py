"""uffdtrace doctor on this machine, whatever it allows."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from host.tracked import NOBODY, OFFERED, need_root, need_wp

from uffdtrace.kernel import offers as kernel_offers
from uffdtrace.kernel import preflight, privileges
from uffdtrace.kernel.probes import TABLE
from uffdtrace.model.records.events import Feature

pytestmark = pytest.mark.host

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = json.loads((ROOT / "uffdtrace" / "reporters" / "doctor.schema.json").read_text())
SETPRIV = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--")


def uffdtrace(*arguments: str, uid: int = 0) -> subprocess.CompletedProcess[str]:
    # Imported first: our folder may be closed to that user.
    code = "import ctypes, os, sys, uffdtrace.cli, uffdtrace.reporters.doctor_text\n"
    if uid:
        # PR_SET_DUMPABLE: as after an exec.
        code += f"os.setgroups([]); os.setgid({uid}); os.setuid({uid}); ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)\n"
    return subprocess.run(
        [sys.executable, "-c", code + "uffdtrace.cli.main(sys.argv[1:])", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd="/",
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80"},
    )


def examine(*arguments: str, uid: int = 0) -> dict[str, Any]:
    ran = uffdtrace("doctor", "--format", "json", *arguments, uid=uid)
    found: dict[str, Any] = json.loads(ran.stdout)
    jsonschema.validate(found, SCHEMA, format_checker=jsonschema.FormatChecker())
    assert ran.returncode == (0 if found["attach_works"] else 1), ran.stderr
    assert {one["row"] for one in found["probes"]} == {row.name for row in TABLE}
    return found


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return examine()


def test_the_first_problem_is_what_attach_says(found: dict[str, Any]) -> None:
    if found["attach_works"]:
        pytest.skip("this machine lets us trace")
    first = next(problem for problem in found["problems"] if problem["blocks_attach"])
    ran = uffdtrace("attach", str(os.getpid()), "-o", "/dev/null")
    assert (ran.returncode, ran.stderr) == (1, f"uffdtrace: {first['what']}: {first['remedy']}\n")


def test_checks_are_preflights(found: dict[str, Any]) -> None:
    checks = found["checks"]
    assert checks["privileges"]["ok"] is (not privileges.missing())
    assert found["kernel"]["lockdown"] == preflight.lockdown()
    for name, ask in (("kprobes", preflight.check_kprobes), ("programs", preflight.check_programs)):
        try:
            ask()
            works = True
        except preflight.Refusal:
            works = False
        assert checks[name]["ok"] in (works, None)


@need_wp
def test_offers(found: dict[str, Any]) -> None:
    offers = found["offers"]
    known = {str(feature.name) for feature in Feature}
    assert set(offers["features"]) & known == {str(feature.name) for feature in Feature if OFFERED & feature}
    assert offers["access"] == "full" and offers["problem"] is None
    more = bool(OFFERED & Feature.WP_HUGETLBFS_SHMEM)
    assert [offers["write_protect"][kind] for kind in ("anon", "shmem")] == [True, more]
    assert offers["write_protect"]["hugetlb"] in (more, None)
    # Both came with 6.7.
    assert offers["pagemap_scan"] is bool(OFFERED & Feature.WP_ASYNC)


@need_root
def test_another_user(found: dict[str, Any]) -> None:
    theirs = examine(uid=NOBODY)
    checks = theirs["checks"]
    assert not theirs["attach_works"]
    assert theirs["problems"][0]["what"].startswith("tracing needs root, or CAP_BPF")
    assert checks["programs"] == checks["layout"] == {"ok": None, "problem": "only root can find out"}
    for name in ("kprobes", "bcc", "btf"):
        assert checks[name] == found["checks"][name]
    unknown = {one["row"] for one in theirs["probes"] if one["place"] is None and one["required"]}
    if checks["btf"]["ok"]:
        assert unknown == {"messages"}
    if found["offers"]["unprivileged_userfaultfd"]:
        assert theirs["offers"] == found["offers"]
    elif OFFERED & Feature.MINOR_HUGETLBFS:
        # As old as UFFD_USER_MODE_ONLY (5.11), nearly.
        assert theirs["offers"] == {**found["offers"], "access": "user-mode-only"}


@need_root
def test_setpriv() -> None:
    """A process of that user from its first instruction, where it may reach our folder."""
    command = [*SETPRIV, sys.executable, "-m", "uffdtrace", "doctor"]
    ran = subprocess.run(
        command, capture_output=True, text=True, timeout=120, cwd="/", env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    if "No module named" in ran.stderr or "Permission denied" in ran.stderr:
        pytest.skip("our folder is closed to other users")
    assert ran.returncode == 1 and "attach does not work here" in ran.stdout.splitlines()[-1], ran
    assert "sudo" in ran.stdout and "Traceback" not in ran.stderr


def test_one_screen(found: dict[str, Any]) -> None:
    lines = uffdtrace("doctor").stdout.splitlines()
    assert len(lines) <= 60 + 3 * len(found["problems"])
    assert all(len(line) <= 80 for line in lines)
    verdict = "attach works here." if found["attach_works"] else "attach does not work here: "
    assert lines[-1].startswith(verdict)
    for problem in found["problems"]:
        assert problem["remedy"].split()[0] in " ".join(lines)


@pytest.mark.parametrize("kind", ["fentry", "kprobe"])
def test_a_forced_kind(kind: str) -> None:
    found = examine("--backend", kind)
    for one in found["probes"]:
        assert one["kind"] in (kind, None) or one["exception"]


def test_nothing_but_json_on_stdout() -> None:
    ran = uffdtrace("doctor", "--format", "json")
    assert ran.stdout.startswith("{\n") and ran.stdout.endswith("}\n")
    assert uffdtrace("doctor", "--backend", "none").returncode == 2


def test_asking_leaves_nothing_open_or_mapped() -> None:
    def left() -> tuple[list[str], int]:
        return os.listdir("/proc/self/fd"), Path("/proc/self/smaps").read_text().count(" uw")

    before = left()
    for kind in kernel_offers.Memory:
        kernel_offers.write_protects(kind)
    kernel_offers.pagemap_tells_protection()
    with contextlib.suppress(OSError):
        kernel_offers.access()
    assert left() == before
