"""README, changelog, Makefile and licence say what is so."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys

import httpx
import pytest
import typer

from forecaster import Config, Forecaster, NetworkConfig
from pipelines.cli import app
from pipelines.demo.processes import ServerProcess, free_port
from tests.house.tree import ROOT, code_blocks, project, read, tracked_files

COMMANDS = typer.main.get_command(app).commands


def shell_lines() -> list[str]:
    """Lines of README's shell blocks, continued lines joined."""
    text = "\n".join(code_blocks("README.md", "sh")).replace("\\\n", " ")
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def test_the_python_of_the_readme_runs(tmp_path):
    """Block after block, in one program and an empty folder, with warnings as errors; trained more briefly."""
    written = "\n".join(code_blocks("README.md", "python"))
    program = written.replace('"updates": 50', '"updates": 5')
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert program != written
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("line", [line for line in shell_lines() if line.startswith("forecaster ")])
def test_the_readmes_commands_exist_with_their_options(line):
    name, *arguments = shlex.split(line, comments=True)[1:]
    command = COMMANDS[name]
    while within := getattr(command, "commands", None):
        command, *arguments = within[arguments[0]], *arguments[1:]
    known = {option for parameter in command.params for option in parameter.opts}

    assert {argument.partition("=")[0] for argument in arguments if argument.startswith("--")} <= known


def test_the_readmes_requests_are_answered(tmp_path, monkeypatch):
    """Every curl, in order, against a real server with fresh weights; the answer has the fields it promises."""
    Forecaster.create(Config(freq="h", horizon=48, network=NetworkConfig(hidden_size=8))).save(tmp_path / "model")
    port = free_port()
    settings = {"FORECASTER_MODEL": "model", "FORECASTER_STORE": "sqlite:///log.db", "FORECASTER_PORT": str(port)}
    settings["FORECASTER_MODELS"] = '{"bikes": "model"}'
    requests = [request_of(line) for line in shell_lines() if line.startswith("curl ")]
    monkeypatch.chdir(tmp_path)
    server = ServerProcess(
        ["-m", "service"], {"PYTHONPATH": str(ROOT), **settings}, f"http://127.0.0.1:{port}/readyz", tmp_path / "log"
    )
    server.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30) as client:
            answers = [
                client.request(method, path, content=body, headers=headers) for method, path, headers, body in requests
            ]
    finally:
        server.stop()

    assert len(answers) >= 3
    assert [answer.text for answer in answers if not answer.is_success] == []
    promised = json.loads(code_blocks("README.md", "json")[0])
    assert set(promised) <= set(answers[1].json())
    assert set(promised["quantiles"]) == set(answers[1].json()["quantiles"])
    assert promised["ds"][0] == answers[1].json()["ds"][0]


def request_of(line: str) -> tuple[str, str, dict[str, str], str | None]:
    """Method, path, headers and body of a curl command."""
    options = argparse.ArgumentParser()
    options.add_argument("-X", default="GET")
    options.add_argument("-H", action="append", default=[])
    options.add_argument("-d")
    options.add_argument("address")
    found = options.parse_args(shlex.split(line)[1:])
    headers = dict(header.split(": ", 1) for header in found.H)
    return found.X, found.address.removeprefix("http://localhost:8000"), headers, found.d


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
    documents = [path for path in tracked_files() if path.suffix == ".md"]
    assert len(documents) > 5
    for document in documents:
        links = re.findall(r"\]\((?!https?://|#)([^)#]+)", document.read_text(encoding="utf-8"))

        assert [link for link in links if not (document.parent / link).exists()] == [], document


def makefile_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):.*##", read("Makefile"), flags=re.MULTILINE))
