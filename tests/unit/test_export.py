"""Traces as tables: Parquet as DuckDB reads it, CSV as Python does, metrics as Prometheus' own parser does."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet
import pytest
from click.testing import CliRunner, Result
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from unit.events import Events
from unit.traces import WHAT, history, write

from uffdtrace.cli import main
from uffdtrace.export import parquet
from uffdtrace.export.tables import TABLES, Exported
from uffdtrace.reporters import offline
from uffdtrace.reporters.harmless import printable

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs" / "export.md"
QUERIES = re.findall(r"^```sql\n(.*?)^```$", DOCS.read_text(), re.MULTILINE | re.DOTALL)
FLEET = 1000
HOSTS, BUILDS, KERNELS = ("hv1", "hv2", "hv3"), ("41", "42"), ("5.10.0", "6.1.0", "6.12.0")
# A name as a hostile target could choose it, and one that a spreadsheet would calculate.
NAMES = ("plain", "a\x1b[2J\r\n\"b',\u202e", "=1+1")


def export(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["export", *map(str, arguments)])


def scene(lost: int, served: int, cause: int) -> Events:
    events = Events()
    events.userfaultfd()
    events.register(0, 16)
    events.arm(0, 16, 16 if cause else served)
    for page in range(served):
        events.served(page)
    if cause and lost:
        events.zap(served, lost)
    for page in range(served, served + lost):
        events.fresh(page)
    return events


def trace(path: Path, number: int, events: Events, **head: Any) -> Path:
    what = {**WHAT["trace"], "started": f"2026-11-{number % 28 + 1:02}T03:04:05.678+00:00", **head}
    process = {"pid": 7, "comm": NAMES[number % 3], "cmdline": ["tracker"]}
    return write(path, events.array(), trace=what, process=process, began=number + 1)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """A dataset of a thousand traces, and what was put into each."""
    folder = tmp_path_factory.mktemp("fleet")
    made = []
    batches = defaultdict(list)
    for number in range(FLEET):
        host, build = HOSTS[number % 3], BUILDS[number % 2]
        lost, served, cause = number % 5 if build == "41" else 0, number % 7, number % 2
        kernel = KERNELS[number // 3 % 3]
        path = trace(folder / f"{number}.data", number, scene(lost, served, cause), kernel=kernel)
        made.append({"host": host, "build": build, "kernel": kernel, "lost": lost, "served": served, "path": path})
        batches[host, build].append(path)
    for (host, build), paths in batches.items():
        done = export("-o", folder / "set", "--label", f"host={host}", "--label", f"build={build}", *paths)
        assert (done.exit_code, done.output) == (0, "")
    return folder / "set", made


def ask(folder: Path, query: str) -> list[tuple[Any, ...]]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        return duckdb.sql(query).fetchall()
    finally:
        os.chdir(before)


def test_which_hosts_lost_writes(fleet: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, made = fleet
    found = ask(folder, QUERIES[0])
    pages: Counter[str] = Counter()
    traces: Counter[str] = Counter()
    for one in made:
        pages[one["host"]] += one["lost"]
        traces[one["host"]] += bool(one["lost"])
    by_host: Counter[str] = Counter()
    of_traces: Counter[str] = Counter()
    for host, _, lost, count in found:
        by_host[host] += int(lost)
        of_traces[host] += count
    assert by_host == pages and of_traces == traces and sum(pages.values()) > 500


def test_clickhouse_says_the_same(fleet: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, _ = fleet
    # In a process of its own: whatever else the engine starts ends with it.
    code = "import chdb, sys; print(chdb.query(sys.argv[1], 'CSV'), end='')"
    done = subprocess.run(
        [sys.executable, "-c", code, QUERIES[3]], cwd=folder, capture_output=True, text=True, check=True
    )
    found = [(host, cause, int(pages), int(traces)) for host, cause, pages, traces in csv.reader(done.stdout.split())]
    assert found == [(host, cause, int(pages), traces) for host, cause, pages, traces in ask(folder, QUERIES[0])]
    assert len(found) > 2


def test_service_by_kernel(fleet: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, made = fleet
    served: Counter[str] = Counter()
    for one in made:
        served[one["kernel"]] += one["served"]
    found = ask(folder, QUERIES[1])
    assert {kernel: int(faults) for kernel, _, faults in found} == dict(served)
    # The events are a microsecond apart.
    assert {worst for _, worst, _ in found} == {1.0}


def test_did_a_build_fix_it(fleet: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, made = fleet
    of_build = {build: [one["lost"] > 0 for one in made if one["build"] == build] for build in BUILDS}
    expected = [(build, len(lost), sum(lost)) for build, lost in of_build.items()]
    assert ask(folder, QUERIES[2]) == expected
    assert expected[0][2] > 0 == expected[1][2]


def test_every_column_is_there_and_described(fleet: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, _ = fleet
    for table, columns in TABLES.items():
        (first, *_) = sorted((folder / table).rglob("*.parquet"))
        schema = pyarrow.parquet.read_schema(first)
        more = ["build"] if table == "traces" else []
        assert schema.names == [*(column.name for column in columns), *more]
        assert schema.metadata[b"uffdtrace_tables"] == b"1"
        assert all(f"| `{column.name}` | {column.kind} | {column.meaning} |" in DOCS.read_text() for column in columns)
    assert len(QUERIES) == 4


def test_a_trace_that_comes_again_takes_its_own_place(tmp_path: Path) -> None:
    path = trace(tmp_path / "a", 0, scene(3, 2, 0))
    copied = tmp_path / "b"
    copied.write_bytes(path.read_bytes())
    other = trace(tmp_path / "c", 1, scene(3, 2, 0))
    for _ in range(2):
        assert export("-o", tmp_path / "set", path, copied, other).exit_code == 0
    assert ask(tmp_path / "set", "SELECT count(*) FROM 'traces/**/*.parquet'") == [(2,)]
    assert ask(tmp_path / "set", "SELECT sum(pages) FROM 'lost_runs/**/*.parquet'") == [(6,)]
    assert [part.name for part in tmp_path.glob("set/traces/*/*")] == ["host=unknown"] * 2


def test_the_numbers_are_the_reports(tmp_path: Path) -> None:
    path = write(tmp_path / "a", history())
    assert export("-o", tmp_path / "set", path).exit_code == 0
    report = offline.read(path)
    (found,) = report["ranges"]
    query = "SELECT lost_observed, lost_blind, armed_pages, messages_wp, verdict FROM 'ranges/**/*.parquet'"
    lost = found["lost"]
    assert ask(tmp_path / "set", query) == [
        (lost["observed"], lost["blind"], found["armed_pages"], found["messages"]["wp"], found["verdict"])
    ]
    ids = ask(tmp_path / "set", "SELECT finding, count FROM 'findings/**/*.parquet'")
    assert sorted(ids) == sorted((one["id"], one["pages"]) for one in found["findings"])


@pytest.mark.parametrize("form", ["parquet", "csv"])
def test_a_broken_file_among_others_is_named_and_passed_over(tmp_path: Path, form: str) -> None:
    good = write(tmp_path / "good", history())
    (tmp_path / "broken").write_bytes(b"nothing")
    done = export("-o", tmp_path / "set", "--format", form, tmp_path / "broken", good, tmp_path / "missing")
    said = done.output.splitlines()
    assert done.exit_code == 1 and len(said) == 3
    assert f"{tmp_path}/broken is not a uffdtrace trace file" in said[0] and "missing" in said[1]
    assert said[2] == f"uffdtrace: 2 of 3 files could not be read, and are not in {tmp_path}/set"
    assert list((tmp_path / "set").rglob("*traces*"))


def test_csv(tmp_path: Path) -> None:
    paths = [trace(tmp_path / f"{number}", number, scene(number, 1, 0)) for number in range(3)]
    done = export("-o", tmp_path / "set", "--format", "csv", "--label", "host=hv1", *paths, *paths)
    assert (done.exit_code, done.output) == (0, "")
    with open(tmp_path / "set" / "traces.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["lost_pages"] for row in rows] == ["0", "1", "2"] and {row["host"] for row in rows} == {"hv1"}
    # Harmless wherever it is looked at.
    assert rows[2]["comm"] == "'=1+1" and rows[1]["comm"].isprintable()
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == sorted(f"{name}.csv" for name in TABLES)


def test_metrics_are_what_openmetrics_allows(tmp_path: Path) -> None:
    path = trace(tmp_path / "a", 1, scene(3, 2, 0))
    out = tmp_path / "uffdtrace.prom"
    done = export("-o", out, "--format", "openmetrics", "--label", "host=hv1", path)
    assert (done.exit_code, done.output, out.stat().st_mode & 0o777) == (0, "", 0o644)
    found = {family.name: family for family in text_string_to_metric_families(out.read_text())}
    (lost,) = found["uffdtrace_lost_pages"].samples
    assert (lost.value, lost.labels) == (3, {"host": "hv1", "process": printable(NAMES[1]), "cause": "unpopulated"})
    assert {one.labels["kind"]: one.value for one in found["uffdtrace_read_messages"].samples} == {
        "missing": 0,
        "wp": 2,
        "minor": 0,
    }
    assert {family.type for family in found.values()} == {"gauge"}
    assert all(not family.unit or family.name.endswith(f"_{family.unit}") for family in found.values())
    assert found["uffdtrace_trace_info"].samples[0].labels["verdict"] == "lost-writes"


def test_what_is_not_known_is_no_number(tmp_path: Path) -> None:
    """A trace that has no end: what became of a fault nobody knows."""
    events = scene(1, 1, 0)
    events.fault(9)
    path = trace(tmp_path / "a", 0, events)
    path.write_bytes(path.read_bytes()[:-40])
    out = tmp_path / "out"
    assert export("-o", out, "--format", "openmetrics", path).exit_code == 0
    assert "uffdtrace_pending_faults" not in out.read_text() and "uffdtrace_lost_pages" in out.read_text()
    assert export("-o", tmp_path / "set", path).exit_code == 0
    assert ask(tmp_path / "set", "SELECT exact FROM 'traces/**/*.parquet'") == [(False,)]
    assert ask(tmp_path / "set", "SELECT pending FROM 'ranges/**/*.parquet'") == [(None,)]


@pytest.mark.parametrize("started", ["../../up", "2026-13-01T00:00:00", "", "9999-12-31T23:59:59-23:00"])
@pytest.mark.parametrize("form", ["parquet", "csv"])
def test_a_trace_names_no_folder(tmp_path: Path, started: str, form: str) -> None:
    path = trace(tmp_path / "a", 0, scene(1, 1, 0), started=started)
    done = export("-o", tmp_path / "set" / "below", "--format", form, path)
    assert (done.exit_code, done.output) == (0, "")
    assert [one.name for one in (tmp_path / "set").iterdir()] == ["below"]
    if form == "parquet":
        assert [one.name for one in tmp_path.glob("set/below/traces/*")] == ["date=unknown"]
        assert ask(tmp_path / "set" / "below", "SELECT started FROM 'traces/**/*.parquet'") == [(None,)]


def test_numbers_that_no_machine_has(tmp_path: Path) -> None:
    row: dict[str, Any] = {column.name: 0 for column in TABLES["lost_runs"] if column.kind == "int"}
    rows: dict[str, list[Any]] = {**{name: [] for name in TABLES}, "lost_runs": [{**row, "pages": 1 << 64}]}
    with pytest.raises(parquet.NoTable, match="a number in lost_runs that no machine has"):
        parquet.Dataset(tmp_path, {}).add(Exported("0", "2026-01-01", "a", rows))


@pytest.mark.parametrize(
    "label", ["host", "Host=a", "trace_id=a", "date=a", "host=../up", "host=.a", "a=b/c", "=a", "a="]
)
def test_what_is_no_label(tmp_path: Path, label: str) -> None:
    done = export("-o", tmp_path / "set", "--label", label, tmp_path / "a")
    assert done.exit_code == 2 and not (tmp_path / "set").exists()


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    done = export("-o", tmp_path / "set", write(tmp_path / "a", history()))
    (line,) = done.output.splitlines()
    assert done.exit_code == 1 and "pip install 'uffdtrace[export]', or use --format csv" in line
    with pytest.raises(parquet.NoPyarrow):
        parquet.load()


def test_metrics_of_several(tmp_path: Path) -> None:
    done = export("-o", tmp_path / "out", "--format", "openmetrics", "a", "b")
    assert done.exit_code == 2 and "name one FILE" in done.output


def test_nowhere_to_write(tmp_path: Path) -> None:
    path = write(tmp_path / "a", history())
    for form in ("parquet", "csv", "openmetrics"):
        done = export("-o", path / "below", "--format", form, path)
        (line,) = done.output.splitlines()
        assert done.exit_code == 1 and line.startswith("uffdtrace: cannot write ")


def test_memory_does_not_grow_with_the_traces(fleet: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    _, made = fleet
    code = """
import json, resource, sys
from uffdtrace.cli.export import command
paths = sys.argv[2:]
peaks = []
for part in (paths[:20], paths):
    command.main(["-o", sys.argv[1], "--format", "csv", *part], standalone_mode=False)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(json.dumps(peaks))
"""
    paths = [str(one["path"]) for one in made[:400]]
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "set"), *paths], capture_output=True, text=True, check=True
    )
    few, many = json.loads(done.stdout)
    # KiB.
    assert many < few + 4096
