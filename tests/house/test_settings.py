"""The page of the service's settings is what the service takes: every variable with its default and its meaning."""

from __future__ import annotations

from service.settings import Settings
from tests.house.tree import ROOT


def table() -> list[str]:
    """The rows that the page must have."""
    rows = []
    for name, field in Settings.model_fields.items():
        default = "" if field.default is None else str(field.get_default(call_default_factory=True)).lower()
        shown = f"`{default}`" if default not in ("", "{}") else ""
        rows.append(f"| `FORECASTER_{name.upper()}` | {shown} | {field.description} |")
    return rows


def test_the_page_of_settings_has_them_all_and_says_of_each_what_it_does():
    assert all(field.description for field in Settings.model_fields.values())
    text = (ROOT / "service" / "SETTINGS.md").read_text("utf-8")

    assert [line for line in text.splitlines() if line.startswith("| `FORECASTER_")] == table()
