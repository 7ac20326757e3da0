import io
import json
from pathlib import Path

from rich.console import Console

from raysep.storage.store import Storage
from raysep.telemetry import Telemetry


def read(run: Storage, name: str) -> list[dict]:
    return [json.loads(line) for line in run.read_bytes(name).decode().splitlines()]


def test_events_before_keep_in_are_saved_too(tmp_path: Path) -> None:
    telemetry, run = Telemetry(Console(file=io.StringIO())), Storage(str(tmp_path))
    telemetry.line("checks", "images")
    telemetry.journal.save()
    assert run.files() == []
    telemetry.journal.keep_in(run)
    telemetry.event("score", "layer1: 3 scores", model="vit", layer=1)
    telemetry.journal.save()
    first, second = read(run, telemetry.journal.name)
    assert (first["stage"], first["message"]) == ("checks", "images")
    assert (second["model"], second["layer"], second["message"]) == ("vit", 1, "layer1: 3 scores")
    assert first["elapsed_s"] <= second["elapsed_s"]


def test_events_are_saved_but_not_printed_as_text(tmp_path: Path) -> None:
    for log_format in ("text", "json"):
        out = io.StringIO()
        telemetry = Telemetry(Console(file=out, width=20), log_format)
        telemetry.line("embed", "[bold] is no markup in a log, and long lines stay whole")
        telemetry.event("embed", "done", model="vit")
        run = Storage(str(tmp_path / log_format))
        telemetry.journal.keep_in(run)
        kept = run.read_bytes(telemetry.journal.name).decode()
        if log_format == "json":
            assert out.getvalue() == kept
        else:
            assert len(out.getvalue().splitlines()) == 1
            assert len(kept.splitlines()) == 2


def test_each_call_of_a_run_has_its_own_log_file(tmp_path: Path) -> None:
    run = Storage(str(tmp_path))
    for text in ("first", "second"):
        telemetry = Telemetry(Console(file=io.StringIO()))
        telemetry.line("run", text)
        telemetry.journal.keep_in(run)
    assert [read(run, name)[0]["message"] for name in run.files("logs")] == ["first", "second"]
