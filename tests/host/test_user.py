"""Who a command under `run` is."""

from __future__ import annotations

import os
import pwd
import shlex
from pathlib import Path

import pytest

from uffdtrace.collect.target import Command, who_called_sudo
from uffdtrace.kernel.preflight import Refusal


def said(tmp_path: Path, user: str | None) -> list[str]:
    """What a command of this user says of itself: user, group, groups, home."""
    tmp_path.chmod(0o777)
    for folder in tmp_path.parents:
        if folder.stat().st_uid == os.geteuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o011)
    out = tmp_path / "said"
    asked = f'(id -u; id -g; id -G; echo "$HOME $USER $LOGNAME") > {shlex.quote(str(out))}'
    command = Command(["sh", "-c", asked], user)
    command.release()
    command.wait()
    assert command.exit_status == 0
    return out.read_text().splitlines()


@pytest.mark.parametrize("by", ["name", "number"])
def test_another_user(tmp_path: Path, by: str) -> None:
    nobody = pwd.getpwnam("nobody")
    found = said(tmp_path, nobody.pw_name if by == "name" else str(nobody.pw_uid))
    assert found[:2] == [str(nobody.pw_uid), str(nobody.pw_gid)]
    # None of root's.
    assert "0" not in found[2].split()
    assert found[3] == f"{nobody.pw_dir} nobody nobody"


def test_ourselves(tmp_path: Path) -> None:
    assert said(tmp_path, None)[0] == str(os.geteuid())


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
