"""Commands in docs/, experiments/ and benchmarks/ are understood: sweeps compose, arguments parse, targets exist.

They are not run (those of README.md are, in test_readme.py): most take hours, or what a user has.
"""

import re
from itertools import groupby
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.typed import blocks, composed, extras, make, parse, words

PAGES = sorted([*ROOT.glob("docs/*.md"), *ROOT.glob("experiments/**/README.md"), ROOT / "benchmarks" / "README.md"])
BEGINS = re.compile(r"(make|python3?|whispertag|pip|torchrun|srun)\b|[A-Z]+=")
BY_HAND = {"docs/kitchen.py", "experiments/context/run.py"}  # scripts, no entries of Hydra's
LATER = {"data=kitchen": "data=own"}  # what the tutorial has its reader write


def commands(page: Path) -> list[list[str]]:
    """Of a page's blocks, as words: variables put in, what stands for a reader's own things named."""
    found, variables = [], dict[str, str]()
    fenced = blocks(page.read_text(encoding="utf-8"))
    for block in [text for language, text in fenced if language in ("", "bash", "sh")]:
        for line in block.replace("\\\n", " ").splitlines():
            line = re.sub(r"<[^<>]+>|(?<==)…", "/own", line)
            line = re.sub(r"\s#.*|…$", "", line).strip()
            if not BEGINS.match(line) or "<<" in line:
                continue
            for name, value in variables.items():
                line = re.sub(rf"\${name}\b", value, line)
            if set_ := re.fullmatch(r"([A-Z]+)=\"?(.*?)\"?", line):
                variables[set_[1]] = set_[2]
                continue
            parts = [list(part) for end, part in groupby(words(line), lambda word: word in ("&", "&&")) if not end]
            found += parts
    return found


COMMANDS = [(page.relative_to(ROOT), command) for page in PAGES for command in commands(page)]


def understood(program: str, *arguments: str) -> None:
    if program == "make":
        make(*arguments)
    elif program == "pip":
        asked = re.fullmatch(r"install whispertag\[([\w,]+)\]", " ".join(arguments))
        assert asked, f"neither this package nor its extras: {arguments}"
        extras(asked[1])
    elif program in ("srun", "torchrun"):
        script = next(a for a in arguments if a.endswith(".py"))
        understood("python", *arguments[arguments.index(script) :])
    elif program == "python":
        script, *overrides = arguments
        if script in BY_HAND:
            assert (ROOT / script).is_file() and not overrides
        else:
            composed(script, *(LATER.get(o, o) for o in overrides))
    else:
        assert program == "whispertag", f"nobody has said what {program} is"
        parse(*arguments[: arguments.index(">")] if ">" in arguments else arguments)


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=[f"{p}: {' '.join(c)[:60]}" for p, c in COMMANDS])
def test_a_command_is_understood(page, command):
    understood(*command)


@pytest.mark.parametrize(
    ("command", "why"),
    {
        "make nonsense": "No rule to make target",
        "pip install whispertag[nonsense]": "nonsense",
        "python train.py head=nonsense": "Could not find 'head/nonsense'",
        "srun --nodes=2 python train.py nonsense=1": "Could not override 'nonsense'",
        "python experiments/noise/run.py backbone=[nano]": "backbone",
        "python experiments/nowhere.py": "nowhere.py",
        "python train.py -m head=tl_tr": "-m is for sweeps",
        "whispertag compare experiments/mine --nonsense": "2",
    }.items(),
)
def test_what_is_not_known_fails(command, why):
    with pytest.raises((Exception, SystemExit)) as error:
        understood(*words(command))
    assert why in str(error.value)


def test_there_is_something_to_test():
    assert len(COMMANDS) > 80 and {command[0] for _, command in COMMANDS} == {
        "make",
        "pip",
        "srun",
        "torchrun",
        "python",
        "whispertag",
    }
