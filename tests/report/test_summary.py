import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raysep.config import ModelConfig
from raysep.config.load import build_config
from raysep.data.images import Preprocessing
from raysep.finetune.trials import Trial, TrialResult
from raysep.models.meta import CheckpointMeta
from raysep.report import figures, overview, tables
from raysep.report.curves import mean_and_sd
from raysep.report.health import health_of
from raysep.report.html import PAGE, write_report
from raysep.report.schema import Summary
from raysep.report.summary import summarize
from raysep.report.text import findings, headline, why_not_compared
from raysep.storage.store import Storage

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
    identity = {"model": model, "trial": trial, "seed": trial, "step": step, "split": split, "layer": layer}
    rest = {"layer_name": f"l{layer}", "depth": layer / 2, "dim": 4, "pooling": "mean", "protocol": "default"}
    rest["same_as"] = ""
    uncertainty = {"se": 0.02, "starts_sd": 0.01, "shuffled": 0.1, "n": 100, "halves": halves_of(value, layer)}
    return {**identity, **rest, **uncertainty, "metric": metric, "value": value}


def halves_of(value: float | None, layer: int) -> list[float] | None:
    """Split halves with half differences of 0.02, with random signs per layer."""
    if value is None:
        return None
    half = 0.02 * np.random.default_rng(layer).choice([-1, 1], 50)
    return np.stack([value + half, value - half], axis=1).ravel().tolist()


def diagnostic(name: str, layer: int, value: float | None) -> dict:
    return {**row("a", 0, 10, "unseen", layer, name, value), "protocol": "diagnostic", "halves": None}


ROWS = [
    row(model, trial, step, split, layer, metric, value if step else value / 2)
    for model, steps in (("a", (0, 10)), ("a--untrained", (0,)), ("a--pixels", (0,)))
    for trial, values in NMI.items()
    for step in steps
    for split in ("unseen", "seen")
    for layer, value in enumerate(values if model != "a--pixels" else values[:1])
    for metric in ("nmi", "nn1")
    if model == "a" or trial == 0
] + [
    diagnostic(name, layer, value)
    for layer, diagnostics in enumerate(
        [
            {"constant_features": 4.0},
            {"constant_features": 0.0, "start_agreement": 0.4, "effective_rank": 3.9, "estimated_classes": 2.0},
            {"nonfinite_rows": 0.0, "start_agreement": 0.9, "effective_rank": 3.9, "estimated_classes": 3.0},
        ]
    )
    for name, value in diagnostics.items()
]
SIZES = {"unseen": {"7": 179, "8": 174, "9": 180}, "seen": dict.fromkeys("0123456", 40)}
METAS = [
    CheckpointMeta(CONFIG.models[0], list("xyz"), PRE, t, {"learning_rate": 0.1}, t, s, 0.5, 0.8 + 0.1 * t, 0, "sha")
    for t in (0, 1)
    for s in (0, 10)
]
TRIALS = [Trial(model, number, number, {"learning_rate": 0.1}) for model in CONFIG.models for number in (0, 1)]


def trial_result(model: str, number: int, state: Any = "finished", **more: Any) -> TrialResult:
    options = {"unreadable": {}, **more}
    return TrialResult(model, number, number, {"learning_rate": 0.1}, state, {10: 0.5}, {10: 0.8}, 1.0, **options)


RESULTS = [
    trial_result("a", 0, unreadable={"x/<1>.png": "broken"}),
    trial_result("a", 1),
    trial_result("b", 0, "failed", error="the loss is nan"),
    trial_result("b", 1, "stopped"),
]


@pytest.fixture
def summary() -> Summary:
    return summarize(CONFIG, METAS, TRIALS, RESULTS, {}, ROWS, SIZES)


