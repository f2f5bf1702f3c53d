"""What the package says about itself outside the code."""

import tomllib
from pathlib import Path

import yaml
from setuptools.config.pyprojecttoml import read_configuration

import reverse

ROOT = Path(__file__).resolve().parents[2]


def test_the_version_is_written_once():
    """A release would say one version to pip and another to `reverse --version`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert "version" not in project and project["dynamic"] == ["version"]
    assert read_configuration(ROOT / "pyproject.toml")["project"]["version"] == reverse.__version__


def test_commit_hooks_download_nothing():
    """A commit without a network would fail, or run other releases than `make lint`."""
    (source,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert source["repo"] == "local"
    entries = {hook["id"]: (hook["language"], hook["entry"].split()) for hook in source["hooks"]}
    assert set(entries) == {"ruff-check", "ruff-format", "lint"}
    assert all(language == "system" for language, _ in entries.values())
    assert entries["lint"][1] == ["make", "lint"]
