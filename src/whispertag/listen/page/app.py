"""A page to upload or record something, and to see and hear what is in it.

Nothing is asked of other machines: no analytics, no fonts or scripts from elsewhere, no share link.
"""

import html
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

if TYPE_CHECKING:
    from whispertag.listen.listener import Listener

RESOLUTIONS = (0.4, 0.8, 2.0, 4.0, 10.0)
DOWNLOADS = {"srt": "Captions, SRT", "vtt": "Captions, WebVTT", "json": "All, JSON", "html": "This, one page"}
KEPT_SECONDS = 24 * 3600  # what was uploaded or made is then deleted, at the latest when the server ends
STYLE = """
footer { display: none !important; } .heard .html-container { padding: 0 !important; }
.heard iframe { width: 100%; border: 0; display: block; min-height: 20rem; } .dark .heard iframe { color-scheme: dark; }
@media (max-width: 45rem) { .gradio-container .main { padding: 1rem .75rem !important; } }
.trouble { margin: 0; padding: .7rem 1rem; border-left: 3px solid #b3392f; overflow-wrap: anywhere; }
"""


def launch_settings(gradio: Any, folder: Path) -> dict[str, Any]:
    """What `launch` is told: nothing from or to the net, and only what is in `folder` may be fetched."""
    system = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    theme = gradio.themes.Default(primary_hue="blue", neutral_hue="slate", **system)
    silent = {"quiet": True, "share": False, "enable_monitoring": False, "ssr_mode": False, "mcp_server": False}
    return silent | {"theme": theme, "css": STYLE, "allowed_paths": [str(folder)], "footer_links": []}


def demo_app(listener: "Listener", folder: Path) -> Any:
    """→ gradio.Blocks, not yet launched. folder: where files may be made."""
    from whispertag.listen.events import EventRules
    from whispertag.listen.page.heard import Heard
    from whispertag.model.weights import ASSETS

    gradio = import_gradio()
    speaks = listener.tagger.backbone.weights != "random"
    resolutions = possible_resolutions(listener)

    # Gradio looks at the defaults for a Progress.
    def hear(path: str | None, words: bool, resolution: float, on: float, progress: Any = gradio.Progress()):  # noqa: B008
        def told(name: str, heard: float, there_are: float | None) -> None:
            progress((round(heard), round(there_are)) if there_are else None, desc="listening", unit="s")

        if not path:
            return None, trouble("Upload or record something first."), *_no_downloads(gradio)
        try:
            heard = Heard.of(listener, Path(path), folder, words and speaks, resolution, told)
        except (ValueError, OSError, RuntimeError) as error:
            return None, trouble(str(error).replace(path, Path(path).name)), *_no_downloads(gradio)
        return heard, *show(heard, on)

    def show(heard: Heard | None, on: float):
        if heard is None:
            return gradio.skip(), *(gradio.skip() for _ in DOWNLOADS)
        heard.find_again(on)
        page = heard.frame(f"/gradio_api/file={quote(str(heard.mp3))}")
        return page, *(gradio.update(value=str(file), interactive=True) for file in heard.write(DOWNLOADS))

    with gradio.Blocks(title="whispertag", analytics_enabled=False, delete_cache=(3600, KEPT_SECONDS)) as app:
        about = f"{html.escape(Path(listener.tagger.backbone.name).name)}, {len(listener.classes)} classes"
        gradio.Markdown(f"## What is said, and what else is heard\n{about}")
        with gradio.Row(equal_height=False):
            with gradio.Column(scale=3, min_width=300):
                audio = gradio.Audio(sources=["upload", "microphone"], type="filepath", label="Recording", buttons=[])
                gradio.Examples([[str(ASSETS / "demo.flac")]], [audio], label="or take this", cache_examples=False)
            with gradio.Column(scale=2, min_width=300):
                words = gradio.Checkbox(speaks, label="Words, not sounds alone", interactive=speaks)
                choices = [(f"{r:g} s", r) for r in resolutions]
                resolution = gradio.Dropdown(choices, value=_usual(resolutions), label="Resolution of sounds")
                on = EventRules.for_task(listener.tagger.description.task).on
                threshold = gradio.Slider(0.01, 0.99, on, step=0.01, label="Least probability of a sound")
                go = gradio.Button("Listen", variant="primary")
        state = gradio.State(None, time_to_live=KEPT_SECONDS)
        heard_html = gradio.HTML(elem_classes=["heard"], padding=False)
        with gradio.Row():
            look = {"size": "sm", "min_width": 120, "interactive": False}
            buttons = [gradio.DownloadButton(text, **look) for text in DOWNLOADS.values()]
        outputs = [heard_html, *buttons]
        go.click(hear, [audio, words, resolution, threshold], [state, *outputs], api_visibility="private")
        quietly = {"show_progress": "hidden", "trigger_mode": "always_last", "api_visibility": "private"}
        threshold.change(show, [state, threshold], outputs, **quietly)
    app.queue(default_concurrency_limit=1)  # one model
    return app


def trouble(message: str) -> str:
    return f'<p class="trouble" role="alert">{html.escape(" ".join(message.split()))}</p>'


def possible_resolutions(listener: "Listener") -> list[float]:
    """Those of RESOLUTIONS that the head can give, and that of its training."""
    from whispertag.listen.rows import Rows, clip_seconds

    def possible(resolution: float) -> bool:
        try:
            Rows(listener.tagger, resolution)
        except ValueError:
            return False
        return True

    return sorted(filter(possible, {*RESOLUTIONS, clip_seconds(listener.tagger)}))


def _usual(resolutions: Sequence[float]) -> float:
    """2 s, or what is nearest: fine enough to look at, long enough to be told."""
    return min(resolutions, key=lambda resolution: abs(resolution - 2))


def _no_downloads(gradio: Any) -> list[Any]:
    return [gradio.update(value=None, interactive=False) for _ in DOWNLOADS]


def import_gradio() -> Any:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # it is read when gradio is imported, too
    try:
        import gradio
    except ImportError as error:
        raise ValueError(f"{error}: pip install 'whispertag[demo]'") from error
    return gradio
