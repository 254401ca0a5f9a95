"""The command line: ``python -m run_conformance [BACKEND ...]``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from providers import UnavailableError, required_backends, serve
from run_conformance.targets import TARGETS
from saga_bus.store.conformance import GROUPS
from saga_bus.store.conformance.__main__ import judge

UNUSABLE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge the named backends, or all that can run here; the worst exit code of them."""
    parser = argparse.ArgumentParser(
        prog="hatch run conformance",
        epilog="exit code: 0 every declared level holds, 1 a case fails, 2 wrong usage or a store cannot be opened",
    )
    parser.add_argument("backends", nargs="*", metavar="BACKEND", help=f"any of {', '.join(TARGETS)}; all by default")
    parser.add_argument("--controls", action="store_true", help="judge the kit: run it on stores that are broken")
    parser.add_argument(
        "--only", action="append", metavar="GROUP", choices=GROUPS, help="run one group of cases; repeatable"
    )
    parser.add_argument("--fail-fast", action="store_true", help="stop after the first failure")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report of the one backend as JSON")
    options = parser.parse_args(arguments)
    if options.controls:
        from controls.report import print_controls  # noqa: PLC0415 - only this option needs it

        return print_controls()
    unknown = sorted(set(options.backends) - set(TARGETS))
    if unknown:
        parser.error(f"no such backend: {', '.join(unknown)}; there are {', '.join(TARGETS)}")
    if options.json is not None and len(options.backends) != 1:
        parser.error("--json needs exactly one BACKEND")
    codes = [_judge(backend, options) for backend in options.backends or TARGETS]
    return max(codes)


def _judge(backend: str, options: argparse.Namespace) -> int:
    print(f"== {backend}")
    try:
        with serve(backend) as url:
            hooks = TARGETS[backend](url).hooks()
            return judge(hooks, only=options.only, fail_fast=options.fail_fast, json_file=options.json)
    except UnavailableError as error:
        print(f"not judged: {error}")
        return UNUSABLE if options.backends or backend in required_backends() else 0


if __name__ == "__main__":
    sys.exit(main())
