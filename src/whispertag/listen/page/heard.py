"""One recording that a visitor of the page gave: heard once, shown as often as another threshold is chosen."""

import html
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from whispertag.listen.hearing import Hearing
from whispertag.listen.page.html import EMBED_SECONDS, as_url, timeline_html, waveform

if TYPE_CHECKING:
    from whispertag.listen.listener import Listener, Progress


@dataclass
class Heard:
    """folder holds what was made of it, among that the MP3 which the page plays."""

    hearing: Hearing
    task: str
    peaks: list[int]
    folder: Path

    @classmethod
    def of(
        cls,
        listener: "Listener",
        path: Path,
        folder: Path,
        words: bool,
        resolution: float,
        progress: "Progress | None" = None,
    ) -> "Heard":
        """Hear a file; a new folder is made in `folder`. Raises ValueError or OSError for what cannot be heard."""
        hear = listener.transcribe if words else listener.tag
        hearing = hear(str(path), resolution=resolution, progress=progress)
        heard = cls(hearing, listener.tagger.description.task, [], Path(tempfile.mkdtemp(dir=folder)))
        with open(heard.mp3, "w+b") as mp3:
            heard.peaks = waveform(path, hearing.seconds, mp3)
        hearing.name = path.name  # the visitor's; where it lies here is nobody's concern
        return heard

    @property
    def mp3(self) -> Path:
        return self.folder / "heard.mp3"

    def find_again(self, on: float) -> None:
        """Events by another threshold, without listening anew."""
        from whispertag.listen.events import EventRules, sounds_of

        self.hearing.sounds = sounds_of(self.hearing, EventRules.for_task(self.task, on=on))

    def write(self, formats: Iterable[str]) -> list[Path]:
        """One file each, by its format's name."""
        from whispertag.listen.captions.formats import captions

        paths = []
        for format in formats:
            text = self._page() if format == "html" else captions(self.hearing, format)
            paths.append(self.folder / f"{Path(self.hearing.name).stem}.{format}")
            paths[-1].write_text(text, encoding="utf-8")
        return paths

    def frame(self, audio: str) -> str:
        """The page in a frame of its own: Gradio would run no script in it, and neither's style reaches the other."""
        page = html.escape(timeline_html(self.hearing, self.peaks, audio))
        return f'<iframe title="what was heard" srcdoc="{page}"></iframe>'

    def _page(self) -> str:
        audio = as_url(self.mp3.read_bytes()) if self.hearing.seconds <= EMBED_SECONDS else None
        return timeline_html(self.hearing, self.peaks, audio)
