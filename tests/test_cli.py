"""The commands, in subprocesses."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import timm
import yaml
from safetensors.torch import save_file

from raysep.storage.store import Storage
from tests.conftest import REPOSITORY, TINY_VIT
from tests.ports import free_port
from tests.s3 import BUCKET, SECRET, serving

QUICKSTART = str(REPOSITORY / "jobs" / "configs" / "quickstart.yaml")


def raysep(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    return subprocess.run(
        [sys.executable, "-m", "raysep", *arguments],
        capture_output=True,
        text=True,
        timeout=280,
        cwd=cwd,
        env={**environment, "PYTHONPATH": str(REPOSITORY)},
    )


def test_help_names_every_command() -> None:
    done = raysep("--help")
    assert done.returncode == 0
    commands = ("run", "finetune", "embed", "score", "report", "layers", "validate", "plan", "schema")
    for command in (*commands, "submit", "jobs", "stop", "sweep", "history", "compare", "schedule"):
        assert command in done.stdout


@pytest.mark.slow
def test_plan_prints_an_estimate_and_writes_nothing(tmp_path: Path) -> None:
    models = f"models=[{json.dumps(TINY_VIT)}]"
    short = ("finetune=null", "score.metrics=[nmi]", "baselines={untrained: false, pixels: null}")
    done = raysep("plan", QUICKSTART, models, *short, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "test_vit (" in done.stdout
    assert "forward passes" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [("--help",), ("run", QUICKSTART, "models.0.nam=x")])
def test_help_and_config_errors_import_nothing_heavy(arguments: tuple[str, ...]) -> None:
    code = (
        "import sys, raysep.cli\n"
        "try:\n    raysep.cli.main(sys.argv[1:])\nexcept SystemExit as end:\n    status = end.code\n"
        "heavy = {'ray', 'torch', 'timm', 'sklearn', 'scipy', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else status)"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment)
    assert done.returncode == (0 if arguments == ("--help",) else 2), done.stderr


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("run", "none.yaml"), "none.yaml"),
        (("run", QUICKSTART, "models.0.nam=x"), "Did you mean 'name'"),
        (("nosuchcommand",), "nosuchcommand"),
    ],
)
def test_wrong_use_has_exit_code_2_and_a_reason(arguments: tuple[str, ...], part: str, tmp_path: Path) -> None:
    done = raysep(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert part in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_my_checkpoint_and_a_folder_of_new_classes_with_results_on_s3(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "mine.safetensors"
    model = timm.create_model("test_vit", num_classes=7)
    save_file(model.state_dict(), str(weights))
    arguments = ["run", "--model", "test_vit", "--weights", str(weights), "--data", str(tree), "--unseen", "a,c,d"]
    arguments += ["models.0.image_size=160", "score.metrics=[nmi]", "score.resamples=20", "baselines.pixels=null"]
    arguments += ["compute.score_actors=1", "compute.embed_actors=1", "baselines.untrained=false"]
    arguments += ["--run-dir", f"s3://{BUCKET}/mine", "--log-format", "json"]
    # The storage has an outage during the run.
    with serving(free_port(), outage_after=60) as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        done = raysep(*arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        store = Storage(f"s3://{BUCKET}/mine")
        summary, files = store.read_json("summary.json"), store.files()
        again = raysep(*arguments, cwd=tmp_path)
        assert store.files() == files
        (log,) = store.files("logs")
        logged = [json.loads(line) for line in store.read_bytes(log).splitlines()]
        # No file and no output contains the secret key of the storage.
        assert not [file for file in files if SECRET.encode() in store.read_bytes(file)]
        assert SECRET not in done.stdout + done.stderr + again.stdout + again.stderr
    assert {item["why"] for item in summary["retried"]} == {"storage"}
    assert "x transient storage error" in done.stdout
    assert "36 images of 3 unseen classes" in done.stdout
    assert "test_vit: layer " in done.stdout
    assert f"report: s3://{BUCKET}/mine/report/index.html" in done.stdout
    jsonschema.validate(summary, json.loads(raysep("schema").stdout))
    assert summary["models"][0]["seen_accuracy"] is None
    # The log holds the events of stderr, with their fields and without secrets.
    printed = [json.loads(line) for line in done.stderr.splitlines()]
    assert logged[:-1] == printed[: len(logged) - 1]
    assert {"model": "test_vit", "layer": 1}.items() <= next(e for e in printed if e.get("layer") == 1).items()
    assert environment["AWS_ENDPOINT_URL"] not in done.stderr + json.dumps(logged)
    assert again.returncode == 0
    assert again.stderr.count("nothing left to do") == 4
    assert again.stdout == done.stdout
    # Nothing is written to the local disk.
    assert {path.name for path in tmp_path.iterdir()} == {"images", "mine.safetensors"}


def test_layers_of_a_model() -> None:
    done = raysep("layers", "vit_tiny_patch16_224", "--image-size", "64")
    assert done.returncode == 0
    assert done.stderr == ""
    rows = [line.split("│")[1:-1] for line in done.stdout.splitlines() if line.startswith("│")]
    assert [cell.strip() for cell in rows[0]] == ["0", "stem", "0.00", "192", "cls"]
    assert [cell.strip() for cell in rows[-1]] == ["13", "head", "1.00", "192", "own"]


def test_validate_accepts_a_valid_configuration(tmp_path: Path) -> None:
    done = raysep("validate", QUICKSTART, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "valid; 1797 images, 2 model(s)" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_a_cluster_starts_ray_and_prints_only_its_own_lines(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    values = {
        "data": {"source": {"kind": "digits"}, "split": {"unseen": [7, 8, 9], "seen": [0, 1]}},
        "models": [TINY_VIT],
        "score": {"metrics": ["nmi", "nn1"], "resamples": 20},
        "baselines": {"untrained": False, "pixels": None},
        "compute": {"embed_actors": 1, "score_actors": 1},
    }
    path.write_text(yaml.safe_dump(values))
    # SIGTERM during a stage: the run ends soon, and the same command resumes it.
    command = [sys.executable, "-m", "raysep", "run", str(path), "--run-dir", "out"]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    environment["PYTHONPATH"] = str(REPOSITORY)
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines: list[str] = []
        while not lines or "finetune " not in lines[-1]:
            lines.append(process.stderr.readline())
            assert lines[-1], lines
        signalled = time.monotonic()
        process.send_signal(signal.SIGTERM)
        lines.append(process.stderr.read())
        assert process.wait(timeout=60) == 130, lines
        assert time.monotonic() - signalled < 10 + 5  # 5 s of slack for a busy machine.
    assert "stopped: by SIGTERM: out keeps" in lines[-1]
    assert "Traceback" not in lines[-1]
    assert not (tmp_path / "out" / "lock").exists()
    partial = raysep("verify", "out", cwd=tmp_path)
    assert partial.returncode == 0, partial.stdout
    assert "unfinished: there is no report yet" in partial.stdout

    done = raysep("run", str(path), "--run-dir", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "test_vit" in done.stdout
    assert f"report: {tmp_path}/out/report/index.html" in done.stdout
    stages = {"checks", "monitoring", "ray", "data", "finetune", "embed", "score", "report"}
    for line in done.stderr.splitlines():
        assert line.split()[1:2] == ["s"], line
        assert line.split()[2] in stages, line
    start = time.monotonic()
    again = raysep("run", str(path), "--run-dir", "out", cwd=tmp_path)
    assert again.returncode == 0
    assert again.stderr.count("nothing left to do") == 4
    assert again.stdout == done.stdout
    complete = raysep("verify", "out", cwd=tmp_path)
    assert complete.returncode == 0
    assert complete.stdout.splitlines()[-1].startswith("valid: ")
    assert "unfinished" not in complete.stdout
    # A finished run is checked without importing Ray, torch and timm.
    assert time.monotonic() - start < 30


def test_transient_storage_errors_are_reported_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from raysep import cli

    def fail(**_: Any) -> None:
        raise OSError("AWS Error UNKNOWN (HTTP status 503) during HeadObject operation: No response body.")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit, match="1"):
        cli.main(["run"])
    stderr = capsys.readouterr().err
    assert "No response body. Finished work stays valid" in stderr
    assert "run the same command" in stderr
