"""What is said about metrics is what the service exports: the table, and every name in the dashboard."""

from __future__ import annotations

import json
import re

from service.metrics import Metrics
from tests.house.tree import ROOT

FOLDER = ROOT / "service" / "monitoring"
FAMILIES = list(Metrics().registry.collect())


def exported() -> set[str]:
    """Names as Prometheus stores them."""
    names = set()
    for family in FAMILIES:
        if family.type == "histogram":
            names |= {f"{family.name}{ending}" for ending in ("_bucket", "_count", "_sum")}
        else:
            names.add(f"{family.name}_total" if family.type == "counter" else family.name)
    return names


def test_the_table_names_every_metric_with_its_kind_and_words():
    table = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*) \|$", (FOLDER / "README.md").read_text("utf-8"), re.MULTILINE)

    assert sorted(table) == sorted(
        (f"{f.name}_total" if f.type == "counter" else f.name, f.type, f.documentation) for f in FAMILIES
    )


def test_the_dashboard_shows_what_there_is_and_leaves_nothing_out():
    panels = json.loads((FOLDER / "dashboard.json").read_text("utf-8"))["panels"]
    shown = {
        name
        for panel in panels
        for target in panel["targets"]
        for name in re.findall(r"\bforecaster_\w+", target["expr"])
    }
    families = {re.sub(r"_(bucket|count|sum|total)$", "", name) for name in shown}

    assert shown - exported() == set(), "in the dashboard, but not exported"
    assert {family.name for family in FAMILIES} - families == set(), "exported, but not shown"
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)


def test_the_labels_that_the_dashboard_asks_for_exist():
    labels = {name for family in (Metrics()._request_count, Metrics().observations) for name in family._labelnames}
    text = (FOLDER / "dashboard.json").read_text("utf-8")

    assert {"route", "status", "verdict"} <= labels
    assert set(re.findall(r'\bby \(([\w, ]+)\)', text)) <= {
        "le", "le, part", "name, version", "route", "status", "surprise", "verdict",
    }  # fmt: skip
