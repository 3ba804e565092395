"""Lines of maps as mappings, and what memory they are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from uffdtrace.kernel import mappings
from uffdtrace.kernel.mappings import File, Mapping, parse


def line(what: str, permissions: str = "rw-s", device: str = "00:2a", inode: int = 7) -> str:
    return f"7f0000000000-7f0000010000 {permissions} 00003000 {device} {inode} {what}".rstrip() + "\n"


def mapping(text: str) -> Mapping:
    found = parse(text)
    assert found is not None
    return found


def test_a_line_of_maps() -> None:
    said = "7f0000000000-7f0000010000 rw-s 00003000 fd:1f 262                      /a b (deleted)\n"
    assert parse(said) == Mapping(
        0x7F0000000000, 0x7F0000010000, 0x3000, File(0xFD, 0x1F, 262), "/a b (deleted)", True, True
    )
    assert parse("1000-2000 r-xp 00000000 00:00 0 \n") == Mapping(0x1000, 0x2000, 0, None, "", False, False)


def test_a_name_may_hold_a_carriage_return() -> None:
    assert mapping(line("/a\r1000-2000 rw-s 0 00:01 1 /b")).name == "/a\r1000-2000 rw-s 0 00:01 1 /b"


@pytest.mark.parametrize(
    "hostile",
    [
        "",
        "\n",
        "Size: 4 kB\n",
        "1000-2000 rw-s 0 00:01\n",
        "1000-2000 rw-s 0 00:01 x\n",
        "1000-2000 rw-s 0 00:01 ٣\n",
        "1_0-2000 rw-s 0 00:01 1\n",
        "10000000000000000-2000 rw-s 0 00:01 1\n",
    ],
)
def test_what_is_no_mapping(hostile: str) -> None:
    assert parse(hostile) is None


@pytest.fixture
def memory_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A process 7 that sees a tmpfs 0:42, and an ordinary file system 8:1 with a hostile mount point."""
    monkeypatch.setattr(mappings, "PROC", tmp_path)
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "mountinfo").write_bytes(
        b"22 1 0:42 / /dev/shm rw,nosuid shared:4 - tmpfs tmpfs rw\n"
        b"23 1 8:1 / /\rx\\040-\\040tmpfs rw shared:4 - ext4 /dev/sda1 rw\n"
        b"24 1 0:6 / /dev rw - devtmpfs udev rw\n"
        b"nonsense\n"
    )
    return tmp_path


@pytest.mark.parametrize(
    ("text", "hugetlb", "kind"),
    [
        (line("", device="00:00", inode=0), False, "anon"),
        (line("[anon:a]", device="00:00", inode=0), False, "anon"),
        (line("/dev/shm/a"), False, "shmem"),
        (line("/dev/shm/a", permissions="rw-p"), False, "shmem"),
        (line("/a", device="08:01"), False, "file"),
        (line("/memfd:not (deleted)", device="08:01"), False, "file"),
        (line("/dev/mem", device="00:06"), False, "file"),
        (line("/dev/zero", device="00:06", permissions="rw-p"), False, "anon"),
        (line("/dev/hugepages/a", device="00:30"), True, "hugetlb"),
        (line("[anon_shmem:a]", device="%x:%x" % (mappings._internal_device() or (9, 9))), False, "shmem"),
    ],
)
def test_what_memory_it_is(memory_of: Path, text: str, hugetlb: bool, kind: str) -> None:
    assert mappings.memory_of(7)(mapping(text), hugetlb) == kind


def test_a_process_that_is_gone_has_no_tmpfs(memory_of: Path) -> None:
    assert mappings.memory_of(8)(mapping(line("/dev/shm/a")), False) == "file"


def test_a_memfd_of_ours_is_shmem() -> None:
    own = {found.file for found in map(parse, Path("/proc/self/maps").read_text().splitlines()) if found}
    assert None in own
    fd = os.memfd_create("a")
    device = os.fstat(fd).st_dev
    os.close(fd)
    assert mappings._internal_device() == (os.major(device), os.minor(device))
