"""One rule for names, and every package complete, typed, licensed and independent of the other backends."""

import importlib
import re
import tomllib
from importlib.metadata import entry_points

import pytest

from tools.check_types import targets
from tools.workspace import ROOT, packages

PACKAGES = packages()
every_package = pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.distribution)


def settings(name):
    return tomllib.loads((ROOT / name).read_text(encoding="utf-8"))


def test_every_folder_below_packages_is_a_package():
    folders = {path for path in (ROOT / "packages").iterdir() if any(inner.is_file() for inner in path.rglob("*"))}
    assert {package.folder for package in PACKAGES} == folders


def test_the_root_is_no_project():
    assert "project" not in settings("pyproject.toml")


@every_package
def test_distribution_folder_and_import_have_one_name(package):
    assert package.project()["name"] == package.distribution
    assert [path.name for path in (package.source / "saga_bus").iterdir()] == [package.directory]
    assert [path.name for path in package.source.iterdir()] == ["saga_bus"]
    module = importlib.import_module(f"saga_bus.{package.directory}")
    assert module.__file__ == str(package.source / "saga_bus" / package.directory / "__init__.py")


@every_package
def test_a_package_is_complete(package):
    for name in ("README.md", "CHANGELOG.md"):
        text = (package.folder / name).read_text(encoding="utf-8")
        assert len(text.splitlines()) > 5, name
    assert f"## {package.project()['version']}" in (package.folder / "CHANGELOG.md").read_text(encoding="utf-8")
    assert (package.folder / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert (package.source / "saga_bus" / package.directory / "py.typed").is_file()
    assert list((package.folder / "tests").glob("test_*.py"))


@every_package
def test_a_package_says_the_same_as_the_others(package):
    project = package.project()
    assert project["requires-python"] == ">=3.11"
    assert project["license"] == "MIT"
    assert project["license-files"] == ["LICENSE"]
    supported = {name.rsplit(" ", 1)[1] for name in project["classifiers"] if "Python :: 3." in name}
    assert supported == {"3.11", "3.12", "3.13", "3.14"}
    assert settings(package.folder / "pyproject.toml")["build-system"]["build-backend"] == "hatchling.build"


@every_package
def test_a_package_depends_on_what_it_extends_in_a_range_and_on_no_other_one(package):
    needs = [need for need in package.project().get("dependencies", []) if need.startswith("saga-bus-")]
    kind = package.directory.partition("_")[0] + ("_" if "_" in package.directory else "")
    extends = {"store": [], "store_": ["store"], "core": ["store"], "transport_": ["core"]}[kind]
    assert needs == [f"saga-bus-{name}>=0.1,<0.2" for name in extends]


@every_package
def test_sources_import_no_other_backend(package):
    if not package.directory.startswith("store"):
        return
    allowed = {package.directory, "store"}
    for path in package.source.rglob("*.py"):
        for name in re.findall(r"^\s*(?:from|import) saga_bus\.(\w+)", path.read_text(encoding="utf-8"), re.MULTILINE):
            assert name in allowed, f"{path} imports saga_bus.{name}"


@every_package
def test_entry_points_resolve(package):
    declared = package.project().get("entry-points", {}).get("saga_bus.stores", {})
    assert bool(declared) == package.directory.startswith("store_")
    installed = {entry.name: entry for entry in entry_points(group="saga_bus.stores")}
    for scheme, value in declared.items():
        assert installed[scheme].value == value
        assert installed[scheme].load().__module__.startswith(f"saga_bus.{package.directory}")


def test_the_namespace_belongs_to_nobody():
    assert not list((ROOT / "packages").glob("*/src/saga_bus/__init__.py"))
    assert importlib.import_module("saga_bus").__file__ is None


def test_type_checkers_read_every_package():
    sources = {str(package.source.relative_to(ROOT)) for package in PACKAGES}
    assert sources <= set(targets())
    assert sources <= set(settings("pyproject.toml")["tool"]["mypy"]["mypy_path"])
