"""The real work: an event log, a saga per case, an event per row."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime
from typing import Any

import msgspec

from demo.event_log import EventLog, LoggedEvent
from demo.states import PATIENT, DemoState, note
from demo.workload import SagaPlan, Workload
from saga_bus.core import SagaContext, SagaDefinition

__all__ = ["SAGA_NAME", "CaseEvent", "CaseState", "cases", "plan_cases"]

SAGA_NAME = "CaseSaga"


class CaseState(DemoState, kw_only=True):
    """A case of an event log.

    Args:
        case_id: The case's id, which is also the saga's correlation id.
        case_size: How many events the case has in the log.
        last_activity: The activity of the latest event so far.
        last_time: Its time.
        last_line: Its line in the file, which decides between events of the same time.
    """

    case_id: str
    case_size: int
    last_activity: str
    last_time: datetime
    last_line: int

    def is_finished(self) -> bool:
        return len(self.applied) == self.case_size

    def ending(self) -> str:
        return self.last_activity


class CaseEvent(msgspec.Struct, frozen=True):
    """One row of the log.

    Args:
        event_id: Names the line.
        case_id: The case.
        case_size: How many events the case has in the log.
        activity: What was done.
        time: When, with a zone.
        line: The row's line in the file.
    """

    event_id: str
    case_id: str
    case_size: int
    activity: str
    time: datetime
    line: int

    @property
    def correlation_id(self) -> str:
        return self.case_id


cases = SagaDefinition(SAGA_NAME, CaseState, correlate="case_id", retry=PATIENT)


@cases.starts(
    CaseEvent,
    new=lambda event: CaseState(
        case_id=event.case_id,
        case_size=event.case_size,
        last_activity=event.activity,
        last_time=event.time,
        last_line=event.line,
    ),
)
async def take(message: CaseEvent, state: CaseState, ctx: SagaContext) -> None:
    # Workers race, so events arrive in any order: the latest one by the log's clock counts.
    if (message.time, message.line) > (state.last_time, state.last_line):
        state.last_activity, state.last_time, state.last_line = message.activity, message.time, message.line
    note(state, ctx)


def plan_cases(log: EventLog, at_once: int) -> Workload[Any]:
    """Make a saga of every case.

    Args:
        log: The event log.
        at_once: How many events of a case are sent at the same time.
    """
    by_case: dict[str, list[LoggedEvent]] = defaultdict(list)
    for row in log.rows:
        by_case[row.case].append(row)
    return Workload(SAGA_NAME, "last_activity", [_plan(case, rows, at_once) for case, rows in by_case.items()])


def _plan(case: str, rows: list[LoggedEvent], at_once: int) -> SagaPlan[CaseEvent]:
    events = [CaseEvent(f"line {row.line}", case, len(rows), row.activity, row.time, row.line) for row in rows]
    stages = tuple(tuple(events[start : start + at_once]) for start in range(0, len(events), at_once))
    last = max(reversed(rows), key=lambda row: row.time)  # reversed: of several at the same time, the last line
    return SagaPlan(case, stages, last.activity)
