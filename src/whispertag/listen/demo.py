"""Words and sounds of one recording: python -m whispertag.listen.demo <head.safetensors> [recording]

Without a recording, the clip in the box: a voice asks for help while something rings.
"""

import argparse
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from whispertag.audio import SAMPLE_RATE, AudioError, fit_length, read_wave
from whispertag.model.checkpoint import load
from whispertag.model.weights import ASSETS, find_checkpoint

CLIP = Path(str(ASSETS / "demo.flac"))


def main() -> None:
    parser = argparse.ArgumentParser(description="What is said in a recording, and which sounds are in it.")
    parser.add_argument("head", help="head.safetensors of a run")
    parser.add_argument("recording", nargs="?", default=CLIP, help="any audio file; its first seconds are tagged")
    parser.add_argument("--top", type=int, default=5, help="how many sounds to show")
    asked = parser.parse_args()
    try:
        show(asked.head, asked.recording, asked.top)
    except (AudioError, OSError, RuntimeError, ValueError) as error:
        sys.exit(f"error: {error}")


def show(head: str, recording: str | Path, top: int = 5) -> None:
    import whisper

    tagger = load(head)
    backbone = tagger.description.backbone
    wave_S = read_wave(recording)
    table = Table(title=str(recording), title_justify="left", show_header=False)
    if backbone["weights"] == "pretrained":
        model = whisper.load_model(str(find_checkpoint(backbone["name"])), device="cpu")
        table.add_row("speech", model.transcribe(wave_S, fp16=False)["text"].strip() or "(none)")
    else:
        table.add_row("speech", "(a backbone with random weights cannot transcribe)")
    clip_S = fit_length(wave_S, round(tagger.description.clip_seconds * SAMPLE_RATE))
    chances_C = tagger.tag(torch.from_numpy(clip_S)[None])[0]
    for i in chances_C.topk(min(top, len(chances_C))).indices:
        table.add_row("sounds" if len(table.rows) == 1 else "", f"{chances_C[i]:.2f}  {tagger.classes.names[i]}")
    Console().print(table)


if __name__ == "__main__":
    main()
