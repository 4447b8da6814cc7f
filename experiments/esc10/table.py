"""The runs of this study → results.csv, and each head's mean over folds with its interval over seeds."""

from collections import defaultdict
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table as Shown

from whispertag.runs.result import Result
from whispertag.studies.intervals import student
from whispertag.studies.tables import Table

HERE = Path(__file__).parent
FOLDS = 5


def main() -> None:
    results = [r for path in sorted((HERE / "runs").glob("*/result.json")) if (r := Result.read(path.parent))]
    rows = []
    for result in results:
        asked = dict(override.split("=", 1) for override in result.overrides)
        row = {k: asked.get(k, default) for k, default in (("head", "tl_tr"), ("weights", "pretrained"), ("seed", "0"))}
        row |= {"fold": asked["data.fold"], "accuracy": result.metrics["accuracy"], "status": result.status}
        rows.append(row | {"logmel_probe_accuracy": result.baseline.get("accuracy"), "seconds": result.seconds})
    if unfinished := [row for row in rows if row.pop("status") != "done"]:
        raise SystemExit(f"error: {len(unfinished)} runs are not done: {unfinished[0]}")
    (HERE / "results.csv").unlink(missing_ok=True)
    Table(HERE / "results.csv", list(rows[0])).extend(rows)

    groups: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        groups[row["head"], row["weights"]][row["seed"]].append(row["accuracy"])
    shown = Shown("head", "weights", "accuracy %", "95 % interval over seeds", "seeds")
    for (head, weights), seeds in sorted(groups.items(), key=lambda item: -np.mean(list(item[1].values()))):
        if any(len(folds) != FOLDS for folds in seeds.values()):
            raise SystemExit(f"error: {head}, {weights}: not {FOLDS} folds for every seed")
        means = 100 * np.array([np.mean(folds) for folds in seeds.values()])
        interval = "{:.1f} … {:.1f}".format(*student(means)) if len(means) > 1 else ""
        shown.add_row(head, weights, f"{means.mean():.1f}", interval, str(len(means)))
    Console().print(shown)


if __name__ == "__main__":
    main()
