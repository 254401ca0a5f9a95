"""Reading an event log: wholly read and checked before anything else happens."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from saga_bus.store import InvalidSagaError
from saga_bus.store.checks import check_correlation_id

__all__ = ["CASE_COLUMNS", "ColumnNames", "EventLog", "EventLogError", "LoggedEvent", "read_event_log"]

CASE_COLUMNS = ("case:concept:name", "case_id")
ACTIVITY_COLUMNS = ("concept:name", "activity")
TIME_COLUMNS = ("time:timestamp", "timestamp")

_ZONE_AFTER_BLANK = re.compile(r"\s+(?=[+-]\d\d:?\d\d$)")


class EventLogError(Exception):
    """The file cannot be used; the message says why, and at which line."""


@dataclass(frozen=True, slots=True)
class ColumnNames:
    """The columns that the user named; None looks for the usual names.

    Args:
        case: The column of the case.
        activity: The column of the activity.
        time: The column of the time.
    """

    case: str | None = None
    activity: str | None = None
    time: str | None = None


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    """One row.

    Args:
        line: The line in the file, from 1.
        case: The case.
        activity: What was done.
        time: When, in UTC.
    """

    line: int
    case: str
    activity: str
    time: datetime


@dataclass(frozen=True, slots=True)
class EventLog:
    """A file that was read.

    Args:
        rows: Its rows, in the order of the file.
        zoneless: How many times had no zone and were taken as UTC.
    """

    rows: list[LoggedEvent]
    zoneless: int


def read_event_log(path: Path, names: ColumnNames) -> EventLog:
    """Read a CSV file with a column each for case, activity and time.

    Args:
        path: The file, in UTF-8, with or without a byte order mark; the first row names the columns.
        names: The columns that the user named.

    Raises:
        EventLogError: The file cannot be read, or something in it is broken.
    """
    rows = _rows(path)
    _, header = next(rows, (0, []))
    if not header:
        raise EventLogError(f"{path} is empty")
    case_at = _column(path, header, "case", names.case, CASE_COLUMNS)
    activity_at = _column(path, header, "activity", names.activity, ACTIVITY_COLUMNS)
    time_at = _column(path, header, "time", names.time, TIME_COLUMNS)

    events: list[LoggedEvent] = []
    zoneless = 0
    for line, row in rows:
        if len(row) != len(header):
            raise EventLogError(f"{path}, line {line}: {len(row)} fields, but the header has {len(header)}")
        time = _time(path, line, row[time_at])
        zoneless += time.tzinfo is None
        events.append(
            LoggedEvent(line, _case(path, line, row[case_at]), _activity(path, line, row[activity_at]), _utc(time))
        )
    if not events:
        raise EventLogError(f"{path} has a header but no events")
    return EventLog(events, zoneless)


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield every row that is not blank, with the number of its first line."""
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    first_line = 1
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise EventLogError(f"{path}, line {first_line}: {error}") from error
        if row is None:
            return
        if row:
            yield first_line, row
        first_line = reader.line_num + 1


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise EventLogError(f"there is no file {path}") from error
    except OSError as error:
        raise EventLogError(f"{path} cannot be read: {error.strerror}") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise EventLogError(f"{path}, line {line}: not UTF-8 (byte 0x{content[error.start]:02x})") from error


def _column(path: Path, header: list[str], what: str, named: str | None, usual: tuple[str, ...]) -> int:
    wanted = usual if named is None else (named,)
    for name in wanted:
        if header.count(name) > 1:
            raise EventLogError(f"{path} has {header.count(name)} columns {name!r}")
        if name in header:
            return header.index(name)
    looked_for = " or ".join(repr(name) for name in wanted)
    found = ", ".join(repr(name) for name in header)
    raise EventLogError(
        f"{path} has no column {looked_for} for the {what}; found: {found}. Name it with --{what}-column"
    )


def _case(path: Path, line: int, case: str) -> str:
    if not case.strip():
        raise EventLogError(f"{path}, line {line}: the case is empty")
    try:
        check_correlation_id(case)
    except InvalidSagaError as error:
        raise EventLogError(f"{path}, line {line}: the case cannot be a correlation id: {error}") from error
    return case


def _activity(path: Path, line: int, activity: str) -> str:
    if not activity.strip():
        raise EventLogError(f"{path}, line {line}: the activity is empty")
    if "\x00" in activity:
        raise EventLogError(f"{path}, line {line}: the activity holds a NUL character")
    return activity


def _time(path: Path, line: int, text: str) -> datetime:
    iso = _ZONE_AFTER_BLANK.sub("", text.strip().removesuffix(" UTC"))
    try:
        time = datetime.fromisoformat(iso)
        _utc(time)
    except (ValueError, OverflowError) as error:
        raise EventLogError(f"{path}, line {line}: {text!r} is no time such as 2026-01-31 12:30:00+01:00") from error
    return time if iso == text.strip() else _with_zone(time)


def _with_zone(time: datetime) -> datetime:
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)


def _utc(time: datetime) -> datetime:
    return _with_zone(time).astimezone(UTC)
