"""Commands for one run: all stages or one of them, verification, validation, plan, layers."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from raysep.cli.app import ConfigPath, Local, LogFormat, Overrides, RunDir, Verbose, app, print_lines, print_table
from raysep.errors import RaysepError, StageError, UsageError, printable

if TYPE_CHECKING:
    from raysep.config import RunConfig
    from raysep.report.schema import Summary


@dataclass(frozen=True)
class _Mode:
    """How a command runs, and what it prints."""

    verbose: bool
    log_format: LogFormat
    local: bool
    repair: bool = False


def _evaluate(config: "RunConfig", path: str, stages: tuple[str, ...], mode: _Mode) -> None:
    # Slow imports come after the configuration is loaded, so that its errors are reported at once.
    from raysep.process import signals
    from raysep.process.stderr_capture import quiet

    hint = f"{config.run_dir} keeps all finished trials, blocks and layer scores; the same command resumes the run"
    with signals.stopping(hint), quiet(mode.verbose, hint) as console:
        from raysep import pipeline
        from raysep.stages.executor import LocalExecutor
        from raysep.telemetry import Telemetry

        telemetry = Telemetry(console, mode.log_format.value)
        if mode.repair:
            pipeline.repair(config, telemetry)
        summary = pipeline.run(
            config,
            stages,
            config_name=path,
            verbose=mode.verbose,
            telemetry=telemetry,
            executor=LocalExecutor() if mode.local else None,
        )
    if summary is not None:
        _print_summary(summary, config.run_dir)
        if len(summary.models) < len(config.models):
            # The report is written, but the exit code must show scripts that it is incomplete.
            raise StageError(
                f"{len(config.models) - len(summary.models)} of {len(config.models)} models were not evaluated"
            )


def _print_summary(summary: "Summary", run_dir: str) -> None:
    from raysep.report import tables
    from raysep.report.html import PAGE
    from raysep.storage.store import Storage

    head = tables.columns(summary)
    title = f"{summary.name}: {summary.unseen_images} images of {summary.unseen_classes} unseen classes"
    print_table(head, map(tables.cells, summary.models), title, right=[*head[1:4], head[6]])
    print_lines(model.headline for model in summary.models)
    print_lines(f"left out: {item}" for item in summary.left_out)
    print_lines(f"data: {item}" for item in summary.data_notes)
    if summary.retried:
        print_lines([f"retries: {'; '.join(item.words for item in summary.retried)}"])
    print_lines([f"report: {Storage(run_dir).display(PAGE)}"])


@app.command()
def run(
    config: Annotated[str | None, typer.Argument(metavar="[CONFIG]", help="YAML file of the run.")] = None,
    overrides: Overrides = None,
    model: Annotated[str | None, typer.Option(help="Instead of CONFIG: a timm model, not fine-tuned.")] = None,
    weights: Annotated[
        str | None, typer.Option(help="Checkpoint of the model, from safetensors or torch.save; unset: timm's.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="Directory with one subdirectory of images per class.")] = None,
    unseen: Annotated[str | None, typer.Option(help="Classes new to the model: a,b,c or all; unset: all.")] = None,
    run_dir: RunDir = None,
    verbose: Verbose = False,
    log_format: LogFormat = LogFormat.text,
    repair: Annotated[bool, typer.Option(help="First verify the run, and compute damaged pieces again.")] = False,
    local: Local = False,
) -> None:
    """Run all stages: fine-tune, embed, score, report. Resumes an unfinished run.

    Without a file: raysep run --model NAME --weights FILE --data DIR --unseen a,b,c
    """
    stages = ("finetune", "embed", "score", "report")
    mode = _Mode(verbose, log_format, local, repair)
    if model is None and data is None:
        if weights is not None or unseen is not None:
            raise UsageError("--weights and --unseen need --model and --data")
        if config is None:
            raise UsageError("expected CONFIG, or --model and --data; see `raysep run --help`")
        from raysep.config.load import load_config

        _evaluate(load_config(config, overrides or [], run_dir), config, stages, mode)
        return
    if model is None or data is None:
        raise UsageError("--model and --data go together")
    # Without a file, every positional argument is an override.
    changes = [*([config] if config is not None else []), *(overrides or [])]
    from raysep.config.load import config_of_options
    from raysep.data.parts import has_unseen_part

    options = config_of_options(model, weights, data, unseen, changes, run_dir, has_unseen=has_unseen_part(data))
    _evaluate(options, "options", stages, mode)


@app.command()
def verify(run_dir: Annotated[str, typer.Argument(metavar="RUN", help="Directory or URI of a run.")]) -> None:
    """Check the files of a run against its manifests: checksums, and that every image and score occurs exactly once."""
    from raysep.integrity import verify as verify_run
    from raysep.storage.store import Storage

    storage = Storage(run_dir)
    storage.reach()
    result = verify_run(storage)
    print_lines(f"damaged: {finding.path}: {finding.what}" for finding in result.findings)
    print_lines(f"unfinished: {item}" for item in result.unfinished)
    if result.strays:
        print_lines([f"ignored: {len(result.strays)} files that no manifest names, such as {result.strays[0]}"])
    valid = ", ".join(f"{count} {name}" for name, count in result.counts.items())
    print_lines([f"valid: {valid or 'nothing yet'}"])
    if result.findings:
        raise RaysepError(f"{len(result.findings)} damaged pieces; `raysep run CONFIG --repair` computes them again")


def _stage_command(stage: str, summary: str) -> None:
    """Register the command of one stage."""

    @app.command(stage, help=summary)
    def command(
        config: ConfigPath,
        overrides: Overrides = None,
        run_dir: RunDir = None,
        verbose: Verbose = False,
        log_format: LogFormat = LogFormat.text,
        local: Local = False,
    ) -> None:
        from raysep.config.load import load_config

        mode = _Mode(verbose, log_format, local)
        _evaluate(load_config(config, overrides or [], run_dir), config, (stage,), mode)


for _stage, _summary in (
    ("finetune", "Train the models on the seen classes."),
    ("embed", "Embed the images with the checkpoints of the run."),
    ("report", "Write the summary and the report from the scores of the run."),
):
    _stage_command(_stage, _summary)


@app.command()
def score(
    config: Annotated[str | None, typer.Argument(metavar="[CONFIG]", help="YAML file of the run.")] = None,
    overrides: Overrides = None,
    embeddings: Annotated[
        str | None,
        typer.Option(help="Instead of CONFIG: embeddings by another program (.npz, .parquet, directory of .npy)."),
    ] = None,
    labels: Annotated[str | None, typer.Option(help="Name of their labels; unset: labels, label or y.")] = None,
    run_dir: RunDir = None,
    verbose: Verbose = False,
    log_format: LogFormat = LogFormat.text,
    local: Local = False,
) -> None:
    """Measure the separability of each layer from the embeddings of the run, or from those of another program."""
    if embeddings is None:
        if config is None or labels is not None:
            raise UsageError("expected CONFIG, or --embeddings with or without --labels; see `raysep score --help`")
        from raysep.config.load import load_config

        mode = _Mode(verbose, log_format, local)
        _evaluate(load_config(config, overrides or [], run_dir), config, ("score",), mode)
        return
    from raysep.process import signals
    from raysep.process.stderr_capture import quiet

    # Without a file, every positional argument is an override.
    changes = [*([config] if config is not None else []), *(overrides or [])]
    with signals.stopping("nothing was written"), quiet(verbose, "nothing was written") as console:
        from raysep.api import external
        from raysep.embedding.external import open_external
        from raysep.storage.store import Storage
        from raysep.telemetry import Telemetry

        settings, metric = external.settings_of(changes)
        name = external.name_of(embeddings)
        result = run_dir or f"runs/{name}"
        opened = open_external(embeddings, labels)
        telemetry = Telemetry(console, log_format.value)
        summary = external.score_external(opened, name, settings, metric, Storage(result), telemetry)
    _print_summary(summary, result)


@app.command()
def schema() -> None:
    """Print the JSON schema of summary.json."""
    import json

    from raysep.report.schema import Summary

    typer.echo(json.dumps(Summary.model_json_schema(), indent=2))


@app.command()
def validate(config: ConfigPath, overrides: Overrides = None, run_dir: RunDir = None) -> None:
    """Print all problems of a configuration, or the images, classes and layers that it uses. Starts nothing."""
    from raysep.config.load import load_config

    loaded = load_config(config, overrides or [], run_dir)
    from raysep.process.stderr_capture import quiet

    with quiet(False):
        from raysep.data import inventory
        from raysep.distributed import placement
        from raysep.distributed.connect import connection
        from raysep.stages import run_directory, validation
        from raysep.storage.store import Storage

        model_lines: list[str] = []
        readers, split = validation.check_all(loaded, config, model_lines.append)
        run_directory.check_belongs(Storage(loaded.run_dir), loaded, split)
        # Without explicit settings there is nothing to check against a cluster.
        if any(value not in (None, []) for _, value in loaded.compute):
            with connection(may_add=loaded.compute.addable) as cluster:
                placement.check(loaded.compute, cluster)
        inspected = inventory.inspect(loaded.data, readers, split, inventory.LARGE_SAMPLE)
        inventory.check_readable(loaded.data, inspected)
        remarks = inventory.remarks_of(loaded.data, readers, split, inspected)
    typer.echo(f"{config}: valid; {split.num_rows} images, {len(loaded.models)} model(s)")
    if loaded.data.rotations > 1:
        typer.echo(f"first of {loaded.data.rotations} rotations:")
    for line in [*model_lines, *inventory.lines(inspected, remarks)]:
        typer.echo(printable(line.replace("\n", "\\n")))


@app.command()
def plan(config: ConfigPath, overrides: Overrides = None, run_dir: RunDir = None) -> None:
    """Estimate the cost of a run: images, bytes, memory, forward passes, and a rough time from a short probe."""
    from raysep.config.load import load_config

    loaded = load_config(config, overrides or [], run_dir)
    from raysep.process.stderr_capture import quiet

    with quiet(False):
        from raysep.distributed import placement
        from raysep.distributed.connect import connection
        from raysep.estimate import forecast as forecasting
        from raysep.stages import validation

        readers, split = validation.check_all(loaded, config)
        with connection(may_add=loaded.compute.addable) as cluster:
            placement.check(loaded.compute, cluster)
            estimate = forecasting.forecast(loaded, split, readers, cluster)
    head = forecasting.HEAD
    print_table(head, estimate.rows(), estimate.title, right=head[2:], caption=estimate.caption)


@app.command()
def layers(
    model: Annotated[str, typer.Argument(help="Name of a timm model.")],
    image_size: Annotated[int | None, typer.Option(help="In pixels; unset: the default of the model.")] = None,
    layer: Annotated[list[str] | None, typer.Option(help="As models[].layers: stages, blocks, or patterns.")] = None,
    pooling: Annotated[str, typer.Option(help="auto, cls, mean, token0 or max.")] = "auto",
) -> None:
    """List the layers of a timm model, without loading weights."""
    from raysep.config import ModelConfig
    from raysep.config.load import validated
    from raysep.process.stderr_capture import quiet

    values = {"name": model, "image_size": image_size, "layers": layer or "stages", "pooling": pooling}
    config = validated(ModelConfig, {**values, "pretrained": False}, "options")
    with quiet(False):
        from raysep.models.layered import describe

        described = describe(config)
        from raysep.models.layers import label

    rows = [
        [str(item.index), label(item.name, item.same_as), f"{item.depth:.2f}", str(item.dim), item.pooling]
        for item in described
    ]
    print_table(["layer", "name", "depth", "dim", "pooling"], rows, model, right=["layer", "depth", "dim"])
