"""`whispertag transcribe` and `tag`, as they are typed."""

import csv
import io
import json
import sys

import pytest
import soundfile

from tests.listening import tone
from whispertag.audio import SAMPLE_RATE
from whispertag.commands.main import main


@pytest.fixture
def recordings(tmp_path, speech):
    folder = tmp_path / "in"
    (folder / "deeper").mkdir(parents=True)
    soundfile.write(folder / "a.wav", speech[: 4 * SAMPLE_RATE], SAMPLE_RATE)
    soundfile.write(folder / "deeper" / "b.flac", tone(3), SAMPLE_RATE)
    (folder / "notes.txt").write_text("not to be heard")
    return folder


def run(command: str, head_file, *arguments) -> int:
    return main([command, "--model", str(head_file), "--device", "cpu", *map(str, arguments)])


def test_words_go_to_standard_output(recordings, head_file, capsys):
    assert run("transcribe", head_file, recordings / "a.wav", "--resolution", 0.4, "--only", "Tone") == 0
    said, errors = capsys.readouterr()
    assert len(said.split()) >= 3 and not errors


def test_every_format_of_a_folder_and_what_is_there_is_skipped(recordings, head_file, tmp_path, capsys):
    out = tmp_path / "out"
    asked = [recordings, "--resolution", 0.4, "--format", "srt,vtt,txt,tsv,json,csv,rows.csv", "--out", out]
    assert run("transcribe", head_file, *asked) == 0
    assert sorted(p.name for p in out.iterdir()) == [
        "a.csv",
        "a.json",
        "a.rows.csv",
        "a.srt",
        "a.tsv",
        "a.txt",
        "a.vtt",
        "deeper",
    ]
    heard = json.loads((out / "a.json").read_text())
    assert heard["text"].strip() and heard["segments"] and heard["seconds"] == 4
    tones = json.loads((out / "deeper" / "b.json").read_text())["sounds"]
    assert [sound["label"] for sound in tones if sound["end"] - sound["start"] > 2] == ["Tone"]
    assert "[tone]" in (out / "deeper" / "b.srt").read_text()
    times = {p: p.stat().st_mtime_ns for p in out.rglob("*.json")}
    (out / "a.vtt").unlink()
    assert run("transcribe", head_file, *asked, "--skip") == 0
    assert {p.parent.name for p, t in times.items() if p.stat().st_mtime_ns != t} == {"out"}


def test_tag_gives_one_table(recordings, head_file, monkeypatch, capsys):
    monkeypatch.chdir(recordings)
    assert run("tag", head_file, "deeper/*.flac", "a.wav", "--resolution", 0.4, "--on", 0.5) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert {"deeper/b.flac", "a.wav"} == {row["file"] for row in rows}
    assert {row["label"] for row in rows if row["file"].startswith("deeper")} >= {"Tone"}


def test_standard_input(recordings, head_file, monkeypatch, capsys):
    with open(recordings / "a.wav", "rb") as file:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(file))
        assert run("tag", head_file, "-", "--format", "json") == 0
    assert json.loads(capsys.readouterr().out)["seconds"] == 4


def test_what_cannot_be_heard_is_one_line_and_the_exit_code(recordings, head_file, tmp_path, capsys):
    for command in ("tag", "transcribe"):
        out = tmp_path / command
        files = recordings / "notes.txt", recordings / "nowhere.wav", recordings / "a.wav"
        assert run(command, head_file, *files, "--format", "json", "--out", out) == 1
        lines = capsys.readouterr().err.splitlines()
        assert [p.name for p in out.iterdir()] == ["a.json"]
        assert len(lines) == 3 and lines[2] == "whispertag: 2 of 3 recordings could not be heard"
        assert "notes.txt: cannot be decoded" in lines[0] and "nowhere.wav" in lines[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a.wav", "--format", "doc"], "--format doc: known are"),
        (["a.wav", "--format", "srt,vtt"], "say with --out"),
        (["a.wav", "deeper/../a.wav", "--out", "o"], "would both be o/a.*"),
        (["a.wav", "--only", "Cat"], "unknown class 'Cat'"),
        (["a.wav", "--gate-threshold", "0.5"], "give that too"),
        (["a.wav", "--device", "cuda:9"], "--device cuda:9: "),
        (["a.wav", "--thresholds", "no.csv"], "no.csv"),
        (["empty"], "no recordings in this folder"),
        (["a.wav", "--language", "xx"], "Whisper does not know it"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_heard(recordings, head_file, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(recordings)
    (recordings / "empty").mkdir()
    assert run("transcribe", head_file, *arguments) == 1
    out, error = capsys.readouterr()
    assert said in error and error.count("\n") == 1 and not out


def test_a_head_that_is_none(recordings, capsys):
    assert run("transcribe", recordings / "a.wav", recordings / "a.wav") == 1
    assert "not a safetensors file" in capsys.readouterr().err
    assert run("transcribe", recordings, recordings / "a.wav") == 1
    assert "head.safetensors: no such head file" in capsys.readouterr().err
