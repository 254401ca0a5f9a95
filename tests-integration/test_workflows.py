"""The workflows ask for little, pin what they run and leave no package or backend out."""

import re

import pytest
import yaml

from providers import BROKER_NAMES, PROVIDERS
from tools.workspace import ROOT

FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PYTHONS = ["3.11", "3.12", "3.13", "3.14"]


def load(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def ci_jobs():
    return load(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_workflow_may_read_and_no_more(path):
    workflow = load(path)
    assert workflow["permissions"] == {"contents": "read"}
    assert "concurrency" in workflow
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 30
        assert "permissions" not in job


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_action_is_pinned_by_its_commit_and_says_its_version(path):
    uses = re.findall(r"uses: *(.*)", path.read_text(encoding="utf-8"))
    assert uses
    for use in uses:
        assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", use), use


def test_every_python_is_tested():
    assert ci_jobs()["test"]["strategy"]["matrix"]["python"] == PYTHONS


def test_every_backend_proves_itself():
    assert sorted(ci_jobs()["conformance"]["strategy"]["matrix"]["backend"]) == sorted(PROVIDERS)


def test_every_broker_is_tested():
    tested = {leg["broker"] for leg in ci_jobs()["transports"]["strategy"]["matrix"]["include"]}
    assert tested == BROKER_NAMES


def test_built_wheels_and_the_lowest_versions_are_tested():
    assert ci_jobs()["wheels"]["strategy"]["matrix"]["leg"] == ["wheels", "lowest"]


def test_dependabot_watches_actions_and_packages():
    updates = load(ROOT / ".github" / "dependabot.yml")["updates"]
    assert {update["package-ecosystem"] for update in updates} == {"github-actions", "pip"}
