"""Means over seeds or folds, with their intervals: runs that are alike but for a few settings, as one row."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from whispertag.runs.rows import COSTS, Run, Study, canonical, or_least


@dataclass(frozen=True)
class Group:
    """Runs alike but for what they are grouped by. metrics: name → mean, and its interval if there are two or more
    units: values of the first key grouped by, each averaged over the other keys."""

    settings: dict[str, Any]
    runs: list[Run]
    n_done: int
    n_units: int
    metrics: dict[str, tuple[float, float | None, float | None]]
    costs: dict[str, float | None]


def group(study: Study, keys: Sequence[str]) -> list[Group]:
    """Best first. Raises ValueError if no run has such a key."""
    from whispertag.studies.intervals import student

    if unknown := [key for key in keys if not any(key in run.settings for run in study.runs)]:
        raise ValueError(f"--group {unknown[0]}: no setting of these runs; they differ in {', '.join(study.differs)}")
    kept = [key for key in study.differs if key not in keys]
    alike: dict[str, list[Run]] = defaultdict(list)
    for run in study.runs:
        alike[canonical([run.settings.get(key) for key in kept])].append(run)
    groups = []
    for runs in alike.values():
        done = [run for run in runs if run.status == "done"]
        units: dict[str, list[Run]] = defaultdict(list)
        for run in done:
            units[canonical(run.settings.get(keys[0]))].append(run)
        metrics: dict[str, tuple[float, float | None, float | None]] = {}
        for name in study.metrics:
            means = [m for unit in units.values() if (m := _mean([run.metrics.get(name) for run in unit])) is not None]
            if means:
                low, high = student(means) if len(means) > 1 else (None, None)  # type: ignore[arg-type]
                metrics[name] = (sum(means) / len(means), low, high)
        costs = {name: _mean([run.costs[name] for run in done]) for name in COSTS}
        settings = {key: runs[0].settings[key] for key in kept if key in runs[0].settings}
        groups.append(Group(settings, runs, len(done), len(units), metrics, costs))
    return sorted(groups, key=lambda g: -or_least(g.metrics.get(study.metric, (None,))[0]))


def _mean(values: Sequence[float | None]) -> float | None:
    """Of those that are defined."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
