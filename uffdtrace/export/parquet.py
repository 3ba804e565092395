"""Tables as a dataset of Parquet files, one for each trace and table: a trace that comes again takes its own place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uffdtrace.errors import UffdtraceError
from uffdtrace.export.tables import TABLES, VERSION, Exported
from uffdtrace.trace.output import replace

if TYPE_CHECKING:
    from types import ModuleType


class NoPyarrow(UffdtraceError):
    """pyarrow is missing, or does not work here."""


class NoTable(UffdtraceError):
    """A trace holds a number that is none of a machine's."""


def load() -> ModuleType:
    """pyarrow, with its parquet module; NoPyarrow."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise NoPyarrow(
            f"pyarrow is needed for Parquet ({error}): pip install 'uffdtrace[export]', or use --format csv"
        ) from None
    module: ModuleType = pyarrow
    return module


class Dataset:
    """A folder with a folder for each table, parted by date and host (`traces/date=2026-11-28/host=a/ID.parquet`)."""

    def __init__(self, folder: Path, labels: Mapping[str, str]) -> None:
        """`labels` are columns of `traces`, but for host, by which everything is parted. NoPyarrow."""
        self._arrow: Any = load()
        self._folder = folder
        self._schemas = {name: self._schema(name, labels) for name in TABLES}

    def _schema(self, table: str, labels: Mapping[str, str]) -> Any:
        arrow = self._arrow
        kinds = {
            "string": arrow.string(),
            "int": arrow.uint64(),
            "float": arrow.float64(),
            "bool": arrow.bool_(),
            "time": arrow.timestamp("ms", tz="UTC"),
        }
        fields = [arrow.field(column.name, kinds[column.kind]) for column in TABLES[table]]
        if table == "traces":
            fields += [arrow.field(key, arrow.string()) for key in labels if key != "host"]
        return arrow.schema(fields, metadata={"uffdtrace_tables": str(VERSION)})

    def add(self, trace: Exported) -> None:
        """Put a trace into it; one that is there already takes its own place. OSError, NoTable."""
        made = {name: self._made(name, trace) for name in TABLES if trace.rows[name]}
        for name in TABLES:
            part = self._folder / name / f"date={trace.date}" / f"host={trace.host}"
            path = part / f"{trace.trace_id}.parquet"
            if name in made:
                part.mkdir(parents=True, exist_ok=True)
                replace(path, made[name], 0o644)
            else:
                path.unlink(missing_ok=True)

    def _made(self, table: str, trace: Exported) -> bytes:
        """A table's file."""
        try:
            rows = self._arrow.Table.from_pylist(trace.rows[table], self._schemas[table])
        except (OverflowError, self._arrow.ArrowInvalid) as error:
            what = f"trace {trace.trace_id} has a number in {table} that no machine has"
            raise NoTable(f"{what} ({error}): it is broken or foreign") from None
        content = self._arrow.BufferOutputStream()
        self._arrow.parquet.write_table(rows, content)
        made: bytes = content.getvalue().to_pybytes()
        return made

    def close(self, kept: bool = True) -> None:
        """Each trace is there already."""
