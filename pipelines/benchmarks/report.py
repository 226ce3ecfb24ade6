"""Tables of measured rows: for a terminal, as Markdown for the documents, as JSON for programs.

Several seeds of one thing become one line, with the mean and the range. Pure functions, but for `write`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from forecaster import InputError
from pipelines.benchmarks.protocols import PROTOCOLS
from pipelines.console import plain_json
from pipelines.data import check_folder

__all__ = [
    "ablation_table",
    "accuracy_table",
    "append_line",
    "check_report",
    "group",
    "markdown",
    "milestones_table",
    "number",
    "read_rows",
    "spread",
    "write",
]

Row = Mapping[str, Any]
Table = tuple[list[str], list[list[str]]]

WORDS = {"owa": "OWA", "mase": "MASE", "mape": "MAPE %", "mse": "MSE", "mse_mean": "MSE of the mean", "wql": "WQL"}
WORDS |= {"smape": "sMAPE", "mae": "MAE"}


def group(rows: Iterable[Row], *keys: str) -> dict[tuple[Any, ...], list[Row]]:
    """Rows by the values of some columns, in order of first appearance."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(key) for key in keys), []).append(row)
    return groups


def spread(rows: Sequence[Row], key: str, digits: int = 3) -> str:
    """Mean of a column to significant digits, with its range if there are several rows; a dash if it is unknown.

    Examples
    --------
    >>> spread([{"owa": 0.4}, {"owa": 0.42}], "owa")
    '0.41 (0.4 to 0.42)'
    >>> spread([{"owa": 12345.6}], "owa"), spread([{}], "owa")
    ('12,346', '-')
    """
    values = [float(row[key]) for row in rows if row.get(key) is not None and math.isfinite(row[key])]
    if not values:
        return "-"
    mean = number(sum(values) / len(values), digits)
    return mean if len(values) == 1 else f"{mean} ({number(min(values), digits)} to {number(max(values), digits)})"


