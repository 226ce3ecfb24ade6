"""ARCHITECTURE.md's map is the tree."""

from __future__ import annotations

import re
from collections import Counter

from tests.house.tree import ROOT, read, requirements, source_files

ENTRY = re.compile(r"^- `([^`]+)`: \S", flags=re.MULTILINE)


def test_the_map_names_every_module_once():
    wanted = {str(path.relative_to(ROOT)) for path in source_files() if path.name != "__init__.py"}
    named = Counter(name for name in ENTRY.findall(the_map()) if name.endswith(".py"))

    assert {name for name, times in named.items() if times > 1} == set(), "named more than once"
    assert wanted - set(named) == set(), "missing from the map"
    assert set(named) - wanted == set(), "in the map, but not in the tree"


def test_the_map_names_every_package():
    packages = {f"{path.parent.relative_to(ROOT)}/" for path in source_files() if path.name == "__init__.py"}
    headings = set(re.findall(r"^#{3,4} `([^`]+/)`", the_map(), flags=re.MULTILINE))

    assert headings == packages


def test_all_nine_laws_are_written_down():
    laws = re.findall(r"^(\d)\. \*\*", read("ARCHITECTURE.md"), flags=re.MULTILINE)

    assert laws == [str(number) for number in range(1, 10)]


def test_every_dependency_has_its_line_of_why():
    """A name in pyproject.toml that the decisions do not give a reason for has no business there."""
    decisions = read("ARCHITECTURE.md").partition("\n## Decisions\n")[2].partition("\n## ")[0]

    assert set(requirements()) - set(re.findall(r"`([\w.-]+)`", decisions)) == set()


def the_map() -> str:
    """The section between the headings `Map` and the next of its level."""
    section = read("ARCHITECTURE.md").partition("\n## Map\n")[2]
    return section.partition("\n## ")[0]
