"""Without the ODBC drivers tests are skipped, and fail where SAGA_TEST_REQUIRE names what they need."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
REQUIRING = ["odbc", "sqlserver", "sqlite,odbc", "all"]


@pytest.fixture
def nothing_registered(pyodbc, monkeypatch):
    monkeypatch.setattr(pyodbc, "drivers", list)
    # Of the module that pytest has made of the file, whatever its name.
    for module in list(sys.modules.values()):
        if getattr(module, "__file__", None) == str(HERE / "conftest.py"):
            monkeypatch.setattr(module, "microsofts_driver", lambda: None)


@pytest.mark.parametrize(
    ("kind", "package"), [("freetds", "tdsodbc"), ("sqlite", "libsqliteodbc"), ("microsoft", "mssql-python-odbc")]
)
def test_a_missing_driver(nothing_registered, find_driver, monkeypatch, kind, package):
    monkeypatch.setenv("SAGA_TEST_REQUIRE", "inmemory")
    with pytest.raises(pytest.skip.Exception, match=package):
        find_driver(kind)
    can_fail = kind != "microsoft" or (sys.platform, platform.machine()) == ("linux", "x86_64")
    for required in REQUIRING:
        monkeypatch.setenv("SAGA_TEST_REQUIRE", required)
        with pytest.raises(pytest.fail.Exception if can_fail else pytest.skip.Exception, match=package):
            find_driver(kind)


def test_no_module_of_tests_is_skipped_where_pyodbc_is_missing_and_required(tmp_path):
    """Whether its tests ask for a driver, or only want pyodbc."""
    (tmp_path / "no_pyodbc.py").write_text("import sys; sys.modules['pyodbc'] = None")
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SAGA_TEST_")}

    def run(required):
        wanted = "few_cursors or bind_wants or inserts_writes_what_single_ones or deadlock_is_known"
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-p", "no_pyodbc", "-p", "no:cacheprovider", "-q", "--tb=line"),
                *("-k", wanted, *map(str, sorted(HERE.glob("test_*.py")))),
            ],
            env={**environment, "PYTHONPATH": path, "SAGA_TEST_REQUIRE": required},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout.splitlines()[-1], done.stdout

    code, last_line, said = run("odbc")
    assert code == pytest.ExitCode.TESTS_FAILED, said
    assert "SAGA_TEST_REQUIRE names odbc: pyodbc cannot be loaded" in said
    assert "skipped" not in last_line
    assert "passed" not in last_line
    code, last_line, said = run("inmemory")
    assert code == pytest.ExitCode.OK, said
    assert "odbc: pyodbc cannot be loaded" in said
    assert "passed" not in last_line
