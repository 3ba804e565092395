"""Who a command under `run` is."""

from __future__ import annotations

import os
import pwd
import signal

import pytest

from uffdtrace.collect.target import Command, who_called_sudo
from uffdtrace.kernel.preflight import Refusal

ASKED = 'id -u; id -g; id -G; echo "$HOME $USER $LOGNAME"'


def said(capfd: pytest.CaptureFixture[str], user: str | None) -> list[str]:
    """What a command of this user says of itself: user, group, groups, home."""
    command = Command(["sh", "-c", ASKED], user)
    command.release()
    command.wait()
    assert command.exit_status == 0
    return capfd.readouterr().out.splitlines()


@pytest.mark.parametrize("by", ["name", "number"])
def test_another_user(capfd: pytest.CaptureFixture[str], by: str) -> None:
    nobody = pwd.getpwnam("nobody")
    found = said(capfd, nobody.pw_name if by == "name" else str(nobody.pw_uid))
    assert found[:2] == [str(nobody.pw_uid), str(nobody.pw_gid)]
    # None of root's.
    assert "0" not in found[2].split()
    assert found[3] == f"{nobody.pw_dir} nobody nobody"


def test_ourselves(capfd: pytest.CaptureFixture[str]) -> None:
    assert said(capfd, None)[0] == str(os.geteuid())


@pytest.mark.parametrize("user", ["no-such-user", "4294967294", "99999999999999999999", ""])
def test_nobody_of_that_name(user: str) -> None:
    with pytest.raises(Refusal, match=r"there is no user .*: see getent passwd"):
        Command(["true"], user)


@pytest.mark.parametrize(
    ("caller", "root", "wanted"),
    [("alice", True, "alice"), ("alice", False, None), ("root", True, None), (None, True, None)],
)
def test_who_called_sudo(monkeypatch: pytest.MonkeyPatch, caller: str | None, root: bool, wanted: str | None) -> None:
    monkeypatch.delenv("SUDO_USER", raising=False)
    if caller is not None:
        monkeypatch.setenv("SUDO_USER", caller)
    monkeypatch.setattr(os, "geteuid", lambda: 0 if root else 1000)
    assert who_called_sudo() == wanted


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_command_that_is_killed_while_it_waits_is_told_of(number: signal.Signals) -> None:
    command = Command(["true"])
    os.kill(command.pid, number)
    os.waitid(os.P_PID, command.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(Refusal, match=rf"^true was killed \({number.name}\) before its first instruction"):
        command.release()
    command.abandon()
