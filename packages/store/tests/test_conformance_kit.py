"""The kit as its users meet it: pytest class, command, function; a store of five methods; the approved cases."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import pytest

from saga_bus.store.conformance import (
    CASES,
    GROUPS,
    STATE_TYPES,
    SUITE_VERSION,
    CannotOpenError,
    SagaStoreConformance,
    expect,
    run_conformance,
)
from saga_bus.store.conformance.kit import ABILITIES, CORE
from saga_bus.store.conformance.states import follow, new_state

APPROVED = Path(__file__).parent / "approved_cases.txt"

# What a stranger might write with the five operations and nothing of ours but the errors, the codec and the types.
FIVE_METHODS = textwrap.dedent(
    """
    from saga_bus.store import (
        DuplicateSagaError, InvalidSagaError, JsonStateCodec, SagaMetadata, version_conflict,
    )
    from saga_bus.store.conformance import STATE_TYPES

    PLACES = {}

    def key(text, most):
        if not isinstance(text, str) or not 0 < len(text) <= most or "\\0" in text:
            raise InvalidSagaError(f"bad key {text!r:.40}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidSagaError("lone surrogate") from error
        return text

    def number(version):
        if type(version) is not int or version < 0:
            raise InvalidSagaError(f"bad version {version!r}")
        return version

    class FiveMethods:
        def __init__(self, place):
            self.sagas, self.index = PLACES.setdefault(place, ({}, {}))
            self.codec = JsonStateCodec(STATE_TYPES)

        def metadata(self, state):
            metadata = getattr(state, "metadata", None)
            if not isinstance(metadata, SagaMetadata):
                raise InvalidSagaError("no metadata")
            key(metadata.saga_id, 128), number(metadata.version)
            return metadata

        async def get_by_id(self, saga_name, saga_id):
            found = self.sagas.get((key(saga_name, 128), key(saga_id, 128)))
            return None if found is None else self.codec.decode(saga_name, found[1])

        async def get_by_correlation_id(self, saga_name, correlation_id):
            saga_id = self.index.get((key(saga_name, 128), key(correlation_id, 256)))
            return None if saga_id is None else await self.get_by_id(saga_name, saga_id)

        async def insert(self, saga_name, correlation_id, state):
            metadata = self.metadata(state)
            by_id = (key(saga_name, 128), metadata.saga_id)
            by_correlation = (saga_name, key(correlation_id, 256))
            document = self.codec.encode(state)
            for conflict, taken in (("saga_id", by_id in self.sagas), ("correlation_id", by_correlation in self.index)):
                if taken:
                    raise DuplicateSagaError(
                        saga_name=saga_name, saga_id=metadata.saga_id, correlation_id=correlation_id, conflict=conflict
                    )
            self.sagas[by_id] = (metadata.version, document, by_correlation)
            self.index[by_correlation] = metadata.saga_id

        async def update(self, saga_name, state, expected_version):
            metadata = self.metadata(state)
            if metadata.version != number(expected_version) + 1:
                raise InvalidSagaError("the version must go up by one")
            by_id = (key(saga_name, 128), metadata.saga_id)
            found = self.sagas.get(by_id)
            if found is None or found[0] != expected_version:
                raise version_conflict(
                    saga_name, metadata.saga_id, expected_version=expected_version,
                    actual_version=None if found is None else found[0],
                )
            self.sagas[by_id] = (metadata.version, self.codec.encode(state), found[2])

        async def delete(self, saga_name, saga_id):
            found = self.sagas.pop((key(saga_name, 128), key(saga_id, 128)), None)
            if found is not None:
                del self.index[found[2]]

    def open_store(namespace):
        return FiveMethods(namespace)
    """
)

# One fault: the version that is stored is not looked at.
CARELESS = FIVE_METHODS.replace("found is None or found[0] != expected_version", "found is None")

PYTEST_FILE = textwrap.dedent(
    """
    from saga_bus.store.conformance import SagaStoreConformance
    from stores import FiveMethods

    class TestFiveMethods(SagaStoreConformance):
        async def open_store(self, namespace):
            return FiveMethods(namespace)
    """
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    assert CARELESS != FIVE_METHODS
    (tmp_path / "stores.py").write_text(FIVE_METHODS)
    (tmp_path / "careless.py").write_text(CARELESS)
    return tmp_path


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_cases_are_the_approved_ones() -> None:
    """A case that vanishes, appears or changes its level must be approved, and raises the suite's version."""
    lines = [f"suite {SUITE_VERSION}", *(f"{case.name} [{case.level}]" for case in CASES)]
    assert lines == APPROVED.read_text().splitlines()


def test_every_case_states_its_rule_and_has_one_name() -> None:
    assert all(case.rule.endswith(".") and len(case.rule) > 20 for case in CASES)
    assert not [name for name, number in Counter(case.name for case in CASES).items() if number > 1]
    assert {case.level for case in CASES} == {CORE, *ABILITIES}


def test_the_pytest_class_has_every_case_with_its_rule() -> None:
    tests = {name: test for name, test in vars(SagaStoreConformance).items() if name.startswith("test_")}
    assert list(tests) == [f"test_{case.name}" for case in CASES]
    assert [test.__doc__ for test in tests.values()] == [case.rule for case in CASES]


def test_five_methods_reach_the_core_level(folder: Path) -> None:
    done = run(folder, "saga_bus.store.conformance", "stores:open_store", "--json", "report.json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "level: core\n" in done.stdout
    report = json.loads((folder / "report.json").read_text())
    assert (report["ok"], report["complete"], report["levels"]) == (True, True, ["core"])
    assert report["suite_version"] == SUITE_VERSION
    assert report["undeclared"] == list(ABILITIES)
    outcomes = Counter(case["outcome"] for case in report["cases"])
    assert outcomes["failed"] == 0
    assert outcomes["passed"] > 60
    assert {case["level"] for case in report["cases"] if case["outcome"] == "passed"} == {"core"}


def test_the_command_exits_1_and_names_the_case_and_its_rule(folder: Path) -> None:
    done = run(folder, "saga_bus.store.conformance", "careless:open_store", "--only", "update")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAILED update_refuses_a_stale_version" in done.stdout
    assert "rule: An update made from an older version is a ConcurrencyError" in done.stdout
    assert "expected ConcurrencyError, but nothing was raised" in done.stdout
    assert "level: not judged" in done.stdout


def test_fail_fast_stops_at_the_first_failure(folder: Path) -> None:
    done = run(folder, "saga_bus.store.conformance", "careless:open_store", "--fail-fast")
    assert done.returncode == 1
    assert done.stdout.count("FAILED") == 1
    assert "not run" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["stores"],
        ["nothing_there:open_store"],
        ["stores:nothing_there"],
        ["stores:PLACES"],
        ["stores:FiveMethods"],
        ["stores:open_store", "--only", "nothing"],
        ["stores:open_store", "--no-such-option"],
        ["broken:open_store"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_2(folder: Path, arguments: list[str]) -> None:
    (folder / "broken.py").write_text("def open_store(namespace): raise OSError('no such server')")
    done = run(folder, "saga_bus.store.conformance", *arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr
    assert "Traceback" not in done.stderr


def test_the_command_lists_the_cases(folder: Path) -> None:
    done = run(folder, "saga_bus.store.conformance", "--list")
    assert done.returncode == 0
    assert done.stdout.splitlines() == [f"{case.name} [{case.level}]: {case.rule}" for case in CASES]


def test_pytest_needs_no_plugin_and_shows_whole_messages(folder: Path) -> None:
    (folder / "test_five.py").write_text(PYTEST_FILE)
    (folder / "test_careless.py").write_text(PYTEST_FILE.replace("from stores", "from careless"))
    switches = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-rs",
            "-p",
            "no:cacheprovider",
            "-W",
            "error",
            "test_five.py",
            "test_careless.py",
        ],
        cwd=folder,
        env=os.environ | switches,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1, done.stdout
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert failed == []  # -rs shows the skipped ones alone
    assert "the store does not declare query" in done.stdout
    assert "an update from version 0 of 1: expected ConcurrencyError, but nothing was raised" in done.stdout
    assert "TestFiveMethods.test_update_refuses_a_stale_version" in done.stdout


def test_from_code(folder: Path) -> None:
    namespace: dict[str, object] = {}
    exec(FIVE_METHODS, namespace)
    seen: list[str] = []
    report = asyncio.run(
        run_conformance(
            namespace["open_store"],  # type: ignore[arg-type]
            only=["insert", "read"],
            on_result=lambda _, result: seen.append(result.name),
        )
    )
    assert report.ok
    assert not report.complete
    assert report.levels == ()
    assert seen == [case.name for case in CASES if case.group in ("insert", "read")]
    with pytest.raises(ValueError, match="no such group: nothing"):
        asyncio.run(run_conformance(namespace["open_store"], only=["nothing"]))  # type: ignore[arg-type]


def test_a_store_that_cannot_be_opened() -> None:
    async def open_store(namespace: str) -> None:
        raise OSError("no such server")

    with pytest.raises(CannotOpenError, match="OSError: no such server"):
        asyncio.run(run_conformance(open_store))


def test_a_subclass_without_open_store_says_so() -> None:
    with pytest.raises(NotImplementedError, match="must define open_store"):
        SagaStoreConformance().test_insert_is_found_by_both_keys()  # type: ignore[attr-defined]


def test_the_groups_are_in_the_order_of_the_cases() -> None:
    assert tuple(dict.fromkeys(case.group for case in CASES)) == GROUPS
    assert all(len(name) <= 128 for name in STATE_TYPES)


def test_messages_name_the_fields_that_differ() -> None:
    state = new_state("old")
    with pytest.raises(
        AssertionError,
        match=r"after it: the state differs; metadata\.version: expected 0, got 1; .*note: expected 'old', got 'new'",
    ):
        expect.same_state(follow(state, "new"), state, "after it")
    with pytest.raises(AssertionError, match=r"the answer: expected 1, got True"):
        expect.equal(True, 1, "the answer")