def test_the_mean_over_trials_comes_before_the_maximum_over_layers(summary: Summary) -> None:
    model = summary.models[0]
    best = model.best
    assert (best.layer, best.name, model.layers, best.last_layer) == (1, "l1", 3, 2)
    assert best.g == pytest.approx(0.5)
    assert best.g_sd == pytest.approx(np.std([0.6, 0.4]))
    assert best.last_g == pytest.approx(0.4)
    assert model.seen_accuracy == pytest.approx(0.85)
    assert model.seen_accuracy_sd == pytest.approx(0.05)
    assert (model.step, model.trials, model.seeds) == (10, 2, [0, 1])
    assert model.curve("default", "nmi", "unseen", 0).choice.g == pytest.approx(0.25)
    assert (summary.unseen_classes, summary.unseen_images) == (3, 533)


def test_every_layer_has_its_uncertainty(summary: Summary) -> None:
    curve = summary.models[0].curve("default", "nmi", "unseen", 10)
    for layer in curve.layers:
        # Both trials have the same halves, so their errors are perfectly correlated.
        assert layer.se == pytest.approx(0.02)
        assert layer.interval[0] < layer.mean < layer.interval[1]
        assert (layer.starts_sd, layer.shuffled) == (pytest.approx(0.01), pytest.approx(0.1))
    assert sum(layer.p_best for layer in curve.layers) == pytest.approx(1)
    assert [layer.tied for layer in curve.layers] == [False, True, False]
    assert curve.choice.tied_layers == [1]
    assert curve.choice.corrected_g == pytest.approx(0.5, abs=0.02)
    assert curve.choice.loss == pytest.approx(0.1, abs=0.02)
    assert curve.choice.loss_interval[0] < 0.1 < curve.choice.loss_interval[1]


def test_baselines_and_health_stand_beside_the_curves(summary: Summary) -> None:
    model = summary.models[0]
    assert [(b.kind, b.curves[0].layers[0].name) for b in model.baselines] == [("untrained", "l0"), ("pixels", "l0")]
    health_of_layer = {health.layer: health for health in model.health}
    assert "all images have the same embedding" in health_of_layer[0].warnings[0]
    assert health_of_layer[1].warnings == ["k-means starts disagree (adjusted Rand index 0.40)"]
    assert health_of_layer[2].warnings == []
    assert health_of_layer[2].estimated_classes == 3.0
    assert "Warnings about this layer: k-means starts disagree" in model.headline


@pytest.mark.parametrize(
    ("pooling", "name", "cause"),
    [
        ("mean", "stem", "the images are alike .* or the layer is dead"),
        ("mean", "features.3", "the images are alike .* or the layer is dead"),
        ("max", "blocks.2", "the images are alike .* or the layer is dead"),
        ("cls", "blocks.2", "the images are alike .* or the layer is dead"),
        ("cls", "stem", "before the first block the class token"),
        ("token0", "stem", "before the first block, the vector of the first token"),
        ("none", "pixels", r"the images are alike \(.*\)$"),
    ],
)
def test_the_warning_about_a_constant_layer_names_causes_that_fit_the_layer(
    pooling: str, name: str, cause: str
) -> None:
    constant = {**diagnostic("constant_features", 0, 4.0), "pooling": pooling, "layer_name": name}
    (health,) = health_of([constant], {"unseen": 3})
    (warning,) = health.warnings
    assert re.search(f"^all images have the same embedding: .*{cause}", warning)
    assert ("token" in warning) == (name == "stem" and pooling != "mean")


def test_without_split_halves_the_headline_says_that_layers_were_not_compared() -> None:
    rows = [{**r, "halves": None, "se": None} for r in ROWS]
    model = summarize(CONFIG, METAS, TRIALS[:2], RESULTS[:2], {}, rows, SIZES).models[0]
    assert model.best.corrected_g is model.best.tied_layers is model.best.loss is None
    assert "not compared: a layer lacks split-half scores in some trial." in model.headline  # type: ignore[unreachable]
    assert tables.cells(model)[3:] == ["-", "1 (l1) (!)", "-", "-"]


