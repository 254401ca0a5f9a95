"""The conformance kit fails every broken store, for its fault, and no sound one."""

from __future__ import annotations

import asyncio
import dataclasses
from datetime import timedelta

import pytest

from controls import CONTROLS, Control, report
from controls.control import hooks_of
from controls.report import findings, judge, print_controls
from controls.sound import SOUND, LaggingStore
from saga_bus.store.conformance import run_conformance
from saga_bus.store.conformance.cases import CASES

# Cases that no broken store is known to fail; each needs a reason, and there is none at present.
NEVER_FAILED: dict[str, str] = {}


def test_there_are_many_controls_with_distinct_faults():
    assert len(CONTROLS) >= 45
    assert len({control.fault for control in CONTROLS}) == len(CONTROLS)
    assert all(control.fault and control.says and control.cases for control in CONTROLS)


def test_every_named_case_exists():
    assert {case for control in CONTROLS for case in control.cases} <= {found.name for found in CASES}


def test_every_case_fails_some_control():
    named = {case for control in CONTROLS for case in control.cases}
    assert {found.name for found in CASES} - named == set(NEVER_FAILED)


def name_of(control):
    return f"{control.store.__module__.removeprefix('controls.')}.{control.store.__qualname__}"


@pytest.mark.parametrize("control", CONTROLS, ids=name_of)
def test_is_failed_for_its_fault(control: Control, tmp_path):
    for finding in findings(control, tmp_path):
        assert finding.failed, f"{finding.case} does not find: {control.fault}; it said {finding.message!r}"


INDEXED = [control for control in CONTROLS if control.cases[0].startswith(("query_", "retention_", "insert_"))]


@pytest.mark.parametrize("control", INDEXED, ids=name_of)
def test_a_declared_lag_hides_no_fault_that_stays(control: Control, tmp_path):
    lag = max(control.store.capabilities.index_lag, timedelta(seconds=0.05))
    declared = dataclasses.replace(control.store.capabilities, index_lag=lag)
    store = type(control.store.__name__, (control.store,), {"capabilities": declared})
    assert judge(store, control.cases[0], tmp_path), control.fault


@pytest.mark.parametrize("base", SOUND, ids=lambda base: base.__qualname__)
def test_the_sound_base_passes(base, tmp_path):
    cases = dict.fromkeys(case for control in CONTROLS if control.base is base for case in control.cases)
    assert cases, "a base of no control is of no use"
    verdicts = {case: judge(base, case, tmp_path) for case in cases}
    assert {case: message for case, message in verdicts.items() if message} == {}


def test_a_store_that_lags_no_longer_than_it_declares_passes_the_whole_kit(tmp_path):
    report = asyncio.run(run_conformance(hooks_of(LaggingStore, tmp_path).open_store))
    assert report.ok, report.verdict()
    assert {"core", "query", "retention"} <= set(report.levels)
    assert "\nindex lag: 0:00:00.050000, as declared" in report.verdict()
    assert report.as_dict()["index_lag"] == "0:00:00.050000"


def test_the_table_names_faults_and_cases_and_tells_a_control_that_passes(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    good = next(control for control in CONTROLS if control.cases == ("lifecycle_closes_twice",))
    monkeypatch.setattr(report, "CONTROLS", (good,))
    assert print_controls() == 0
    printed = capsys.readouterr().out
    assert good.fault in printed
    assert "lifecycle_closes_twice" in printed
    assert "1 broken stores, 1 of 1 verdicts as promised" in printed
    sound = dataclasses.replace(good, store=good.base, fault="nothing is wrong")
    for_another_reason = dataclasses.replace(good, says="another reason", fault="failed by chance")
    monkeypatch.setattr(report, "CONTROLS", (good, sound, for_another_reason))
    assert print_controls() == 1
    printed = capsys.readouterr().out
    assert "not failed as promised: nothing is wrong / lifecycle_closes_twice: it passed" in printed
    assert "not failed as promised: failed by chance / lifecycle_closes_twice: StoreClosedError" in printed
