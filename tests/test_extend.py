"""docs/extend.md shows diffs: they are those under docs/diffs/, they apply to this tree, and what they add works.

After a diff was changed, `python tests/test_extend.py` writes it into the page.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "extend.md"
DIFFS = sorted((ROOT / "docs" / "diffs").glob("*.diff"))
SHOWN = re.compile(r"(`git apply docs/diffs/(\w+\.diff)`.*?\n```diff\n)(.*?)(?=^```\n)", re.S | re.M)
PARTS = ("src", "conf", "tests", "experiments", "pyproject.toml", "train.py", "extract.py")


def apply(diff: Path, folder: Path) -> None:
    """As the page says, or without git by patch; no repository around the folder is asked."""
    command = ["git", "apply"] if shutil.which("git") else ["patch", "-p1", "-F0", "-i"]
    env = os.environ | {"GIT_CEILING_DIRECTORIES": str(folder.parent)}
    done = subprocess.run([*command, str(diff)], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{diff.name} is in the tree, or fits it no more (docs/extend.md, at its end): {done}"


def added(diff: Path) -> list[str]:
    """The files that are new with it."""
    return re.findall(r"^--- /dev/null\n\+\+\+ b/(\S+)", diff.read_text(), re.M)


def rules_of(new: str) -> list[str]:
    """The tests a new file must pass: itself, or those of tests/runs/test_conf.py that hold for a file of its group."""
    *folders, name = Path(new).parts
    if folders[0] == "tests":
        return [new]
    if folders[0] != "conf":
        return []
    name, group = name.removesuffix(".yaml"), "/".join(folders[1:])
    rules = [f"every_file_composes_and_binds[{group}-{name}]" if group else f"every_study_composes_and_binds[{name}]"]
    rules += [f"every_head_builds_and_tags[{name}]"] if group == "head" else []
    return [f"tests/runs/test_conf.py::test_{rule}" for rule in rules]


def extended(folder: Path) -> Path:
    """The tree with all diffs applied, one on the other, without its history."""
    for part in PARTS:
        if (ROOT / part).is_file():
            shutil.copy(ROOT / part, folder / part)
        else:
            shutil.copytree(ROOT / part, folder / part, ignore=results if part == "experiments" else None)
    for diff in DIFFS:
        apply(diff, folder)
    return folder


def results(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if name == "runs"]  # they may be gigabytes


def run(folder: Path, *command: str) -> None:
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")} | {"PYTHONPATH": str(folder / "src")}
    done = subprocess.run([sys.executable, *command], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("diff", DIFFS, ids=lambda diff: diff.stem)
def test_each_diff_applies_alone(diff, tmp_path):
    touched = re.findall(r"^--- a/(\S+)", diff.read_text(), re.M)
    for name in touched:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    apply(diff, tmp_path)
    assert all((tmp_path / name).is_file() for name in added(diff)), "an applied diff leaves its files"
    assert not any((ROOT / name).exists() for name in added(diff)), "what is in the tree needs no diff"


def test_the_page_shows_every_diff_as_it_is():
    shown = {name: text for _, name, text in SHOWN.findall(PAGE.read_text())}
    assert shown == {diff.name: diff.read_text() for diff in DIFFS}, "python tests/test_extend.py writes them into it"


def test_what_the_diffs_add_works(tmp_path):
    """In one process, since importing PyTorch takes longer than all of it."""
    folder = extended(tmp_path)
    tests = [test for diff in DIFFS for new in added(diff) for test in rules_of(new)]
    general = ("there_is_no_group_without_a_file_and_no_file_outside_a_group", "sizes_are_never_typed_into_yaml")
    tests += [f"tests/runs/test_conf.py::test_{rule}" for rule in (*general, "every_study_composes_and_binds[cost]")]
    tests += ["tests/model/test_heads.py::test_wrong_arguments_are_named"]
    assert len(tests) > 10
    run(folder, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'made'}", *tests)
    run(folder, "-m", "ruff", "check", "--no-cache", ".")
    run(folder, "-m", "ruff", "format", "--no-cache", "--check", ".")


@pytest.mark.slow
def test_the_diffs_keep_types_and_the_order_of_folders(tmp_path):
    folder = extended(tmp_path)
    run(folder, "-m", "mypy", "--cache-dir", str(tmp_path / "types"))
    run(folder, str(Path(sys.executable).with_name("lint-imports")), "--no-cache")


if __name__ == "__main__":
    PAGE.write_text(SHOWN.sub(lambda m: m[1] + (PAGE.parent / "diffs" / m[2]).read_text(), PAGE.read_text()))
