"""What explain says of each finding: whole, and its C compiles."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from uffdtrace.cli import main
from uffdtrace.model.diagnosis.rules import RULES
from uffdtrace.reporters.explained import SOURCE, everything

# What a snippet is put into. Kernels' headers of an older machine lack some of it.
PRELUDE = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <stdbool.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif
#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif
#ifndef UFFDIO_CONTINUE_MODE_WP
#define UFFDIO_CONTINUE_MODE_WP 2
#endif
#ifndef UFFDIO_MOVE
struct uffdio_move { unsigned long long dst, src, len, mode; long long move; };
#define UFFDIO_MOVE _IOWR(UFFDIO, 5, struct uffdio_move)
#endif
extern int uffd, sock, dirty_pages;
extern char *addr, *heap;
extern unsigned long *dirty;
extern unsigned long len, heap_len, page, source;
extern struct uffd_msg msg;
void arm(int uffd, char *start, unsigned long length);
void answer(struct uffd_msg *message);
void answer_all(int uffd);
void fail(const char *what);
void mark_changed(unsigned long long start, unsigned long long end);
void moved(unsigned long long from, unsigned long long to, unsigned long long length);
void read_events(int uffd);
void save(char *start, unsigned long length);
void set_bit(unsigned long *bits, unsigned long number);
void start_writers(void);
void watch_child(int fd);
void snippet(void);
void snippet(void)
{
"""


def test_every_finding_is_explained_and_nothing_else() -> None:
    assert list(everything()) == [rule.id for rule in RULES]
    named = [line[1:-1] for line in SOURCE.read_text().splitlines() if line.startswith("[")]
    assert sorted(named) == sorted(rule.id for rule in RULES)


@pytest.mark.parametrize("name", [rule.id for rule in RULES])
def test_an_explanation_is_whole(name: str) -> None:
    found = everything()[name]
    assert len(found.mechanism.split()) >= 12 and found.mechanism.endswith(".") and found.kernels
    # What is wrong has a right way beside it.
    assert found.right or not found.wrong
    said = CliRunner().invoke(main, ["explain", name])
    assert said.exit_code == 0
    lines = said.output.splitlines()
    assert lines[0] == f"{name} ({found.rule.severity}): {found.rule.meaning}"
    code = {"    " + line.replace("\t", "    ") for line in (found.wrong + "\n" + found.right).splitlines()}
    assert all(len(line) <= 80 or line in code or line.startswith(name) or "https://" in line for line in lines)
    assert CliRunner().invoke(main, ["explain", f"[{name}]"]).output == said.output


@pytest.mark.parametrize("which", ["wrong", "right"])
def test_the_code_compiles(which: str, tmp_path: Path) -> None:
    for name, found in everything().items():
        source = tmp_path / f"{name}.c"
        source.write_text(PRELUDE + getattr(found, which) + "\n}\n")
        done = subprocess.run(
            ["gcc", "-std=gnu11", "-Wall", "-Wno-unused-variable", "-Werror", "-fsyntax-only", str(source)],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{name}: {done.stderr}"


def test_without_a_name_all_are_listed() -> None:
    lines = CliRunner().invoke(main, ["explain"]).output.splitlines()
    assert [line.split()[0] for line in lines] == [rule.id for rule in RULES]


def test_an_unknown_finding_is_one_line() -> None:
    said = CliRunner().invoke(main, ["explain", "\x1b[2Jno"])
    assert said.exit_code == 1 and len(said.output.splitlines()) == 1
    assert said.output.startswith("uffdtrace: no finding is called ") and "\x1b" not in said.output
