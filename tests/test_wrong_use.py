"""Wrong calls of every command: exit code and message, without tracebacks or internal names."""

import re
from pathlib import Path

import pytest

from raysep.cli import app, main
from tests.conftest import REPOSITORY

QUICKSTART = str(REPOSITORY / "jobs" / "configs" / "quickstart.yaml")
NIGHTLY = str(REPOSITORY / "jobs" / "sweeps" / "nightly.yaml")
UNREACHABLE = "http://127.0.0.1:1"
UNREADABLE = "can't be read: No such file or directory"

# Command, arguments, exit code, part of the message.
WRONG: list[tuple[str, list[str], int, str]] = [
    ("nosuch", [], 2, "No such command 'nosuch'."),
    ("run", [], 2, "expected CONFIG, or --model and --data; see `raysep run --help`"),
    ("run", ["none.yaml"], 2, UNREADABLE),
    ("run", [QUICKSTART, "--foo"], 2, "No such option: --foo"),
    ("run", [QUICKSTART, "--log-format", "xml"], 2, "'xml' is not one of 'text', 'json'."),
    ("run", [QUICKSTART, "data"], 2, "expected key=value, as in models.0.name=resnet18; got 'data'"),
    ("run", [QUICKSTART, "models.0.nam=x"], 2, "models.0.nam: unknown key. Did you mean 'name'?"),
    ("run", [QUICKSTART, "models.5.name=x"], 2, "models has the items 0 to 1, not '5'"),
    ("run", [QUICKSTART, "data=3"], 2, "data: expected keys and values, got 3"),
    ("run", [QUICKSTART, "data.source={kind: x}"], 2, "data.source: expected the kind 'cifar100', 'digits'"),
    ("run", [QUICKSTART, "data.split.unseen=[7, yes]"], 2, "no class 'yes' in the data"),
    ("run", [QUICKSTART, "finetune.steps=yes"], 2, "finetune: `steps` can't be true or false"),
    ("run", [QUICKSTART, "run_dir=2026"], 2, "run_dir: expected text, got 2026: put it in quotes"),
    ("run", [QUICKSTART, "--run-dir", "foo://bar"], 2, "foo://bar: not a directory or URI"),
    ("run", [QUICKSTART, "--run-dir", "s3://"], 2, "s3://: expected a bucket and a directory behind the scheme"),
    ("run", [QUICKSTART, "--run-dir", "s3://a:b@c/d"], 2, "a URI is stored with the results, so it can't hold"),
    ("run", [QUICKSTART, "models.0.pretrained=none.pth"], 2, "models.0.pretrained: no file none.pth"),
    ("run", [QUICKSTART, "models.0.kwargs={features_only: true}"], 2, "models.0.kwargs: features_only:"),
    ("run", [QUICKSTART, "models.0.kwargs={nosuch: 1}"], 2, "nosuch"),
    ("run", ["--model", "resnet18"], 2, "--model and --data go together"),
    ("run", ["--data", "."], 2, "--model and --data go together"),
    ("run", ["--weights", "a"], 2, "--weights and --unseen need --model and --data"),
    (
        "run",
        ["--model", "test_resnet", "--data", "nowhere", "models.0.pretrained=false"],
        2,
        "data.source.path: no directory at",
    ),
    ("run", [NIGHTLY], 2, "models: field required"),
    ("finetune", [], 2, "Missing argument 'CONFIG'."),
    ("finetune", ["none.yaml"], 2, UNREADABLE),
    ("embed", [QUICKSTART, "embed.batch_size=0"], 2, "embed.batch_size: expected greater than or equal to 1, got 0"),
    ("score", [QUICKSTART, "score.metrics=[nmy]"], 2, "score.metrics.0: expected 'nmi', 'ami'"),
    ("report", [QUICKSTART, "report.metric=x"], 2, "report.metric: expected 'nmi', 'ami'"),
    ("report", [QUICKSTART, "--run-dir", "new"], 1, "holds no run yet: run `raysep run` first"),
    ("verify", [], 2, "Missing argument 'RUN'."),
    ("verify", ["nowhere"], 2, "holds no run: there is no config.yaml"),
    ("schema", ["extra"], 2, "unexpected extra argument"),
    ("validate", ["none.yaml"], 2, UNREADABLE),
    ("validate", [QUICKSTART, "data.source.depth=2"], 2, "data.source.depth: unknown key."),
    ("validate", [QUICKSTART, "data.min_per_class=0"], 2, "data.min_per_class: expected greater than or equal to 1"),
    ("validate", [QUICKSTART, "data.min_per_class=1000"], 2, "expected at least 2 unseen classes, got 0"),
    ("plan", ["none.yaml"], 2, UNREADABLE),
    ("layers", [], 2, "Missing argument"),
    ("layers", ["resnet19"], 2, "unknown model 'resnet19'; close matches: resnet18"),
    ("layers", ["test_resnet", "--image-size", "3"], 2, "image_size: expected greater than or equal to 8, got 3"),
    ("layers", ["test_resnet", "--layer", "nope"], 2, "no layer or module 'nope'; the layers are"),
    ("layers", ["test_resnet", "--pooling", "best"], 2, "pooling: expected 'auto', 'cls', 'mean', 'token0' or 'max'"),
    ("sweep", ["none.yaml"], 2, UNREADABLE),
    ("sweep", [QUICKSTART], 2, "matrix: field required"),
    ("sweep", [NIGHTLY, "--dry-run", "matrix.x=1"], 2, "matrix.x: unknown key. The keys here are models"),
    ("history", ["none.yaml"], 2, UNREADABLE),
    ("history", [NIGHTLY, "--model", "nosuch"], 2, "the results have no row of nosuch"),
    ("compare", ["a"], 2, "Missing argument 'B'."),
    (
        "compare",
        ["a", "b"],
        2,
        "a has no summary.json: expected the directory of a finished `raysep run`; rounds and dates need --sweep",
    ),
    ("schedule", [NIGHTLY], 2, "Missing option '--cron'."),
    ("schedule", [NIGHTLY, "--cron", "x"], 2, "expected five fields, as in '0 3 * * *'"),
    ("schedule", [NIGHTLY, "--cron", "0 3 31 2 *"], 2, "--cron '0 3 31 2 *': no date matches"),
    ("schedule", [NIGHTLY, "--cron", "0 24 * * *"], 2, "hour: expected 0 to 23, got '24'"),
    ("submit", ["none.yaml"], 2, UNREADABLE),
    ("submit", [QUICKSTART, "--address", "nonsense"], 2, "expected http://HOST:8265, the address of the dashboard"),
    ("submit", [QUICKSTART, "--address", UNREACHABLE], 1, "Is a cluster running there, with its dashboard?"),
    ("submit", [QUICKSTART, "--stop-on-exit"], 2, "--stop-on-exit requires --wait"),
    ("jobs", ["--address", UNREACHABLE], 1, "Is a cluster running there, with its dashboard?"),
    ("stop", [], 2, "Missing argument 'ID'."),
    ("stop", ["x", "--address", UNREACHABLE], 1, "Is a cluster running there, with its dashboard?"),
]


def test_every_command_has_a_wrong_call() -> None:
    commands = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    assert commands == {name for name, *_ in WRONG} - {"nosuch"}


@pytest.mark.parametrize(
    ("command", "arguments", "code", "message"), WRONG, ids=[f"{c} {' '.join(a)[-40:]}" for c, a, *_ in WRONG]
)
def test_wrong_calls(
    command: str,
    arguments: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(SystemExit) as ended:
        main([command, *arguments])
    output = capfd.readouterr()
    assert ended.value.code == code, output.err
    assert message in output.err
    assert "Traceback" not in output.err
    # No colours in a pipe, no class names of this package or of a library, no paths of the installation.
    assert "\x1b" not in output.err + output.out
    assert not re.search(
        r"\b[A-Z][a-z]+(Config|Source|Section|Error|Settings)\b|pydantic|site-packages|raysep/", output.err
    )
    assert list(tmp_path.iterdir()) == []
