"""The commands `transcribe` and `tag`: recordings in, words and sounds out."""

import argparse
import glob
import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from whispertag.listen.events import EventRules
    from whispertag.listen.hearing import Hearing
    from whispertag.listen.listener import Listener, Progress

STDIN = "-"
AGAIN = "--skip leaves out what is done"
# Options of openai-whisper's `transcribe`, by their names there.
SPEECH: dict[str, dict[str, Any]] = {
    "language": {"help": "code or name; default: as detected"},
    "task": {"choices": ("transcribe", "translate"), "help": "translate: into English"},
    "temperature": {"type": lambda text: [float(t) for t in text.split(",")], "help": "one, or several: 0,0.2,0.4"},
    "beam_size": {"type": int, "help": "beams at temperature 0"},
    "best_of": {"type": int, "help": "candidates at other temperatures"},
    "patience": {"type": float},
    "length_penalty": {"type": float},
    "suppress_tokens": {"metavar": "IDS"},
    "initial_prompt": {"metavar": "TEXT", "help": "names and words to expect"},
    "carry_initial_prompt": {"action": "store_true", "default": None},
    "condition_on_previous_text": {"action": argparse.BooleanOptionalAction, "default": None},
    "word_timestamps": {"action": "store_true", "default": None},
    "clip_timestamps": {"metavar": "SECONDS", "help": "hear only start,end,start,end …"},
    "compression_ratio_threshold": {"type": float},
    "logprob_threshold": {"type": float},
    "no_speech_threshold": {"type": float},
    "hallucination_silence_threshold": {"type": float, "metavar": "SECONDS"},
}


def add_commands(commands: Any) -> None:
    transcribe = commands.add_parser("transcribe", help="words and sounds of recordings, in one pass")
    _common(transcribe, "txt")
    speech = transcribe.add_argument_group("as openai-whisper has them")
    for name, how in SPEECH.items():
        speech.add_argument(f"--{name.replace('_', '-')}", **how)
    gate = transcribe.add_argument_group("where the head hears no voice, nobody spoke")
    gate.add_argument("--gate", choices=("drop", "mark"), help="what to do with text there")
    gate.add_argument("--gate-threshold", type=float, metavar="P", help="least probability of a voice (0.1)")
    gate.add_argument("--voices", type=_names, metavar="CLASSES", help="which classes are voices (speech and song)")
    transcribe.set_defaults(run=_transcribe, again=AGAIN)
    tag = commands.add_parser("tag", help="sounds of recordings, without their words")
    _common(tag, "csv")
    tag.set_defaults(run=_tag, again=AGAIN)


