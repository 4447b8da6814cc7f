"""A run's folder: named by its request, resumed only by the same request, never overwritten."""

import hashlib
from pathlib import Path
from typing import Any

# What may differ between a run and its resumption: how it is run and shown, not what it computes.
_FREE = {"resume", "study", "baseline", "folder", "data.folder", "logger"}
_FREE |= {"trainer.enable_progress_bar", "trainer.log_every_n_steps"}


def run_name(overrides: str) -> str:
    """A folder's name for a run, from what it overrides: without slashes, short, never two alike."""
    name = overrides.replace("/", "_").strip(",") or "defaults"
    if len(name) <= 120 and "/" not in overrides:
        return name
    digest = hashlib.sha256(overrides.encode()).hexdigest()[:8]
    return f"{name[:110]}~{digest}"


def first_difference(old: dict[str, Any], new: dict[str, Any], at: str = "") -> str:
    """The first key whose value differs, or ''."""
    for key in sorted({*old, *new}):
        was, now = old.get(key), new.get(key)
        if f"{at}{key}" in _FREE:
            continue
        if isinstance(was, dict) and isinstance(now, dict):
            if found := first_difference(was, now, f"{at}{key}."):
                return found
        elif was != now:
            return f"{at}{key}"
    return ""


def set_aside(folder: Path, started: str) -> None:
    earlier = folder / "earlier" / started.replace(":", "")
    earlier.mkdir(parents=True)
    for path in folder.iterdir():
        if path.name not in (".hydra", "earlier") and path.suffix != ".log":
            path.rename(earlier / path.name)
