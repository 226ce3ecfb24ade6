"""What must not be in the repository: pickles, machine paths, root folders beyond the house, unnoted dependencies."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.house.tree import ROOT, read, requirements, source_files, tracked_files

PICKLERS = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
ROOT_FOLDERS = {".ci", "forecaster", "pipelines", "service", "tests"}
LARGEST_KIB = 500


@pytest.mark.parametrize("path", source_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_pickles(path):
    """Artifacts and wire formats are data; reading them must not be able to run code."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = {
        alias.name.partition(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    imported |= {(node.module or "").partition(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    calls = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    loads = {call for call in calls if call.startswith("torch.load(") and "weights_only=True" not in call}

    assert imported & PICKLERS == set()
    assert loads == set()
    assert not any("allow_pickle=True" in call or "read_pickle(" in call for call in calls)


def test_no_file_names_a_path_of_this_machine():
    here = [f"{folder}/" for folder in (ROOT.parent, Path.home()) if len(folder.parts) > 1]
    found = [
        f"{path.relative_to(ROOT)}: {place}"
        for path in tracked_files()
        for place in here
        if re.search(rf"(?<![\w.]){re.escape(place)}", text_of(path))
    ]

    assert found == []


def test_the_root_has_only_the_houses_folders():
    folders = {path.relative_to(ROOT).parts[0] for path in tracked_files() if len(path.relative_to(ROOT).parts) > 1}

    assert folders <= ROOT_FOLDERS


def test_no_large_file_is_tracked():
    large = {str(path.relative_to(ROOT)) for path in tracked_files() if path.stat().st_size > LARGEST_KIB * 1024}

    assert large == set()


def test_every_dependency_is_bounded_and_pinned():
    """A floor and a ceiling in pyproject.toml, one exact version in constraints.txt."""
    pinned = {
        canonical(name): version
        for name, version in re.findall(r"^([\w.-]+)==(\S+)$", read("constraints.txt"), re.MULTILINE)
    }

    assert {name for name, bounds in requirements().items() if not re.match(r">=[\d.]+,<[\d.]+$", bounds)} == set()
    assert {name for name in requirements() if canonical(name) not in pinned} == set()
    assert {name for name, version in pinned.items() if "+" in version} == set(), (
        "a local build tag resolves on one index only"
    )


def test_the_compromised_versions_of_lightning_are_out_of_reach():
    assert requirements()["lightning"] == ">=2.6.4,<3"


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""
