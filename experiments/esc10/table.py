"""The runs of this study → results.csv, and each head's mean over folds with its interval over seeds."""

import csv
import io
from collections import defaultdict
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from whispertag.data.shards import write_atomically
from whispertag.runs.result import Result
from whispertag.studies.intervals import student

HERE = Path(__file__).parent
FOLDS = {"1", "2", "3", "4", "5"}
ASKED = {"head": "tl_tr", "weights": "pretrained", "seed": "0", "data.fold": ""}  # and what they are if not named


def main() -> None:
    results = [r for path in sorted((HERE / "runs").glob("*/result.json")) if (r := Result.read(path.parent))]
    if not results:
        raise SystemExit(f"error: no runs in {HERE / 'runs'}; README.md beside it has the command")
    if unfinished := [r for r in results if r.status != "done"]:
        raise SystemExit(
            f"error: {len(unfinished)} runs are not done, as {unfinished[0].folder}: {unfinished[0].status}"
        )
    rows = []
    for result in results:
        asked = ASKED | dict(override.split("=", 1) for override in result.overrides)
        row = {key: asked[key] for key in ASKED} | {"accuracy": result.metrics["accuracy"]}
        rows.append(row | {"logmel_probe_accuracy": result.baseline.get("accuracy"), "seconds": result.seconds})

    groups: dict[tuple[str, str], dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        groups[row["head"], row["weights"]][row["seed"]][row["data.fold"]] = row["accuracy"]
    for (head, weights), seeds in groups.items():
        for seed, folds in seeds.items():
            if folds.keys() != FOLDS:
                raise SystemExit(f"error: {head}, {weights}, seed {seed}: folds {sorted(folds)}, not all five")

    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(HERE / "results.csv", text.getvalue().encode())

    shown = Table("head", "weights", "accuracy %", "95 % interval over seeds", "seeds")
    means = {
        name: 100 * np.array([np.mean(list(folds.values())) for folds in seeds.values()])
        for name, seeds in groups.items()
    }
    for (head, weights), mean_S in sorted(means.items(), key=lambda item: -item[1].mean()):
        interval = "{:.1f} … {:.1f}".format(*student(mean_S)) if len(mean_S) > 1 else ""
        shown.add_row(head, weights, f"{mean_S.mean():.1f}", interval, str(len(mean_S)))
    Console().print(shown)


if __name__ == "__main__":
    main()
