"""An extension of Griffe: docstrings as they are written here → Markdown.

In src/ what a signature cannot say stands in two columns, which a terminal shows as they are:

    name      what it is, and perhaps
              more of it
    n_layers, width  the same of two

They become definition lists. Doctests become blocks of code, and < and * that are no Markdown stay what they are.
"""

import re
from collections.abc import Iterator
from typing import Any

import griffe

ENTRY = re.compile(r"( *)(\S(?:(?!  ).){0,40}?)  +(\S.*)")
BOTH = re.compile(r"\w+(?:, \w+)+")  # names as long as their column, so that one space has to do
CODE = re.compile(r"(`[^`]*`)")
LONE = re.compile(r'(?<!\w)\*(?!\w)|(?<=")\*|\*(?=")')


class TwoColumns(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = "\n".join(markdown(obj.docstring.value.splitlines()))


def markdown(lines: list[str]) -> Iterator[str]:
    """Lines of a docstring, its indentation taken off → lines of Markdown."""
    inside = indent = column = 0  # inside: the line before was 0 text, 1 of an entry, 2 of a doctest
    for line in lines:
        depth = len(line) - len(line.lstrip())
        if line.startswith(">>>") or (inside == 2 and line.strip()):
            if inside != 2:
                yield "\n```pycon"
            inside = 2
            yield line
            continue
        if inside == 2:
            yield "```\n"
            inside = 0
        if inside == 1 and depth > indent and line.strip():
            yield f"    {plain(line.strip())}"
        elif inside == 1 and BOTH.fullmatch(line[:column].strip()) and line[column - 1 : column] == " ":
            yield f"\n`{line[:column].strip()}`\n:   {plain(line[column:])}"
        elif entry := ENTRY.fullmatch(line):
            indent, column, inside = depth, entry.start(3), 1
            yield f"\n`{entry[2].strip('`')}`\n:   {plain(entry[3])}"
        else:
            if inside == 1 and line.strip():
                yield ""
            inside = 1 if inside == 1 and not line.strip() else 0
            yield plain(line)
    if inside == 2:
        yield "```"


def plain(text: str) -> str:
    """The text with < and asterisks that emphasise nothing escaped, but for what stands in backticks."""
    parts = CODE.split(text)
    return "".join(part if i % 2 else LONE.sub(r"\\*", part).replace("<", "&lt;") for i, part in enumerate(parts))
