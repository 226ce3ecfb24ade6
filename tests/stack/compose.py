"""The container stack under a test: its own names, ports and secrets while it is up, and no trace of it afterwards."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from tests.house.tree import ROOT

PROJECT = "forecaster-stack-test"
FRONT_DOORS = ("FORECASTER_PORT", "DAGSTER_PORT", "MLFLOW_PORT")


class Stack:
    """A compose project of its own; a context that leaves neither containers nor volumes behind.

    Parameters
    ----------
    settings
        Variables of the compose file.
    folder
        Gets the file of API keys.
    """

    def __init__(self, settings: Mapping[str, str], folder: Path) -> None:
        made = [sys.executable, "-m", "service.keys", "new", "stack-test", "--json"]
        key = json.loads(subprocess.run(made, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
        self.headers = {"authorization": f"Bearer {key['key']}"}
        keys_file = folder / "api-keys"
        keys_file.write_text(key["line"] + "\n")
        self.ports = dict(zip(FRONT_DOORS, free_ports(len(FRONT_DOORS)), strict=True))
        self._compose = [*compose_command(), "--project-name", PROJECT, "--file", str(ROOT / "docker-compose.yml")]
        self._environment = {
            **os.environ,
            **settings,
            **{name: str(port) for name, port in self.ports.items()},
            "POSTGRES_PASSWORD": secrets.token_hex(16),
            "FORECASTER_API_KEYS_FILE": str(keys_file),
        }

    def __enter__(self) -> Stack:
        """Take what a killed test left behind away; then build and start."""
        self.run("down", "--volumes", "--remove-orphans")
        try:
            self.run("build", "--quiet")
            self.run("up", "--detach")
        except BaseException:
            self.run("down", "--volumes")
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take everything down; show what the containers said if the test failed."""
        if error is not None:
            self.run("ps", check=False)
            self.run("logs", "--no-color", "--tail=80", check=False)
        self.run("down", "--volumes")

    def url(self, front_door: str) -> str:
        """Address of a published port."""
        return f"http://127.0.0.1:{self.ports[front_door]}"

    def run(self, *arguments: str, check: bool = True) -> None:
        """Run a compose command; its output goes where ours goes."""
        subprocess.run([*self._compose, *arguments], env=self._environment, cwd=ROOT, check=check, timeout=3600)


def compose_command() -> list[str]:
    """Compose as a plugin of docker, or the program of old."""
    if shutil.which("docker"):
        plugin = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
        if plugin.returncode == 0:
            return ["docker", "compose"]
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    raise SystemExit("the stack test needs docker with compose")


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def readable_folder(folder: Path) -> Path:
    """Open a private folder to the containers' ordinary user."""
    folder.chmod(0o755)
    return folder