def test_several_poolings_of_one_feature_map() -> None:
    rows = []
    for r in ROWS[:24]:
        rows += [{**r, "layer": 2 * r["layer"]}, {**r, "layer": 2 * r["layer"] + 1, "pooling": "max", "value": 0.1}]
    model = summarize(CONFIG, METAS, TRIALS[:2], RESULTS[:2], {}, rows, SIZES).models[0]
    assert (model.best.layer, model.best.pooling, model.best.last_layer) == (2, "mean", 4)
    assert figures.curves(model, "default").startswith(b"\x89PNG")


def test_the_head_is_the_last_layer_and_joins_the_line_of_each_pooling() -> None:
    rows = [{**r, "layer_name": "head", "pooling": "own", "same_as": "l2"} if r["layer"] == 2 else r for r in ROWS]
    rows += [{**r, "layer": 3 + r["layer"], "pooling": "max", "value": 0.1} for r in ROWS if r["layer"] < 2]
    model = summarize(CONFIG, METAS, TRIALS[:2], RESULTS[:2], {}, rows, SIZES).models[0]
    curve = model.curve("default", "nmi", "unseen", 10)
    assert curve.poolings == ["mean", "max"]
    assert [layer.name for layer in curve.pooled("max")] == ["head", "l0", "l1"]
    assert model.best.last_layer == 2
    best = model.best.model_copy(update={"name": "head", "same_as": "l2", "pooling": "own"})
    assert "(head = l2)" in headline("a", "nmi", best, 5, [], several_poolings=True)
    assert figures.curves(model, "default").startswith(b"\x89PNG")


def test_left_out_names_failed_and_stopped_trials_and_unreadable_images(summary: Summary) -> None:
    text = "\n".join(summary.left_out)
    for part in ("b, trial 0", "the loss is nan", "b, trial 1", "stopped early", "b: no trial finished", "1 unread"):
        assert part in text
    assert summary.unreadable_images == {"x/<1>.png": "broken"}


def test_deviations_are_of_the_population_and_unknown_for_one_trial() -> None:
    assert mean_and_sd([1.0, 3.0, None]) == (2.0, 1.0)
    assert mean_and_sd([1.0]) == (1.0, None)
    assert mean_and_sd([None]) == (None, None)


def test_a_score_that_is_not_defined_is_left_out_of_the_maximum() -> None:
    rows = [{**r, "value": None if r["layer"] == 1 else r["value"]} for r in ROWS]
    summary = summarize(CONFIG, METAS, TRIALS[:2], RESULTS[:2], {}, rows, SIZES)
    assert summary.models[0].best.layer == 2
    expected = "nmi, nn1 (protocol default) aren't defined for l1 (NaN or infinity in the embeddings)"
    assert any(expected in item for item in summary.left_out)


@pytest.mark.parametrize(
    ("metric", "sizes", "resamples", "why"),
    [
        ("nmi", {"a": 9, "b": 9}, 200, ""),
        ("nmi", {"a": 9, "b": 9}, 0, "score.resamples is 0"),
        ("nmi", {"a": 250, "b": 2, "c": 30}, 200, ""),
        ("nmi", {"heron": 2, "b": 30}, 200, "heron has 2"),
        ("nmi", dict.fromkeys("abcdefgh", 3), 200, "a has 3, b has 3, c has 3, and 5 more classes"),
        ("few_shot_5", {"a": 30, "egret": 8}, 200, "few_shot_5 on split halves needs 10 images of each class"),
    ],
)
def test_why_layers_are_not_compared_names_the_class(metric: str, sizes: dict, resamples: int, why: str) -> None:
    reason = why_not_compared(metric, sizes, resamples)
    assert (why in reason) if why else not reason


def test_an_undefined_score_names_the_class_that_is_too_small() -> None:
    rows = [{**r, "value": None if r["metric"] == "nn1" else r["value"]} for r in ROWS]
    rows = [{**r, "metric": "linear_probe"} if r["metric"] == "nn1" else r for r in rows]
    sizes = {"unseen": {"heron": 3, "b": 40}, "seen": {"c": 4, "d": 9}}
    left_out = summarize(CONFIG, METAS, TRIALS[:2], RESULTS[:2], {}, rows, sizes).left_out
    assert any("linear_probe (protocol default) isn't defined" in item and "heron has 3" in item for item in left_out)


