"""The commands `compare`, `wandb-sync` and `wandb-report`: the runs of a study beside each other."""

import argparse
import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from whispertag.runs.means import Group
    from whispertag.runs.rows import Study

TITLES = {"head_gmacs": "GMACs head", "gmacs": "GMACs all", "clips_per_second": "clips/s", "skipped_clips": "skipped"}


def add_commands(commands: Any) -> None:
    compare = commands.add_parser("compare", help="the runs of a study: a table here, and an HTML page")
    _study(compare)
    compare.add_argument("--group", type=_keys, default=[], metavar="KEYS", help="mean over these: seed,data.fold")
    compare.add_argument("--metric", help="what decides (mAP, or accuracy)")
    compare.add_argument("--csv", type=Path, metavar="FILE", help="write the rows of the table")
    compare.add_argument("--html", type=Path, metavar="FILE", help="where the page goes (<study>/dashboard.html)")
    compare.set_defaults(run=_compare)
    sync = commands.add_parser("wandb-sync", help="send the offline W&B runs of a study")
    sync.add_argument("--dry-run", action="store_true", help="only list what would be sent")
    sync.set_defaults(run=_sync)
    report = commands.add_parser("wandb-report", help="a W&B report of a study whose runs are there")
    report.add_argument("--metric", help="what decides (mAP, or accuracy)")
    report.add_argument("--entity", help="user or team (the one that is logged in)")
    report.set_defaults(run=_report)
    for made in (sync, report):
        _study(made)


def _compare(options: argparse.Namespace) -> None:
    from whispertag.data.shards import write_atomically
    from whispertag.runs.dashboard import write_page
    from whispertag.runs.means import group
    from whispertag.runs.rows import read_study

    study = read_study(options.study, options.metric)
    groups = group(study, options.group) if options.group else []
    page = options.html or _home(study) / "dashboard.html"
    unreadable = write_page(study, page, groups, options.group)
    if options.csv:
        rows = _group_rows(study, groups) if groups else _run_rows(study)
        text = io.StringIO()
        writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(options.csv, text.getvalue().encode("utf-8", errors="replace"))
    _show(study, groups, options.group)
    for path, why in unreadable.items():
        print(f"cannot be read: {path}: {why}", file=sys.stderr)
    print(page)


def _sync(options: argparse.Namespace) -> None:
    from whispertag.runs.cloud import send, unsent
    from whispertag.runs.rows import read_study

    study = read_study(options.study)
    for path, why in study.unreadable.items():
        print(f"cannot be read: {path}: {why}", file=sys.stderr)
    found = unsent(study.runs)
    for run, file in found if options.dry_run else []:
        print(f"{run.status}  {run.name}  {file.stat().st_size / 1e3:,.0f} kB")
    going = sum(run.status == "running" for run in study.runs)
    print(f"{len(found)} offline runs to send" + (f"; {going} are still going on" if going else ""))
    if found and not options.dry_run:
        send([file for _, file in found])


def _report(options: argparse.Namespace) -> None:
    from whispertag.runs.cloud import save_report
    from whispertag.runs.rows import read_study

    print(save_report(read_study(options.study, options.metric), options.entity))


def _show(study: "Study", groups: "Sequence[Group]", by: Sequence[str]) -> None:
    """Rows, then each run that is not done with what ended it; as wide as it must be where nobody's screen sets it."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from whispertag.runs.rows import COSTS, shown

    console = Console(width=None if sys.stdout.isatty() else 10_000)
    keys = [key for key in study.differs if key not in by] if groups else study.differs
    costs = [name for name in COSTS if any(run.costs[name] is not None for run in study.runs)]
    table = Table(title=f"{study.name}: {_count(study)}", title_justify="left")
    table.add_column("done" if groups else "status")
    for key in keys:
        table.add_column(Text(key), overflow="fold")
    for name in [*study.metrics, *(TITLES.get(c, c) for c in costs)]:
        table.add_column(Text(name), justify="right")
    for g in groups:
        cells = [f"{g.n_done} of {len(g.runs)}", *(shown(g.settings.get(key, "–")) for key in keys)]
        cells += [_interval(g.metrics.get(name)) for name in study.metrics] + [_figure(g.costs[c]) for c in costs]
        table.add_row(*map(Text, cells))
    for run in [] if groups else study.runs:
        cells = [run.status, *(shown(run.settings.get(key, "–")) for key in keys)]
        cells += [_score(run.metrics.get(name)) for name in study.metrics] + [_figure(run.costs[c]) for c in costs]
        table.add_row(*map(Text, cells), style=None if run.status == "done" else "dim")
    console.print(table)
    if groups:
        over = f", each averaged over {', '.join(by[1:])} first" if by[1:] else ""
        print(f"mean and 95 % interval (Student) over {by[0]}{over}; the best first")
    if study.implied:
        print(f"these differ too, as the columns do: {', '.join(study.implied)}")
    for run in study.runs:
        if run.status != "done":
            console.print(Text(f"{run.status}: {run.name}\n    {run.last_line or 'still going on'}"), soft_wrap=True)


def _run_rows(study: "Study") -> list[dict[str, Any]]:
    from whispertag.runs.rows import shown

    keys = [*study.differs, *study.implied]
    return [
        {"run": run.name, "status": run.status}
        | {key: shown(run.settings[key]) if key in run.settings else "" for key in keys}
        | {name: run.metrics.get(name) for name in study.metrics}
        | run.costs
        | {"error": run.last_line}
        for run in study.runs
    ]


def _group_rows(study: "Study", groups: "Sequence[Group]") -> list[dict[str, Any]]:
    from whispertag.runs.rows import shown

    rows = []
    for g in groups:
        row: dict[str, Any] = {key: shown(value) for key, value in g.settings.items()}
        row |= {"runs": len(g.runs), "done": g.n_done, "units": g.n_units}
        for name in study.metrics:
            mean, low, high = g.metrics.get(name, (None, None, None))
            row |= {name: mean, f"{name}_low": low, f"{name}_high": high}
        rows.append(row | g.costs)
    return rows


def _count(study: "Study") -> str:
    from collections import Counter

    return ", ".join(f"{n} {status}" for status, n in Counter(run.status for run in study.runs).items())


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _interval(metric: tuple[float, float | None, float | None] | None) -> str:
    if metric is None:
        return ""
    mean, low, high = metric
    return _score(mean) if low is None else f"{_score(mean)} ({_score(low)} – {_score(high)})"


def _home(study: "Study") -> Path:
    """Beside runs/, where README.md and results.csv are."""
    return study.folder.parent if study.folder.name == "runs" else study.folder


def _keys(text: str) -> list[str]:
    return [key for key in text.split(",") if key]


def _study(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", type=Path, metavar="STUDY", help="experiments/<study>")
