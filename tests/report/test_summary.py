import json
from pathlib import Path

import numpy as np
import pytest

from raysep.config import ModelConfig
from raysep.data.images import Preprocessing
from raysep.finetune.trials import Trial, TrialResult
from raysep.loading import build_config
from raysep.models.meta import CheckpointMeta
from raysep.report import figures, tables
from raysep.report.html import PAGE, render, sentence, write_report
from raysep.report.summary import Summary, mean_and_sd, summarize
from raysep.storage import Storage

PRE = Preprocessing((32, 32), 3, "bicubic", (0.5,) * 3, (0.5,) * 3, 1.0, "center")
CONFIG = build_config(
    {
        "data": {"source": {"kind": "digits"}, "split": {"unseen": [7, 8, 9]}},
        "models": [{"name": "a", "pretrained": False}, {"name": "<b>", "id": "b", "pretrained": False}],
        "finetune": {"steps": 10, "seeds": [0, 1]},
        "score": {"metrics": ["nmi", "nn1"]},
    }
)
# NMI by trial and layer: the mean over trials is .3 .5 .4, though the best single value is in the last layer.
NMI = {0: [0.3, 0.6, 0.1], 1: [0.3, 0.4, 0.7]}


def row(model: str, trial: int, step: int, split: str, layer: int, metric: str, value: float | None) -> dict:
    place = {"model": model, "trial": trial, "seed": trial, "step": step, "split": split, "layer": layer}
    rest = {"layer_name": f"l{layer}", "depth": layer / 2, "dim": 4, "protocol": "default"}
    return {**place, **rest, "metric": metric, "value": value}


ROWS = [
    row("a", trial, step, split, layer, metric, value if step else value / 2)
    for trial, values in NMI.items()
    for step in (0, 10)
    for split in ("unseen", "seen")
    for layer, value in enumerate(values)
    for metric in ("nmi", "nn1")
]
METAS = [
    CheckpointMeta(CONFIG.models[0], list("xyz"), PRE, t, {"learning_rate": 0.1}, t, s, 0.5, 0.8 + 0.1 * t, "sha")
    for t in (0, 1)
    for s in (0, 10)
]
TRIALS = [Trial(model, number, number, {"learning_rate": 0.1}) for model in CONFIG.models for number in (0, 1)]


def result(model: str, number: int, state="finished", **more) -> TrialResult:
    options = {"unreadable": {}, **more}
    return TrialResult(model, number, number, {"learning_rate": 0.1}, state, {10: 0.5}, {10: 0.8}, 1.0, **options)


RESULTS = [
    result("a", 0, unreadable={"x/<1>.png": "broken"}),
    result("a", 1),
    result("b", 0, "failed", error="the loss is nan"),
    result("b", 1, "stopped"),
]


@pytest.fixture
def summary() -> Summary:
    return summarize(CONFIG, METAS, TRIALS, RESULTS, {}, ROWS, (3, 533))


def test_the_mean_over_trials_comes_before_the_maximum_over_layers(summary: Summary):
    model = summary.models[0]
    assert (model.best_layer, model.best_layer_name, model.layers) == (1, "l1", 3)
    assert model.g == pytest.approx(0.5)
    assert model.g_sd == pytest.approx(np.std([0.6, 0.4]))
    assert model.g_last_layer == pytest.approx(0.4)
    assert model.seen_accuracy == pytest.approx(0.85)
    assert model.seen_accuracy_sd == pytest.approx(0.05)
    assert (model.step, model.trials, model.seeds) == (10, 2, [0, 1])
    assert model.curve("default", "nmi", "unseen", 0).best().mean == pytest.approx(0.25)


def test_everything_that_is_missing_is_said(summary: Summary):
    text = "\n".join(summary.left_out)
    for part in ("b, trial 0", "the loss is nan", "b, trial 1", "stopped early", "b: no trial finished", "1 images"):
        assert part in text
    assert summary.unreadable_images == {"x/<1>.png": "broken"}


def test_deviations_are_of_the_population_and_unknown_for_one_trial():
    assert mean_and_sd([1.0, 3.0, None]) == (2.0, 1.0)
    assert mean_and_sd([1.0]) == (1.0, None)
    assert mean_and_sd([None]) == (None, None)


def test_a_score_that_is_not_defined_is_left_out_of_the_maximum():
    rows = [{**r, "value": None if r["layer"] == 1 else r["value"]} for r in ROWS]
    summary = summarize(CONFIG, METAS, TRIALS[:2], RESULTS[:2], {}, rows, (3, 533))
    assert summary.models[0].best_layer == 2
    assert any("nmi (protocol default) isn't defined for l1" in item for item in summary.left_out)


def test_the_report_is_whole_and_reads_back(summary: Summary, tmp_path: Path):
    run = Storage(str(tmp_path))
    write_report(run, summary)
    names = {path.removeprefix("report/") for path in run.files("report")}
    assert names == {"index.html", "summary.csv", "layers.csv", "layers-a-default.png", "accuracy-against-g.png"}
    assert Summary.model_validate(json.loads(run.read_bytes("summary.json"))) == summary
    page = run.read_bytes(PAGE).decode()
    assert "http" not in page.replace("data:image/png;base64", "")
    assert page.count("data:image/png;base64,") == 2
    assert "x/&lt;1&gt;.png" in page
    assert "<1>" not in page


def test_sentences(summary: Summary):
    assert sentence(summary.models[0], summary) == (
        "a: the best layer is 1 (l1) of 0 to 2, with nmi 0.500; the last layer has 0.400, 0.100 less."
    )
    last = summary.models[0].model_copy(update={"best_layer": 2, "best_layer_name": "l2"})
    assert sentence(last, summary).endswith("it is the last one.")
    assert "no layer could be scored" in sentence(last.model_copy(update={"g": None}), summary)
    assert "no layer could be scored" in render(
        summary.model_copy(update={"models": [last.model_copy(update={"g": None})]}), []
    )


def test_tables(summary: Summary):
    csv = tables.to_csv(summary).decode().splitlines()
    assert csv[0].startswith("model,timm_name,trials")
    assert csv[1].startswith("a,a,2,0 1,learning_rate=0.1,10,0.85")
    layers = tables.layers_csv(summary).decode().splitlines()
    assert len(layers) == 1 + len(ROWS) // 2
    assert tables.number(None) == "-"
    assert tables.number(0.12345, 0.1) == "0.123 ± 0.100"
    assert tables.terminal(summary).row_count == 1


def test_there_is_no_scatter_without_accuracies(summary: Summary):
    model = summary.models[0].model_copy(update={"accuracy_by_step": {0: None}})
    assert figures.accuracy_against_g(summary.model_copy(update={"models": [model]})) is None
    assert figures.curves(summary.models[0], "default").startswith(b"\x89PNG")


def test_models_are_named_as_configured():
    assert ModelConfig(name="hf-hub:timm/x").id == "hf-hub-timm-x"
