"""Running the controls, and their table."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Column, Table

from controls import CONTROLS, Control, hooks_of
from saga_bus.store.conformance.cases import CASES
from saga_bus.store.conformance.kit import Case, UndeclaredError, run_case

__all__ = ["Finding", "judge", "print_controls", "run_controls"]

_CASES: dict[str, Case] = {found.name: found for found in CASES}


class Finding(NamedTuple):
    """What a case said of a broken store.

    Args:
        fault: The store's fault.
        case: The case.
        failed: Whether it failed the store, for the first of a control's cases also: with the promised words.
        message: What the case said, empty when it passed the store.
    """

    fault: str
    case: str
    failed: bool
    message: str


def judge(store: type[Any], case: str, directory: Path) -> str:
    """What a case says of a store.

    Args:
        store: The class of the store.
        case: The name of the case.
        directory: Where SQLite files are kept.

    Returns:
        The failure message as the kit's report shows it; empty when the case passes.

    Raises:
        ValueError: The store does not declare the ability that the case is about.
    """
    try:
        asyncio.run(run_case(_CASES[case], hooks_of(store, directory)))
    except UndeclaredError as error:
        raise ValueError(f"{store.__qualname__} does not declare {error}, which {case} is about") from error
    except AssertionError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001 - whatever a store raises is the case's failure
        return f"{type(error).__name__}: {error}"
    return ""


def findings(control: Control, directory: Path) -> list[Finding]:
    """What a control's cases say of it.

    Args:
        control: The control.
        directory: Where SQLite files are kept.
    """
    found = []
    for number, case in enumerate(control.cases):
        message = judge(control.store, case, directory)
        promised = control.says in message if number == 0 else True
        found.append(Finding(control.fault, case, bool(message) and promised, message))
    return found


def run_controls(on_progress: Callable[[int, int], None] | None = None) -> list[Finding]:
    """Run every case that a control names on that control.

    Args:
        on_progress: Called after every control with the number of those done, and of all.

    Returns:
        One finding for each control and case.
    """
    found: list[Finding] = []
    with tempfile.TemporaryDirectory() as directory:
        for number, control in enumerate(CONTROLS, start=1):
            found += findings(control, Path(directory))
            if on_progress is not None:
                on_progress(number, len(CONTROLS))
    return found


def print_controls() -> int:
    """Run the controls and print the table of faults and cases.

    Returns:
        0 when every control is failed as promised, else 1.
    """
    console = Console()
    with Progress(*Progress.get_default_columns(), console=console, transient=True) as progress:
        bar = progress.add_task("broken stores")
        found = run_controls(lambda done, total: progress.update(bar, completed=done, total=total))
    table = Table(
        "fault", Column("failed by the case", overflow="fold"), title="Negative controls of the conformance kit"
    )
    for finding in found:
        table.add_row(escape(finding.fault), finding.case if finding.failed else f"[red]NOT FAILED: {finding.case}")
    console.print(table)
    missed = [finding for finding in found if not finding.failed]
    for finding in missed:
        console.print(
            f"not failed as promised: {finding.fault} / {finding.case}: {finding.message or 'it passed'}", markup=False
        )
    covered = {finding.case for finding in found if finding.failed}
    console.print(
        f"{len({finding.fault for finding in found})} broken stores, {len(found) - len(missed)} of {len(found)} "
        f"verdicts as promised; {len(covered)} of the kit's {len(CASES)} cases fail at least one of them"
    )
    return 1 if missed else 0
