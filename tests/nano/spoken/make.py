"""How the recordings here were made: voices of espeak-ng that nano never heard. python tests/nano/spoken/make.py"""

import csv
from pathlib import Path

import soundfile

from whispertag.audio import SAMPLE_RATE
from whispertag.data.espeak import espeak_utterances

HERE = Path(__file__).parent


def main() -> None:
    with open(HERE / "spoken.csv", "w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("filename", "text", "speaker"))
        for i, u in enumerate(espeak_utterances("/tmp", 12, seed=7, held_out_voices=True)):
            soundfile.write(HERE / f"{i}.flac", u.wave_S, SAMPLE_RATE)
            table.writerow((f"{i}.flac", " ".join(u.words), u.speaker))


if __name__ == "__main__":
    main()