def number(value: float, digits: int) -> str:
    """A number as people write it."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}"


def verdict(name: str, rows: Sequence[Row], beside: Sequence[Row] = ()) -> str:
    """What of a protocol's targets the mean over the rows meets: ``goal``, ``must``, or ``no``; a dash if unknown.

    Parameters
    ----------
    name
        Of the protocol.
    rows
        Its results.
    beside
        Results of the protocol that its targets are shares of, if they are.
    """
    protocol, met = PROTOCOLS[name], []
    if protocol.beside and not beside:
        return "-"
    for target in protocol.targets:
        mean = sum(row[target.metric] for row in rows) / len(rows)
        unit = sum(row[target.metric] for row in beside) / len(beside) if protocol.beside else 1.0
        met.append(2 if mean <= target.goal * unit else int(mean <= target.must * unit))
    return ("no", "must", "goal")[min(met)] if met else "-"


def bound(name: str, value: float) -> str:
    """A target as people write it.

    Examples
    --------
    >>> bound("europe-load", 3.0), bound("bike-sharing-known", 0.85)
    ('3', '0.85 × bike-sharing')
    """
    return f"{value:g}" + (f" × {PROTOCOLS[name].beside}" if PROTOCOLS[name].beside else "")


def accuracy_table(rows: Iterable[Row]) -> Table:
    """One line per set (and variant): its own metrics against what is asked, calibration, and what it takes."""
    rows = list(rows)
    columns = ["set", "seeds", "metric", "result", "must", "goal", "met", "seasonal naive", "WQL", "naive WQL"]
    columns += ["80 % coverage", "seconds", "epochs", "parameters", "bytes per series", "µs per update"]
    lines = []
    for (name, label), found in group(rows, "set", "label").items():
        targets = PROTOCOLS[name].targets
        metrics = [target.metric for target in targets] or ["mase"]
        if "mse" in metrics:
            metrics += ["mse_mean", "mae"]
        lines.append(
            [
                name if label == "default" else f"{name}, {label}",
                ", ".join(str(row["seed"]) for row in found),
                ", ".join(WORDS[metric] for metric in metrics),
                ", ".join(spread(found, metric) for metric in metrics),
                ", ".join(bound(name, target.must) for target in targets) or "-",
                ", ".join(bound(name, target.goal) for target in targets) or "-",
                verdict(
                    name, found, [row for row in rows if (row["set"], row["label"]) == (PROTOCOLS[name].beside, label)]
                ),
                ", ".join(spread(found[:1], f"seasonal_naive_{metric}") for metric in metrics),
                spread(found, "wql"),
                spread(found[:1], "seasonal_naive_wql"),
                spread(found, "coverage_80"),
                spread(found, "seconds"),
                spread(found, "epochs"),
                spread(found[:1], "parameters"),
                spread(found[:1], "state_bytes"),
                spread(found, "update_us", 2),
            ]
        )
    return columns, lines


def ablation_table(rows: Iterable[Row]) -> Table:
    """One line per set and variant, with the change of WQL against the default on the same seeds."""
    rows = list(rows)
    columns = ["set", "variant", "seeds", "metric", "result", "WQL", "change of WQL", "80 % coverage", "seconds"]
    columns += ["epochs", "parameters", "bytes per series", "µs per update"]
    lines = []
    for name, found in group(sorted_by_set(rows), "set", "label").items():
        targets = PROTOCOLS[name[0]].targets
        metrics = [target.metric for target in targets] or ["mase"]
        lines.append(
            [
                str(name[0]),
                str(name[1]),
                ", ".join(str(row["seed"]) for row in found),
                ", ".join(WORDS[metric] for metric in metrics),
                ", ".join(spread(found, metric) for metric in metrics),
                spread(found, "wql"),
                change(found, [row for row in rows if row["set"] == name[0] and row["label"] == "default"]),
                spread(found, "coverage_80"),
                spread(found, "seconds"),
                spread(found, "epochs"),
                spread(found[:1], "parameters"),
                spread(found[:1], "state_bytes"),
                spread(found, "update_us", 2),
            ]
        )
    return columns, lines


def sorted_by_set(rows: Sequence[Row]) -> list[Row]:
    """Rows of one set together, sets in order of first appearance."""
    order = list(dict.fromkeys(row["set"] for row in rows))
    return sorted(rows, key=lambda row: order.index(row["set"]))


def change(found: Sequence[Row], default: Sequence[Row]) -> str:
    """Change of the mean WQL over the seeds that both have, in percent; a dash if there are none.

    Examples
    --------
    >>> change([{"seed": 0, "wql": 0.11}], [{"seed": 0, "wql": 0.1}, {"seed": 1, "wql": 0.2}])
    '+10.0 %'
    """
    before = {row["seed"]: row["wql"] for row in default}
    pairs = [(row["wql"], before[row["seed"]]) for row in found if row["seed"] in before]
    if not pairs:
        return "-"
    mine, theirs = (sum(column) for column in zip(*pairs, strict=True))
    return f"{100 * (mine / theirs - 1):+.1f} %"


def milestones_table(rows: Iterable[Row], peers: Iterable[Row] = ()) -> Table:
    """One line per set: seconds of training to the WQL of the seasonal naive and of the best other library."""
    fits = {(row["set"], row["peer"]): row.get("fit_seconds") for row in peers}
    columns = ["set", "seasonal naive's WQL", "reached after", "best other library", "its WQL", "its fit"]
    columns += ["reached after", "its fit / ours"]
    lines = []
    for (name,), found in group(rows, "set").items():
        fit, ours = fits.get((name, found[0].get("rival"))), found[0].get("seconds_to_rival_wql")
        lines.append(
            [
                str(name),
                spread(found[:1], "seasonal_naive_wql"),
                seconds(found, "seconds_to_naive_wql"),
                str(found[0].get("rival", "-")),
                spread(found[:1], "rival_wql"),
                "-" if fit is None else f"{number(fit, 3)} s",
                seconds(found, "seconds_to_rival_wql"),
                "-" if fit is None or not ours else number(fit / ours, 3),
            ]
        )
    return columns, lines


def seconds(rows: Sequence[Row], key: str) -> str:
    """Seconds by seed, or that it never happened."""
    if all(key not in row for row in rows):
        return "-"
    return ", ".join("never" if row.get(key) is None else f"{number(row[key], 3)} s" for row in rows)


def markdown(table: Table, notes: Sequence[str] = ()) -> str:
    """A table in Markdown, with notes below.

    Examples
    --------
    >>> print(markdown((["a", "b"], [["1", "2"]])))
    | a | b |
    |---|---|
    | 1 | 2 |
    """
    columns, lines = table
    text = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    text += ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([*text, *(["", *notes] if notes else [])])


def check_report(path: str | None) -> None:
    """Refuse a report file that cannot be written, before the work starts.

    Raises
    ------
    InputError
        The name ends in neither ``.md`` nor ``.json``, or nothing can be written there.
    """
    if path is None:
        return
    if Path(path).suffix not in (".md", ".json"):
        raise InputError(f"cannot write {path}: the name must end in .md or .json")
    if Path(path).is_dir():
        raise InputError(f"cannot write {path}: it is a folder")
    check_folder(Path(path).parent, f"cannot write {path}")


def read_rows(path: str) -> list[dict[str, Any]]:
    """Rows of a JSON report that `write` wrote.

    Raises
    ------
    InputError
        It is none.
    """
    try:
        return list(json.loads(Path(path).read_text(encoding="utf-8"))["rows"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(f"{path} is no JSON report of rows: {error}") from error


def append_line(path: str | None, row: Row) -> None:
    """Add one row to a file of JSON lines, if there is one."""
    if path is not None:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(plain_json(row) + "\n")


def write(path: str, title: str, table: Table, rows: Sequence[Row], notes: Sequence[str]) -> None:
    """Write a report, Markdown or JSON by its suffix; JSON holds every row, Markdown the table."""
    if Path(path).suffix == ".json":
        values = json.loads(plain_json({"title": title, "notes": list(notes), "rows": [dict(row) for row in rows]}))
        text = json.dumps(values, indent=1)
    else:
        text = f"## {title}\n\n{markdown(table, notes)}"
    Path(path).write_text(text + "\n", encoding="utf-8")
