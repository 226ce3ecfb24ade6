"""README, changelog, Makefile and licence say what is so."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys

import pytest
import typer

from pipelines.cli import app
from tests.house.tree import ROOT, code_blocks, project, read

COMMANDS = typer.main.get_command(app).commands


def shell_lines() -> list[str]:
    """Lines of README's shell blocks, continued lines joined."""
    text = "\n".join(code_blocks("README.md", "sh")).replace("\\\n", " ")
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def test_the_python_of_the_readme_runs(tmp_path):
    """Block after block, in one program and an empty folder, with warnings as errors."""
    program = "\n".join(code_blocks("README.md", "python"))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert program
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("line", [line for line in shell_lines() if line.startswith("forecaster ")])
def test_the_readmes_commands_exist_with_their_options(line):
    name, *arguments = shlex.split(line, comments=True)[1:]
    known = {option for parameter in COMMANDS[name].params for option in parameter.opts}

    assert {argument.partition("=")[0] for argument in arguments if argument.startswith("--")} <= known


def test_the_readmes_requests_exist():
    """Every address that the README asks with curl is a route of the service."""
    from service.app import create_app
    from service.settings import Settings

    routes = [re.sub(r"\{[^}]*\}", "[^/]+", path) for path in create_app(Settings()).openapi()["paths"]]
    asked = re.findall(r"http://(?:localhost|127\.0\.0\.1):8000(/v1[^\s'\"?]*)", read("README.md"))

    assert asked
    assert [path for path in asked if not any(re.fullmatch(route, path) for route in routes)] == []


def test_the_makes_of_the_readme_are_targets():
    named = set(re.findall(r"\bmake ([a-z-]+)", "\n".join(code_blocks("README.md", "sh"))))

    assert {"demo", "test"} <= named <= makefile_targets()


def test_the_makefile_has_the_houses_targets_and_short_recipes():
    recipes = re.split(r"^\S.*:.*$", read("Makefile"), flags=re.MULTILINE)

    assert makefile_targets() >= {"demo", "test", "check", "bench", "stack-test", "clean"}
    assert max(recipe.count("\n\t") for recipe in recipes) <= 5


def test_continuous_integration_runs_make_test():
    script = ROOT / ".ci" / "run"

    assert os.access(script, os.X_OK)
    assert script.read_text(encoding="utf-8").rstrip().endswith("make test")


def test_the_changelog_knows_this_version():
    """Each release has its heading; what is not released yet has one too."""
    headings = re.findall(r"^## \[([^\]]+)\]", read("CHANGELOG.md"), flags=re.MULTILINE)

    assert headings[0] == "Unreleased" or headings[0] == project()["version"]


def test_links_between_the_documents_lead_somewhere():
    for name in ("README.md", "ARCHITECTURE.md", "CHANGELOG.md"):
        links = re.findall(r"\]\((?!https?://|#)([^)#]+)", read(name))

        assert [link for link in links if not (ROOT / link).exists()] == [], name


def makefile_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):.*##", read("Makefile"), flags=re.MULTILINE))
