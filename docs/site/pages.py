"""A hook of MkDocs: experiments/ and benchmarks/ are pages of the site too, and links from and to docs/ hold there.

In the repository links are relative to the file they stand in, so that they work where it is browsed. Here docs/ is
the root, with the other two folders beside its pages. A link to what is in the repository but not on the site stays as
its text.
"""

import re
from pathlib import Path
from posixpath import dirname, join, normpath, relpath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
BESIDE = ("experiments", "benchmarks")
SHOWN = (".md", ".csv", ".svg")
LINK = re.compile(r"(?<!!)\[([^\[\]]*)\]\(([^()#:\s]+)(#[^()\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    for folder in BESIDE:
        for path in sorted([*(ROOT / folder).glob("*.*"), *(ROOT / folder).glob("*/*.*")]):
            if path.suffix in SHOWN:
                uri = path.relative_to(ROOT).as_posix()
                files.append(File(uri, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
    here = page.file.src_uri
    in_repository = here if here.startswith(BESIDE) else f"docs/{here}"

    def to_site(link: re.Match[str]) -> str:
        text, target, anchor = link.groups("")
        path = normpath(join(dirname(in_repository), target))
        uri = path.removeprefix("docs/")
        if (path.startswith(("docs/", *BESIDE))) and files.get_file_from_path(uri):
            return f"[{text}]({relpath(uri, dirname(here) or '.')}{anchor})"
        # What is nowhere stays a link, which --strict then tells of.
        return text if (ROOT / path).exists() else link[0]

    if here.startswith(BESIDE) and "\n## " not in markdown:
        page.meta["hide"] = [*page.meta.get("hide", ()), "toc"]  # its place is the tables'
    return LINK.sub(to_site, markdown)