def _common(parser: argparse.ArgumentParser, format: str) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="recordings, folders, wild cards; - is standard input")
    parser.add_argument("--model", required=True, help="head.safetensors, a run's folder, or whisper-at:large-v2")
    parser.add_argument("--backbone", help="its Whisper, if it is not where it was: a checkpoint or a folder")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 … (a GPU if there is one)")
    parser.add_argument("--resolution", type=float, metavar="SECONDS", help="of sounds (what the head was trained on)")
    parser.add_argument("--together", type=int, default=16, metavar="N", help="recordings in one batch (16)")
    parser.add_argument(
        "--format",
        type=_names,
        default=[format],
        metavar="LIST",
        help=f"srt,vtt,txt,tsv,json,csv,rows.csv,html ({format})",
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where files go; without it, to standard output")
    parser.add_argument("--skip", action="store_true", help="leave out recordings whose files are there already")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    events = parser.add_argument_group("what makes a sound an event")
    events.add_argument("--on", type=float, metavar="P", help="probability at which it begins")
    events.add_argument("--off", type=float, metavar="P", help="probability below which it ends")
    events.add_argument("--thresholds", type=Path, metavar="CSV", help="of single classes: name,threshold,off")
    events.add_argument("--top", type=int, metavar="N", help="no more than so many at a time")
    events.add_argument("--only", type=_names, metavar="CLASSES", help="names, mids or patterns, joined by ;")
    events.add_argument("--without", type=_names, metavar="CLASSES")
    events.add_argument("--merge-gap", type=float, metavar="SECONDS", help="pauses no longer than this are none")
    events.add_argument("--min-seconds", type=float, metavar="SECONDS", help="what is shorter is no event")


def _names(text: str) -> list[str]:
    # Names of classes have commas in them.
    return [name.strip() for name in text.split(";" if ";" in text else ",") if name.strip()]


@dataclass(frozen=True)
class _Recording:
    """source  a path, or "-"; target: its files, without their endings"""

    source: str
    target: Path

    def opened(self) -> Any:
        return sys.stdin.buffer if self.source == STDIN else self.source


def _transcribe(options: argparse.Namespace) -> int:
    from whispertag.listen.gate import Gate

    speech = {name: value for name in SPEECH if (value := getattr(options, name)) is not None}
    gate: Gate | None = None
    if options.gate:
        given = {"threshold": options.gate_threshold, "voices": options.voices}
        gate = Gate(options.gate, **{k: v for k, v in given.items() if v is not None})
    elif options.gate_threshold is not None or options.voices:
        raise ValueError("--gate-threshold and --voices say how --gate is done: give that too")
    return _run(options, lambda listener, files, **how: listener.transcribe_each(files, gate=gate, **how, **speech))


def _tag(options: argparse.Namespace) -> int:
    return _run(options, lambda listener, files, **how: listener.tag_each(files, **how))


def _run(options: argparse.Namespace, hear: Callable[..., "Iterator[tuple[int, Hearing]]"]) -> int:
    from whispertag.listen.captions import FORMATS, captions, write_captions
    from whispertag.listen.listener import load

    if unknown := [format for format in options.format if format not in FORMATS]:
        raise ValueError(f"--format {unknown[0]}: known are {', '.join(FORMATS)}")
    if not options.out and len(options.format) > 1:
        raise ValueError("several formats are several files: say with --out into which folder")
    recordings = _recordings(options)
    listener = load(options.model, options.backbone, device_of(options.device))
    failures: list[str] = []
    begun = False
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # ♪ in a terminal that has none

    def bad(name: str, error: Exception) -> None:
        failures.append(name)
        print(f"whispertag: {' '.join(str(error).split())}", file=sys.stderr)

    with _progress(options.quiet, len(recordings)) as (progress, finished):
        how = {"resolution": options.resolution, "rules": _rules(options, listener), "together": options.together}
        files = [recording.opened() for recording in recordings]
        for i, hearing in hear(listener, files, **how, bad=bad, progress=progress):
            for format in options.format:
                if options.out:
                    target = recordings[i].target
                    target.parent.mkdir(parents=True, exist_ok=True)
                    write_captions(hearing, format, target.with_name(f"{target.name}.{format}"))
                else:
                    text = captions(hearing, format)
                    sys.stdout.write(text.partition("\n")[2] if begun and format.endswith("csv") else text)
                    begun = True  # of tables: one head for all
            finished(hearing.name)
    if failures:
        print(f"whispertag: {len(failures)} of {len(recordings)} recordings could not be heard", file=sys.stderr)
    return 1 if failures else 0


def _recordings(options: argparse.Namespace) -> list[_Recording]:
    """The recordings asked for, each once. Raises ValueError if the files of two would have the same name."""
    out = options.out or Path()
    found: dict[str, _Recording] = {}
    for given in options.files:
        for source, name in _expand(given):
            found.setdefault(source, _Recording(source, out / name))
    if not options.out:
        return list(found.values())
    targets: dict[Path, str] = {}
    for recording in found.values():
        if (other := targets.setdefault(recording.target, recording.source)) != recording.source:
            raise ValueError(f"{other} and {recording.source} would both be {recording.target}.*: hear them one by one")
    if not options.skip:
        return list(found.values())
    return [
        r
        for r in found.values()
        if not all(r.target.with_name(f"{r.target.name}.{format}").exists() for format in options.format)
    ]


def _expand(given: str) -> Iterator[tuple[str, Path]]:
    """One argument → recordings, with the names of their files."""
    from whispertag.audio import AUDIO_EXTENSIONS

    path = Path(given)
    if given == STDIN:
        yield given, Path("stdin")
    elif path.is_dir():
        inside = sorted(p for p in path.rglob("*") if p.suffix.lower().lstrip(".") in AUDIO_EXTENSIONS)
        if not inside:
            raise ValueError(f"{given}: no recordings in this folder ({', '.join(AUDIO_EXTENSIONS)})")
        yield from ((str(p), p.relative_to(path).with_suffix("")) for p in inside)
    elif not path.exists() and (matches := sorted(glob.glob(given, recursive=True))):
        yield from ((match, Path(Path(match).stem)) for match in matches if Path(match).is_file())
    else:
        yield given, Path(path.stem)  # what is not there is told when its turn comes


def _rules(options: argparse.Namespace, listener: "Listener") -> "EventRules":
    from whispertag.listen.events import EventRules, read_thresholds

    names = ("on", "off", "top", "only", "without", "merge_gap", "min_seconds")
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    if options.thresholds:
        given["thresholds"] = read_thresholds(options.thresholds, listener.classes)
    rules = EventRules.for_task(listener.tagger.description.task, **given)
    rules.columns(listener.classes)  # an unknown class is told before an hour of listening
    return rules


def device_of(name: str | None) -> str:
    """A device by name; None: a GPU if there is one. Raises ValueError for one that is not here."""
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(0, device=name)
    except (RuntimeError, AssertionError) as error:  # PyTorch without CUDA asserts
        raise ValueError(f"--device {name}: {str(error).splitlines()[0]}") from error
    return name


@contextmanager
def _progress(quiet: bool, n_files: int) -> "Iterator[tuple[Progress | None, Callable[[str], None]]]":
    """A bar a recording underway, and one for all."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield None, lambda name: None
        return
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as bars:
        whole = bars.add_task("recordings", total=n_files)
        tasks: dict[str, Any] = {}

        def progress(name: str, heard: float, there_are: float | None) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(Path(name).name, total=there_are and round(there_are))
            bars.update(tasks[name], completed=round(heard))

        def finished(name: str) -> None:
            bars.advance(whole)
            if name in tasks:
                bars.remove_task(tasks.pop(name))

        yield progress, finished
