"""Images of BPF programs: packed, kept, placed; and what is not trusted."""

from __future__ import annotations

import os
import signal
import struct
from pathlib import Path
from types import ModuleType

import pytest

from uffdtrace.collect import cache
from uffdtrace.collect.image import Image, ImageError, Map, compiled, placed, placeholder, value_placeholder
from uffdtrace.kernel.preflight import Refusal

# code, registers (source in the high half), offset, immediate.
INSTRUCTION = struct.Struct("<BBhI")
LOAD, OF_MAP, OF_VALUE, EXIT = 0x18, 0x11, 0x21, (0x95, 0, 0, 0)


def code(*instructions: tuple[int, int, int, int]) -> bytes:
    return b"".join(INSTRUCTION.pack(*one) for one in instructions)


def load(value: int, registers: int = 0x01) -> list[tuple[int, int, int, int]]:
    return [(LOAD, registers, 0, value & 0xFFFFFFFF), (0, 0, 0, value >> 32)]


IMAGE = Image(
    (Map("followed", 1, 4, 1, 16384, 0), Map("events", 27, 0, 0, 1 << 25, 0)),
    {"one": code(*load(0, OF_MAP), *load(placeholder(1)), EXIT), "two": code(EXIT), "three": b""},
)


def test_an_image_comes_back_as_it_was() -> None:
    assert Image.unpack(IMAGE.pack()) == IMAGE


@pytest.mark.parametrize("place", range(0, len(IMAGE.pack()), 7))
def test_a_damaged_image_is_none(place: int) -> None:
    whole = IMAGE.pack()
    for damaged in (whole[:place], whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]):
        with pytest.raises(ImageError):
            Image.unpack(damaged)


def test_maps_and_settings_take_their_places() -> None:
    address, other = 0xFFFFFFFF812345FF, 0x1234_0000_0001
    instructions = code(
        *load(1, OF_MAP), *load(placeholder(1)), (0xB7, 0x11, 0, 1), *load(other), *load(0, OF_MAP), EXIT
    )
    wanted = code(*load(9, OF_MAP), *load(address), (0xB7, 0x11, 0, 1), *load(other), *load(7, OF_MAP), EXIT)
    assert placed(instructions, [7, 9], [5, address]) == wanted
    # As it was: it is placed again in the next trace.
    assert placed(instructions, [7, 9], [5, address]) == wanted


def test_the_value_of_a_map_takes_its_place() -> None:
    instructions = code(*load(value_placeholder(1)), *load(0, OF_MAP), *load(value_placeholder(0)), EXIT)
    wanted = code(*load(4, OF_VALUE), *load(7, OF_MAP), *load(3, OF_VALUE), EXIT)
    assert placed(instructions, [7, 9], [5], value_maps=[3, 4]) == wanted


def test_calls_of_kernel_functions_are_told_from_helpers() -> None:
    helper, function, jump = (0x85, 0, 0, 5), 104_729, 0x05
    # A number that is equal, and no call's.
    instructions = code(helper, (0x85, 0, 0, function), (jump, 0, 0, function), *load(function), EXIT)
    wanted = code(helper, (0x85, 0x20, 0, function), (jump, 0, 0, function), *load(function), EXIT)
    assert placed(instructions, [7, 9], [], {function}) == wanted
    assert placed(instructions, [7, 9], []) == instructions


def refusing(act: object) -> ModuleType:
    module = ModuleType("bcc")

    class BPF:
        def __init__(self, text: str, cflags: list[str]) -> None:
            assert callable(act)
            act()

    module.__dict__["BPF"] = BPF
    return module


def fail() -> None:
    raise ValueError("no such thing")


def test_what_the_compiler_says_is_said() -> None:
    with pytest.raises(Refusal, match=r"could not compile the BPF program \(no such thing\): run uffdtrace doctor"):
        compiled(refusing(fail), "", [])


def test_a_compiler_that_dies_is_no_trace() -> None:
    with pytest.raises(Refusal, match="the compiler ended with wait status 0x9"):
        compiled(refusing(lambda: os.kill(os.getpid(), signal.SIGKILL)), "", [])


# ---- the cache -----------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cache, "FOLDER", tmp_path / "cache")
    return tmp_path / "cache"


def test_what_is_kept_is_found(folder: Path) -> None:
    assert cache.find("a") is None
    cache.keep("a", IMAGE)
    assert cache.find("a") == IMAGE
    assert cache.find("b") is None
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in folder.iterdir()] == ["a"]


def test_all_that_a_program_comes_from_is_in_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {
        cache.key("source", ["-DA=1"], "0.26"),
        cache.key("another", ["-DA=1"], "0.26"),
        cache.key("source", ["-DA=2"], "0.26"),
        cache.key("source", ["-DA=1"], "0.27"),
        cache.key("source", ["-DA=1"], None),
    }
    monkeypatch.setattr(cache.platform, "release", lambda: "another")
    names.add(cache.key("source", ["-DA=1"], "0.26"))
    assert len(names) == 6


@pytest.mark.parametrize("mode", [0o770, 0o702])
def test_a_folder_in_which_others_write_is_not_used(folder: Path, mode: int) -> None:
    cache.keep("a", IMAGE)
    folder.chmod(mode)
    assert cache.find("a") is None
    cache.keep("b", IMAGE)
    assert not (folder / "b").exists()


def test_a_file_that_others_write_is_not_used(folder: Path) -> None:
    cache.keep("a", IMAGE)
    (folder / "a").chmod(0o620)
    assert cache.find("a") is None


def test_what_belongs_to_another_is_not_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.keep("a", IMAGE)
    monkeypatch.setattr(cache, "_ROOT", os.getuid() + 1)
    monkeypatch.setattr(cache.os, "geteuid", lambda: os.getuid() + 2)
    assert cache.find("a") is None
    cache.keep("b", IMAGE)
    assert not (folder / "b").exists()


def test_what_root_kept_is_used_by_whoever_may_trace(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.keep("a", IMAGE)
    monkeypatch.setattr(cache, "_ROOT", os.getuid())
    monkeypatch.setattr(cache.os, "geteuid", lambda: os.getuid() + 1)
    assert cache.find("a") == IMAGE


def test_no_link_is_followed_and_nothing_waits(folder: Path, tmp_path: Path) -> None:
    cache.keep("a", IMAGE)
    (folder / "link").symlink_to("a")
    os.mkfifo(folder / "fifo", 0o600)
    (folder / "folder").mkdir(0o700)
    for name in ("link", "fifo", "folder"):
        assert cache.find(name) is None
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    assert cache.find("a") is None


def test_a_damaged_image_is_compiled_again(folder: Path) -> None:
    cache.keep("a", IMAGE)
    (folder / "a").write_bytes(IMAGE.pack()[:-1])
    assert cache.find("a") is None
    cache.keep("a", IMAGE)
    assert cache.find("a") == IMAGE


def test_where_nothing_can_be_kept_all_goes_on(folder: Path) -> None:
    folder.write_text("a file")
    cache.keep("a", IMAGE)
    assert cache.find("a") is None


def test_the_oldest_go(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_MOST_IMAGES", 2)
    for number, name in enumerate("ab"):
        cache.keep(name, IMAGE)
        os.utime(folder / name, (number, number))
    # It is used, so b is the oldest.
    assert cache.find("a") == IMAGE
    cache.keep("c", IMAGE)
    assert sorted(path.name for path in folder.iterdir()) == ["a", "c"]
