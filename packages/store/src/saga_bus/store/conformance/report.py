"""Running the cases from code, and the verdict."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from saga_bus.store.conformance.cases import CASES, GROUPS
from saga_bus.store.conformance.kit import (
    ABILITIES,
    CORE,
    Case,
    Hooks,
    Kit,
    OpenStore,
    OpenTransaction,
    UndeclaredError,
    run_case,
)
from saga_bus.store.protocol import StoreCapabilities

__all__ = ["SUITE_VERSION", "CannotOpenError", "CaseResult", "ConformanceReport", "run_conformance"]

SUITE_VERSION = "1"
"""Raised whenever a case is added, removed or becomes stricter."""

Outcome = Literal["passed", "failed", "undeclared"]


class CannotOpenError(Exception):
    """The kit could not open a store at all, so there is nothing to judge."""


@dataclass(frozen=True)
class CaseResult:
    """How one case ended.

    Args:
        name: The case's name.
        group: Its group.
        level: "core" or the ability that it proves.
        rule: The rule that it checks.
        outcome: Whether it passed, failed, or is about something that the store does not declare.
        message: What was wrong, or what is not declared.
        seconds: How long it took.
    """

    name: str
    group: str
    level: str
    rule: str
    outcome: Outcome
    message: str
    seconds: float


@dataclass
class ConformanceReport:
    """The verdict on a store.

    Args:
        store: The name of the store's class.
        capabilities: What it declares.
        planned: How many cases were to be run.
        results: How they ended.
        suite_version: The version of the suite.
    """

    store: str
    capabilities: StoreCapabilities
    planned: int
    results: list[CaseResult] = field(default_factory=list)
    suite_version: str = SUITE_VERSION

    @property
    def failures(self) -> list[CaseResult]:
        """The cases that failed."""
        return [result for result in self.results if result.outcome == "failed"]

    @property
    def ok(self) -> bool:
        """Whether all cases that were to be run have run, and none failed."""
        return not self.failures and len(self.results) == self.planned

    @property
    def complete(self) -> bool:
        """Whether the whole suite was run."""
        return len(self.results) == len(CASES)

    @property
    def declared(self) -> tuple[str, ...]:
        """The levels that the store declares: core, then abilities."""
        return (CORE, *(ability for ability in ABILITIES if getattr(self.capabilities, ability)))

    @property
    def undeclared(self) -> tuple[str, ...]:
        """The abilities that the store does not declare."""
        return tuple(ability for ability in ABILITIES if ability not in self.declared)

    @property
    def levels(self) -> tuple[str, ...]:
        """The declared levels that hold, as far as the whole suite was run; no ability holds without core."""
        broken = {result.level for result in self.failures}
        if not self.complete or CORE in broken:
            return ()
        return tuple(level for level in self.declared if level not in broken)

    def as_dict(self) -> dict[str, Any]:
        """The report as plain values, for JSON."""
        return {
            "suite_version": self.suite_version,
            "store": self.store,
            "ok": self.ok,
            "complete": self.complete,
            "levels": self.levels,
            "declared": self.declared,
            "undeclared": self.undeclared,
            "index_lag": str(self.capabilities.index_lag),
            "cases": [asdict(result) for result in self.results],
        }

    def group_line(self, group: str) -> str:
        """One line on the cases of a group.

        Args:
            group: The group.
        """
        results = [result for result in self.results if result.group == group]
        counts = Counter(result.outcome for result in results)
        words = [f"{counts[outcome]} {outcome}" for outcome in ("passed", "failed", "undeclared") if counts[outcome]]
        return f"  {group:<16}{', '.join(words):<32}{sum(result.seconds for result in results):6.1f} s"

    def verdict(self) -> str:
        """The failures, the levels and the verdict, as text."""
        lines: list[str] = []
        for failure in self.failures:
            lines += [f"FAILED {failure.name}", f"  rule: {failure.rule}"]
            lines += [f"  {line}" for line in failure.message.splitlines()]
        missing = self.planned - len(self.results)
        counts = Counter(result.outcome for result in self.results)
        lines.append(f"level: {', '.join(self.levels) or ('none' if self.complete else 'not judged, as not all ran')}")
        lines.append(f"not declared: {', '.join(self.undeclared) or 'nothing'}")
        if self.capabilities.index_lag:
            lines.append(f"index lag: {self.capabilities.index_lag}, as declared, in which an index may miss a write")
        lines.append(
            f"{counts['passed']} passed, {counts['failed']} failed, {counts['undeclared']} undeclared"
            + (f", {missing} not run" if missing else "")
            + (": every declared level holds" if self.ok and self.complete else "")
        )
        return "\n".join(lines)


def chosen_cases(groups: Collection[str] | None) -> list[Case]:
    """The cases of some groups.

    Args:
        groups: The names of the groups; None for all.

    Raises:
        ValueError: A group that the kit does not have.
    """
    unknown = sorted(set(groups or ()) - set(GROUPS))
    if unknown:
        raise ValueError(f"no such group: {', '.join(unknown)}; there are {', '.join(GROUPS)}")
    return [found for found in CASES if groups is None or found.group in groups]


async def run_conformance(
    open_store: OpenStore,
    *,
    open_transaction: OpenTransaction | None = None,
    secrets: Sequence[str] = (),
    only: Collection[str] | None = None,
    fail_fast: bool = False,
    on_result: Callable[[ConformanceReport, CaseResult], None] | None = None,
) -> ConformanceReport:
    """Run the kit on a store.

    Args:
        open_store: Returns, or awaits to, a store on the place that a namespace names; see `Hooks`.
        open_transaction: Opens a transaction on such a place, for stores that declare ``transactions``.
        secrets: Texts that no ``repr`` and no error may show.
        only: The names of the groups to run; all when left out.
        fail_fast: Stop after the first failure.
        on_result: Called after every case.

    Returns:
        The report.

    Raises:
        CannotOpenError: ``open_store`` failed, or the schema could not be created.
        ValueError: A group that the kit does not have.
    """
    hooks = Hooks(open_store=open_store, open_transaction=open_transaction, secrets=tuple(secrets))
    chosen = chosen_cases(only)
    name, capabilities = await _probe(hooks)
    report = ConformanceReport(store=name, capabilities=capabilities, planned=len(chosen))
    for one in chosen:
        result = await _result(one, hooks)
        report.results.append(result)
        if on_result is not None:
            on_result(report, result)
        if fail_fast and result.outcome == "failed":
            break
    return report


async def _probe(hooks: Hooks) -> tuple[str, StoreCapabilities]:
    kit = Kit(hooks)
    try:
        store = await kit.store()
        found = type(store).__qualname__, kit.capabilities
        await kit.clean_up()
    except Exception as error:
        raise CannotOpenError(f"the store cannot be opened: {type(error).__name__}: {error}") from error
    return found


async def _result(one: Case, hooks: Hooks) -> CaseResult:
    started = time.perf_counter()
    outcome: Outcome = "passed"
    message = ""
    try:
        await run_case(one, hooks)
    except UndeclaredError as error:
        outcome, message = "undeclared", f"the store does not declare {error}"
    except AssertionError as error:
        outcome, message = "failed", _text(error)
    except Exception as error:  # noqa: BLE001 - whatever a store raises is the case's failure
        outcome, message = "failed", f"{type(error).__name__}: {_text(error)}"
    return CaseResult(one.name, one.group, one.level, one.rule, outcome, message, time.perf_counter() - started)


def _text(error: BaseException) -> str:
    return "\n".join((str(error), *getattr(error, "__notes__", ())))
