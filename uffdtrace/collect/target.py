"""The process that is traced: started and held back, or running already."""

from __future__ import annotations

import os
import pwd
import shutil
import signal

from uffdtrace.kernel import proc
from uffdtrace.kernel.preflight import Refusal


class Command:
    """A command in a child that waits, before its first instruction, until it is released."""

    def __init__(self, arguments: list[str], user: str | None = None) -> None:
        """`user` is the name or number of who it runs as: ourselves if None."""
        self.arguments = arguments
        account = None if user is None else _account(user)
        path = shutil.which(arguments[0])
        if path is None:
            raise Refusal(f"cannot run {arguments[0]}: no such executable: check the path, or give it in full")
        self._status = 0
        self._ended = False
        waits, self._go = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._go)
            # Nothing read means that the tracer is gone or gave up.
            if not os.read(waits, 1):
                os._exit(127)
            try:
                if account is not None:
                    _become(account)
                os.execv(path, arguments)
            except OSError as error:
                os.write(2, f"uffdtrace: cannot run {arguments[0]}: {error.strerror}\n".encode())
            finally:
                os._exit(126)
        os.close(waits)

    def process(self) -> proc.Process:
        return proc.Process(self.pid, os.path.basename(self.arguments[0])[:15], self.arguments)

    def release(self) -> None:
        """Refusal if somebody killed it while it waited."""
        try:
            os.write(self._go, b"g")
        except BrokenPipeError:
            self.wait()
            number = os.WTERMSIG(self._status) if os.WIFSIGNALED(self._status) else 0
            how = f"was killed ({signal.Signals(number).name})" if number in list(signal.Signals) else "ended"
            raise Refusal(f"{self.arguments[0]} {how} before its first instruction: start it again") from None
        finally:
            os.close(self._go)
            self._go = -1

    def abandon(self) -> None:
        """Let a command go that was never released."""
        if self._go >= 0:
            os.close(self._go)
            self._go = -1
            self.wait()

    def ended(self) -> bool:
        if not self._ended:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._ended, self._status = pid == self.pid, status
        return self._ended

    def wait(self) -> None:
        if not self._ended:
            _, self._status = os.waitpid(self.pid, 0)
            self._ended = True

    @property
    def exit_status(self) -> int:
        """As a shell tells it: 128 and the signal for one that was killed."""
        if os.WIFSIGNALED(self._status):
            return 128 + os.WTERMSIG(self._status)
        return os.WEXITSTATUS(self._status)

    def forward(self, number: int) -> None:
        """Pass a signal on that the terminal did not send to both of us."""
        if not self.ended():
            os.kill(self.pid, number)


def _account(user: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwuid(int(user)) if user.isascii() and user.isdigit() else pwd.getpwnam(user)
    except (KeyError, OverflowError):
        raise Refusal(f"there is no user {user}: see getent passwd for those that there are") from None


def _become(account: pwd.struct_passwd) -> None:
    """Be this user for good, with its groups and its home."""
    os.initgroups(account.pw_name, account.pw_gid)
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)
    os.environ.update(HOME=account.pw_dir, USER=account.pw_name, LOGNAME=account.pw_name)


def who_called_sudo() -> str | None:
    """The user who called sudo, if somebody else than root did, and we are root."""
    caller = os.environ.get("SUDO_USER")
    return caller if caller and caller != "root" and os.geteuid() == 0 else None


# As many processes as an error names.
_MOST_NAMED = 8


def find(comm: str | None, exe: str | None) -> list[int]:
    """The processes that are called `comm`, or run the file `exe`, or both; NoProcess says who holds a userfaultfd.

    `comm` is what the kernel keeps of a name, 15 bytes.
    """
    wanted = None if comm is None else comm.encode()[:15].decode(errors="replace")
    found = [
        pid
        for pid in proc.pids()
        if pid != os.getpid() and (wanted is None or proc.comm(pid) == wanted) and (exe is None or _runs(pid, exe))
    ]
    if found:
        return found
    holders = [pid for pid in proc.pids() if proc.userfaultfds(pid)]
    who = f"userfaultfds are held by {_named(holders)}" if holders else "no process that may be looked at holds one"
    raise proc.NoProcess(f"no process is called so: {who}: give a PID")


def _runs(pid: int, exe: str) -> bool:
    """Whether that is its program, by its whole path."""
    try:
        return os.path.samefile(proc.PROC / str(pid) / "exe", exe)
    except OSError:
        # A kernel thread, somebody else's, gone, or a path that is nowhere.
        return False


def _named(pids: list[int]) -> str:
    some = ", ".join(f"{pid} ({proc.comm(pid)})" for pid in pids[:_MOST_NAMED])
    return some + (f" and {len(pids) - _MOST_NAMED:,} more" if len(pids) > _MOST_NAMED else "")


def open_pidfd(pid: int) -> int:
    """A descriptor that becomes readable when the process ends."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        raise proc.NoProcess(f"no process {pid}: see ps for what runs") from None
    except OSError:
        # A thread's number: ENOENT since 6.9, EINVAL before.
        raise proc.NoProcess(f"{pid} is a thread, not a process: attach to its process, see ps -o pid,tid -L") from None
