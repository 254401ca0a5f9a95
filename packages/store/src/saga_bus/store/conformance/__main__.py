"""The kit in a terminal: ``python -m saga_bus.store.conformance package.module:open_store``."""

from __future__ import annotations

# ruff: noqa: T201 - a program prints
import argparse
import asyncio
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from saga_bus.store.conformance.cases import CASES, GROUPS
from saga_bus.store.conformance.kit import Hooks
from saga_bus.store.conformance.report import (
    SUITE_VERSION,
    CannotOpenError,
    CaseResult,
    ConformanceReport,
    run_conformance,
)
from saga_bus.store.conformance.suite import SagaStoreConformance

__all__ = ["judge", "main"]

PASSED, FAILED, UNUSABLE = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge the store that the command line names.

    Args:
        arguments: The command line; the program's own when left out.

    Returns:
        0 when every declared level holds, 1 when a case fails, 2 on wrong usage or when the store cannot be opened.
    """
    options = _parser().parse_args(arguments)
    if options.list:
        for found in CASES:
            print(f"{found.name} [{found.level}]: {found.rule}")
        return PASSED
    if options.target is None:
        print("name the store to judge, as package.module:open_store", file=sys.stderr)
        return UNUSABLE
    try:
        hooks = load_hooks(options.target)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        print(f"cannot load {options.target}: {type(error).__name__}: {error}", file=sys.stderr)
        return UNUSABLE
    return judge(hooks, only=options.only, fail_fast=options.fail_fast, json_file=options.json)


def judge(
    hooks: Hooks, *, only: Sequence[str] | None = None, fail_fast: bool = False, json_file: Path | None = None
) -> int:
    """Run the kit and print its report, group by group.

    Args:
        hooks: What the kit gets to know of the store.
        only: The groups to run; all when left out.
        fail_fast: Stop after the first failure.
        json_file: Where to write the report as JSON.

    Returns:
        The exit code; see `main`.
    """
    print(f"saga-bus conformance suite {SUITE_VERSION}, {len(CASES)} cases")
    printer = _Printer(fail_fast=fail_fast)
    try:
        report = asyncio.run(
            run_conformance(
                hooks.open_store,
                open_transaction=hooks.open_transaction,
                secrets=hooks.secrets,
                only=only,
                fail_fast=fail_fast,
                on_result=printer.show,
            )
        )
    except CannotOpenError as error:
        print(error, file=sys.stderr)
        return UNUSABLE
    print(report.verdict())
    if json_file is not None:
        json_file.write_bytes(msgspec.json.format(msgspec.json.encode(report.as_dict())))
    return PASSED if report.ok else FAILED


def load_hooks(target: str) -> Hooks:
    """Find what a target names.

    Args:
        target: ``package.module:open_store``, beside which the module may define ``open_transaction`` and
            ``secrets``; or ``package.module:TestMyStore``, a subclass of `SagaStoreConformance`.

    Raises:
        ImportError: There is no such module.
        AttributeError: The module has no such name.
        TypeError: The name is neither a function nor a subclass of `SagaStoreConformance`.
        ValueError: The target has no colon.
    """
    module_name, separator, name = target.partition(":")
    if not separator or not module_name or not name:
        raise ValueError("a target is written package.module:open_store")
    module = importlib.import_module(module_name)
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part)
    if isinstance(found, type):
        if not issubclass(found, SagaStoreConformance):
            raise TypeError(f"{name} is a class, but no SagaStoreConformance")
        return found().hooks()
    if not callable(found):
        raise TypeError(f"{name} is neither a function nor a SagaStoreConformance")
    return Hooks(
        open_store=found,
        open_transaction=getattr(module, "open_transaction", None),
        secrets=tuple(getattr(module, "secrets", ())),
    )


class _Printer:
    """Prints a line whenever the last case of a group has run."""

    def __init__(self, *, fail_fast: bool) -> None:
        self._fail_fast = fail_fast
        self._sizes = {group: sum(found.group == group for found in CASES) for group in GROUPS}
        self._is_first = True

    def show(self, report: ConformanceReport, result: CaseResult) -> None:
        """Take note of one result."""
        if self._is_first:
            print(f"store: {report.store}")
            self._is_first = False
        done = sum(other.group == result.group for other in report.results)
        if done == self._sizes[result.group] or (self._fail_fast and result.outcome == "failed"):
            print(report.group_line(result.group), flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m saga_bus.store.conformance",
        description="Judge a saga store by the conformance kit.",
        epilog="exit code: 0 every declared level holds, 1 a case fails, 2 wrong usage or the store cannot be opened",
    )
    parser.add_argument("target", nargs="?", help="package.module:open_store, or a SagaStoreConformance class")
    parser.add_argument("--only", action="append", metavar="GROUP", choices=GROUPS, help="run one group; repeatable")
    parser.add_argument("--fail-fast", action="store_true", help="stop after the first failure")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report to a file, as JSON")
    parser.add_argument("--list", action="store_true", help="list the cases and their rules")
    return parser


if __name__ == "__main__":
    sys.exit(main())