def test_a_layer_without_halves_keeps_the_interval_of_its_score() -> None:
    rows = [{**r, "halves": None} for r in ROWS if r["trial"] == 0]
    model = summarize(CONFIG, METAS[:2], TRIALS[:1], RESULTS[:1], {}, rows, SIZES).models[0]
    assert model.best.corrected_g is None
    assert model.best.interval[0] < model.best.g < model.best.interval[1]


def test_the_report_is_complete_and_reads_back(summary: Summary, tmp_path: Path) -> None:
    store = Storage(str(tmp_path))
    write_report(store, summary)
    names = {path.removeprefix("report/") for path in store.files("report")}
    figures_of_a = {"layers-a-default.png", "steps-a-default.png", "training-a.png"}
    tables_ = {"summary.csv", "summary.md", "summary.tex", "layers.csv"}
    assert names == {"index.html", "accuracy-against-g.png", *figures_of_a, *tables_}
    assert Summary.model_validate(json.loads(store.read_bytes("summary.json"))) == summary
    page = store.read_bytes(PAGE).decode()
    assert "http" not in page.replace("data:image/png;base64", "")
    assert page.count("data:image/png;base64,") == 4
    assert "x/&lt;1&gt;.png" in page
    assert "<1>" not in page
    assert "k-means starts disagree" in page
    assert "silhouette estimates from the first layer to the last" in page


def test_headlines(summary: Summary) -> None:
    best = summary.models[0].best
    start = "a: layer 1 of 0 to 2 (l1), with nmi 0.500 where chance gives 0.100, or 0."
    assert headline("a", "nmi", best, 3, []).startswith(start)
    low = best.model_copy(update={"shuffled": 0.004})
    assert headline("a", "nmi", low, 3, []).startswith("a: layer 1 of 0 to 2 (l1), with nmi 0.500, or 0.")
    assert headline("a", "nmi", best, 3, []).endswith("No other layer is tied with it at 95 %.")
    tied = best.model_copy(update={"tied_layers": [0, 1, 2], "loss": 0.19, "loss_interval": (0.15, 0.23)})
    text = headline("a", "nmi", tied, 3, [])
    assert "the last layer is worse by 0.190 (95 % interval 0.150 to 0.230). Tied with it at 95 %: layers 0, 2." in text
    last = best.model_copy(update={"layer": 2, "tied_layers": None})
    text = headline("a", "nmi", last, 3, [], not_compared="score.resamples is 0")
    assert "it is the last one. Layers were not compared: score.resamples is 0." in text
    # Without a corrected g, the headline has the interval of g.
    alone = best.model_copy(update={"corrected_g": None, "tied_layers": None})
    assert f"(95 % interval {best.interval[0]:.3f} to {best.interval[1]:.3f})" in headline("a", "nmi", alone, 3, [])
    pooled = best.model_copy(update={"pooling": "max"})
    assert "(l1, max pooled)" in headline("a", "nmi", pooled, 3, [], several_poolings=True)
    assert headline("a", "nmi", None, 3, []) == "a: no layer could be scored."
    paper = headline("a", "nmi", best, 3, [], protocol="paper")
    assert paper.endswith("These intervals leave out the variance over k-means starts: standard deviation 0.010.")
    assert "the last layer is no worse" in headline("a", "nmi", best.model_copy(update={"loss": -0.003}), 3, [])


