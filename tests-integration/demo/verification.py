"""The check at the end: what is stored against what was sent."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from demo.states import DemoState
from demo.worker import open_store
from demo.workload import SagaPlan, Workload
from saga_bus.store import SagaFilter

__all__ = ["Verdict", "verify"]

_PAGE = 500


@dataclass(slots=True)
class Verdict:
    """What the check found.

    Args:
        sagas: How many sagas are stored.
        lost: How many events were sent but are not in their saga's final state.
        doubled: How many times an event is in a final state once too often.
        unfinished: How many sagas are absent or not completed.
        differing: The correlation ids of the sagas whose event count or ending is not what was sent.
    """

    sagas: int = 0
    lost: int = 0
    doubled: int = 0
    unfinished: int = 0
    differing: list[str] = field(default_factory=list)

    def is_good(self) -> bool:
        """Whether everything that was sent is stored, once."""
        return not (self.lost or self.doubled or self.unfinished or self.differing)


async def verify(database: Path, workload: Workload[Any]) -> Verdict:
    """Read every saga back through a connection of its own, page by page, and compare.

    Args:
        database: The SQLite file; nothing writes to it any more.
        workload: What was sent.
    """
    verdict = Verdict()
    expected = {plan.correlation_id: plan for plan in workload.plans}
    async with open_store(database) as store:
        cursor = None
        while True:
            page = await store.find(SagaFilter(saga_name=workload.saga_name), limit=_PAGE, cursor=cursor)
            for record in page.items:
                verdict.sagas += 1
                _compare(verdict, record.correlation_id, record.state, expected.pop(record.correlation_id, None))
            cursor = page.cursor
            if cursor is None:
                break
    for absent in expected.values():
        verdict.lost += len(absent.event_ids())
        verdict.unfinished += 1
        verdict.differing.append(absent.correlation_id)
    return verdict


def _compare(verdict: Verdict, correlation_id: str, state: DemoState, plan: SagaPlan[Any] | None) -> None:
    sent = Counter(plan.event_ids() if plan else ())
    stored = Counter(state.applied)
    verdict.lost += (sent - stored).total()
    verdict.doubled += (stored - sent).total()
    verdict.unfinished += not state.metadata.is_completed
    if plan is None or stored.total() != sent.total() or state.ending() != plan.ending:
        verdict.differing.append(correlation_id)
