"""Thresholds of probability, class by class: from a file, or for classes named by a pattern."""

import csv
from collections.abc import Sequence
from fnmatch import fnmatchcase
from os import PathLike
from pathlib import Path

from whispertag.labels import ClassTable, UnknownLabel

Threshold = float | Sequence[float]  # on alone, or (on, off)


def read_thresholds(path: str | PathLike[str], classes: ClassTable) -> dict[str | int, Threshold]:
    """A CSV with the columns `name` or `mid`, `threshold` (on) and, if wanted, `off` → thresholds for EventRules.

    Raises ValueError that names file and line for an unknown class, a class that comes twice, or a bad number.
    """
    found: dict[str | int, Threshold] = {}
    with open(Path(path).expanduser(), newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        columns = set(reader.fieldnames or ())
        if "threshold" not in columns or not columns & {"name", "mid"}:
            raise ValueError(f"{path}: needs a column 'threshold' and one of 'name', 'mid'; optional is 'off'")
        try:
            for row in reader:
                label = row.get("name") or row.get("mid") or ""
                name = classes.names[classes.index(label)]
                if name in found:
                    raise ValueError(f"{label!r} comes a second time")
                on = _number(row["threshold"])
                off = _number(row["off"]) if row.get("off") else None
                check_threshold(f"threshold of {name!r}", on, on if off is None else off)
                found[name] = on if off is None else (on, off)
        except (ValueError, csv.Error) as error:
            raise ValueError(f"{path}, line {reader.line_num}: {error}") from error
    return found


def matching(patterns: Sequence[str], classes: ClassTable) -> set[int]:
    """Classes by name or mid, in any case of letters; shell wild cards allowed. Raises UnknownLabel, ValueError."""
    if isinstance(patterns, str):
        raise ValueError(f"{patterns!r}: a list of classes is wanted, even of one")
    chosen: set[int] = set()
    for pattern in patterns:
        asked = str(pattern).lower()
        match = {
            i
            for labels in (classes.names, classes.mids)
            for i, label in enumerate(labels)
            if asked == label.lower() or fnmatchcase(label.lower(), asked)
        }
        if not match and any(sign in asked for sign in "*?["):
            raise UnknownLabel(f"no class matches {pattern!r}")
        chosen |= match or {classes.index(pattern)}  # which says what may have been meant
    return chosen


def check_threshold(what: str, on: float, off: float) -> None:
    """Raises ValueError."""
    if not 0 <= off <= on <= 1:
        raise ValueError(f"{what}: {on}, {off}; probabilities are wanted, 0 ≤ off ≤ on ≤ 1")


def _number(text: str | None) -> float:
    try:
        return float(text or "")
    except ValueError:
        raise ValueError(f"{text or ''!r} is no number") from None
