"""The repository as these tests see it: its root, its tracked files, its modules, the code blocks of its documents."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("forecaster", "service", "pipelines")


def source_files() -> list[Path]:
    """Python files of the three packages."""
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def modules() -> list[str]:
    """Names that can be imported; `__main__` modules are for running."""
    names = []
    for path in source_files():
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[-1] != "__main__":
            names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


def tracked_files() -> list[Path]:
    """Files that git knows or would take up; everything in the folder where there is no git."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listing.returncode:
        skipped = {".git", ".venv"}
        paths = (path for path in ROOT.rglob("*") if not skipped & set(path.relative_to(ROOT).parts))
    else:
        paths = (ROOT / name for name in listing.stdout.decode().split("\0") if name)
    return sorted(path for path in paths if path.is_file())


def read(name: str) -> str:
    """Text of a file at the root."""
    return (ROOT / name).read_text(encoding="utf-8")


def code_blocks(name: str, language: str) -> list[str]:
    """Fenced blocks of a Markdown document in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", read(name), flags=re.MULTILINE | re.DOTALL)


def project() -> dict[str, Any]:
    """The `project` table of pyproject.toml."""
    return tomllib.loads(read("pyproject.toml"))["project"]


def requirements() -> dict[str, str]:
    """Every package that the project asks for, extras included, with its version bounds."""
    lines = [
        *project()["dependencies"],
        *(line for extra in project()["optional-dependencies"].values() for line in extra),
    ]
    parts = (re.fullmatch(r"([\w.-]+)(?:\[[\w,]+\])?(.*)", line) for line in lines)
    return {part[1]: part[2] for part in parts if part and part[1] != project()["name"]}