def test_findings_rank_accuracy_against_g(summary: Summary) -> None:
    assert summary.findings.accuracy_g_correlation is None
    assert "models with an accuracy: 1; three are needed" in summary.findings.sentences[0]
    model = summary.models[0]
    models = [
        model.model_copy(
            update={"model": name, "seen_accuracy": accuracy, "best": model.best.model_copy(update={"g": g})}
        )
        for name, accuracy, g in (("a", 0.9, 0.2), ("b", 0.8, 0.3), ("c", 0.7, 0.4), ("d", 0.6, 0.35))
    ]
    result = findings(models, "nmi")
    # Ranks 4 3 2 1 against 1 2 4 3: 1 - 6 * (9 + 1 + 4 + 4) / (4 * 15).
    assert result.accuracy_g_correlation == pytest.approx(-0.8)
    # Of the 24 permutations 3 have 0.8, one has 1, and as many have -0.8 and -1.
    assert result.accuracy_g_p_value == pytest.approx(1 / 3)
    assert result.models == 4
    assert "rank correlation of -0.80" in result.sentences[0]
    assert result.sentences[-1].startswith("In 4 of 4 models the deepest layer is not the best one")
    same = [m.model_copy(update={"seen_accuracy": 0.5}) for m in models]
    assert findings(same, "nmi").accuracy_g_correlation is None


def test_tables(summary: Summary) -> None:
    csv = tables.to_csv(summary).decode().splitlines()
    assert csv[0].startswith("model,timm_name,trials")
    assert "unseen_nmi_g,unseen_nmi_g_sd,unseen_nmi_corrected_g,unseen_nmi_layer" in csv[0]
    assert csv[1].startswith("a,a,2,0 1,1,learning_rate=0.1,10,0.85")
    layers = tables.layers_csv(summary).decode().splitlines()
    assert len(layers) == 1 + (2 * 3 + 3 + 1) * 2 * 2
    assert any(line.startswith("a,untrained,") for line in layers)
    assert tables.number(None) == "-"
    assert tables.number(0.12345, 0.1) == "0.123 ± 0.100"
    assert len(tables.cells(summary.models[0])) == len(tables.columns(summary))


def test_the_papers_table_in_markdown_and_latex(summary: Summary) -> None:
    markdown = tables.to_markdown(summary).splitlines()
    assert markdown[0] == "| model | accuracy | g nmi, unseen | g nmi, seen |"
    assert markdown[2] == "| a | 0.850 ± 0.050 | 0.500 ± 0.100 [1] | 0.500 ± 0.100 [1] |"
    latex = tables.to_latex(
        summary.model_copy(update={"models": [summary.models[0].model_copy(update={"model": "a_&"})]})
    )
    assert "\\begin{tabular}{lrrr}" in latex
    assert "a\\_\\& & 0.850 $\\pm$ 0.050 & 0.500 $\\pm$ 0.100 [1]" in latex


def test_no_figure_without_data(summary: Summary) -> None:
    model = summary.models[0].model_copy(update={"accuracy_by_step": {0: None}})
    assert overview.accuracy_against_g(summary.model_copy(update={"models": [model]})) is None
    one_step = summary.models[0].model_copy(update={"steps": [10]})
    assert figures.steps(one_step, "default") is overview.training(one_step, "default") is None
    assert overview.compared(summary, "unseen") is None
    assert overview.few_shot(summary.models[0], "default") is None
    two = summary.model_copy(update={"models": [summary.models[0]] * 2})
    assert overview.compared(two, "unseen").startswith(b"\x89PNG")


def test_a_curve_over_labelled_images() -> None:
    rows = [{**r, "metric": f"few_shot_{n}"} for n in (1, 5) for r in ROWS if r["metric"] == "nmi"]
    model = summarize(CONFIG, METAS, TRIALS[:2], RESULTS[:2], {}, ROWS + rows, SIZES).models[0]
    assert overview.few_shot(model, "default").startswith(b"\x89PNG")


def test_a_report_of_a_run_whose_last_step_is_not_scored_yet(tmp_path: Path) -> None:
    rows = [row for row in ROWS if row["step"] == 0]
    summary = summarize(CONFIG, METAS, TRIALS[:2], RESULTS[:2], {}, rows, SIZES, ["not scored yet"])
    assert summary.models[0].best is None
    write_report(Storage(str(tmp_path)), summary)
    assert "no layer could be scored" in (tmp_path / PAGE).read_text()


def test_models_are_named_as_configured() -> None:
    assert ModelConfig(name="hf-hub:timm/x").id == "hf-hub-timm-x"
