"""A csv that grows row by row, so that a study that is stopped loses nothing and goes on where it was."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from whispertag.data.shards import write_atomically


class Table:
    """Rows of `columns` in a csv file, read if it is there; values come back as strings."""

    def __init__(self, path: Path, columns: Sequence[str]):
        self.path, self.columns = path, tuple(columns)
        self.rows: list[dict[str, Any]] = []
        if path.exists():
            with open(path, newline="") as file:
                reader = csv.DictReader(file)
                self.rows = list(reader)
            if tuple(reader.fieldnames or ()) != self.columns:
                raise ValueError(f"{path}: its columns are not those of this study; move it away")

    def has(self, **values: Any) -> bool:
        """Whether a row with these values is there."""
        return any(all(row[k] == str(v) for k, v in values.items()) for row in self.rows)

    def extend(self, rows: Iterable[dict[str, Any]]) -> None:
        """Add rows; the file is replaced as a whole, so a stop leaves all of them or none."""
        self.rows += [{k: str(row[k]) for k in self.columns} for row in rows]
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, text.getvalue().encode())

    def show(self, title: str) -> None:
        from rich.console import Console
        from rich.table import Table as Shown

        shown = Shown(*self.columns, title=title, title_justify="left")
        for row in self.rows:
            shown.add_row(*row.values())
        Console().print(shown)
        print(self.path)
