"""Commands for sweeps: run a round, show the history, compare results, schedule rounds."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raysep.cli.app import LogFormat, Overrides, Verbose, app, print_table
from raysep.errors import NotComparableError, StageError, UsageError

if TYPE_CHECKING:
    from raysep.sweeps.compare import Difference, Point
    from raysep.sweeps.rounds import Plan, Round

SweepPath = Annotated[str, typer.Argument(metavar="SWEEP", help="YAML file of the sweep.")]
Root = Annotated[str | None, typer.Option("--root", help="Directory or URI of the sweep.")]
Label = Annotated[
    str | None, typer.Option("--round", help="Label of the round; unset: from the key `round` and the date.")
]


@app.command()
def sweep(
    path: SweepPath,
    overrides: Overrides = None,
    label: Label = None,
    root: Root = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the cells and their expected cost.")] = False,
    verbose: Verbose = False,
    log_format: LogFormat = LogFormat.text,
) -> None:
    """Run the pending cells of a round, rank the models, and compare them with the baseline.

    Exit code 1 if a cell failed or regressed; else 3 if a cell is not comparable with the baseline.
    """
    from datetime import UTC, datetime

    from raysep.sweeps.config import checked_label, load_sweep

    config = load_sweep(path, overrides or [], root)
    label = checked_label(label) if label else config.label(datetime.now(UTC))
    from raysep.process import signals
    from raysep.process.stderr_capture import quiet

    hint = f"{config.root} keeps all finished cells and stages; --round {label} resumes the round"
    with signals.stopping(hint), quiet(verbose, hint) as console:
        from raysep.sweeps import rounds
        from raysep.telemetry import Telemetry

        if dry_run:
            plans = rounds.plan(config, label, rounds.rows_of(config))
        else:
            result = rounds.perform(config, label, Telemetry(console, log_format.value), verbose)
    if dry_run:
        _print_plan(label, plans)
        return
    _print_round(config.name, result)
    worse, incomparable = result.verdict.regressions, result.verdict.incomparable
    problems = [f"{row['cell']}: {row['error']}" for row in result.failed] + worse + incomparable
    if problems:
        counts = f"{len(result.failed)} of {len(result.rows)} cells failed, {len(worse)} regression(s)"
        counts += f", {len(incomparable)} not comparable with the baseline" if incomparable else ""
        kind = StageError if result.failed or worse else NotComparableError
        raise kind("\n".join([counts, *(f"  - {p}" for p in problems)]))


@app.command()
def history(
    uri: Annotated[str, typer.Argument(metavar="SWEEP", help="YAML file of a sweep, or its results table.")],
    model: Annotated[str | None, typer.Option(help="Only this model.")] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Print all columns as CSV.")] = False,
) -> None:
    """Show the score g over time, a row per cell of each round."""
    rows = [row for row in _rows(uri) if model is None or row["model"] == model]
    if not rows:
        raise UsageError(f"{uri}: the results have no row" + (f" of {model}" if model else ""))
    if csv:
        from raysep.report.tables import csv_of

        sys.stdout.write(csv_of([list(rows[0]), *(list(row.values()) for row in rows)]).decode())
        return
    headings = ["date", "sweep", "round", "cell", "state", "g", "95 % interval"]
    headings += ["layer", "accuracy", "seconds", "revision"]
    print_table(headings, map(_history_row, sorted(rows, key=lambda row: (row["sweep"], row["cell"], row["at"]))))


def _history_row(row: dict[str, Any]) -> list[str]:
    low, high = row["corrected_low"], row["corrected_high"]
    return [
        *(row[name] for name in ("date", "sweep", "round", "cell", "state")),
        _number(row["corrected_g"] if row["corrected_g"] is not None else row["g"]),
        "-" if low is None or high is None else f"{low:.3f} to {high:.3f}",
        "-" if row["best_layer"] is None else str(row["best_layer"]),
        _number(row["seen_accuracy"]),
        _number(row["seconds"], 1),
        (row["git_revision"] or "-")[:7],
    ]


@app.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="Directory or URI of a run; with --sweep, a round or date.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The same, to compare with A.")],
    sweep: Annotated[str | None, typer.Option(help="For rounds and dates: a sweep's file or results table.")] = None,
) -> None:
    """Compare two runs, rounds or dates, and show which changes of the score g exceed their intervals.

    Exit code 3 if a pair is not comparable: other images, another metric or another protocol.
    """
    from raysep.sweeps import compare as comparing

    sides = _points(a, sweep), _points(b, sweep)
    differences = comparing.differences(*sides)
    sweeps = [sorted({point.sweep for point in side if point.sweep}) for side in sides]
    if not differences:
        one, other = (", ".join(names) for names in sweeps)
        owners = f": {a} belongs to the sweep {one}, {b} to {other}" if one != other else ""
        raise UsageError(f"{a} and {b} have no model or cell in common{owners}")
    several_sweeps = len({*sweeps[0], *sweeps[1]}) > 1
    names = [f"{item.a.sweep}: {item.a.name}" if several_sweeps else item.a.name for item in differences]
    headings = ["", f"g of {a}", f"g of {b}", "change", "beyond", "layers", "accuracies", "seconds"]
    print_table(headings, [_difference_row(name, item) for name, item in zip(names, differences, strict=True)])
    pairs = [(name, item.incomparable) for name, item in zip(names, differences, strict=True) if item.incomparable]
    if pairs:
        lines = [f"  - {name}: not comparable: {why}" for name, why in pairs]
        head = f"{a} and {b}: {len(pairs)} of {len(names)} models or cells are not comparable"
        raise NotComparableError("\n".join([head, *lines]))


def _difference_row(name: str, item: "Difference") -> list[str]:
    margin = "" if item.margin is None else f" ± {item.margin:.3f}"
    beyond = "unknown" if item.beyond is None else ("yes" if item.beyond else "no")
    if item.incomparable is not None:
        beyond = f"not comparable: {item.incomparable}"
    elif item.unknown:
        beyond += f" (unknown whether equal: {', '.join(item.unknown)})"
    return [
        name,
        _number(item.a.g),
        _number(item.b.g),
        "-" if item.change is None else f"{item.change:+.3f}{margin}",
        beyond,
        f"{item.a.best_layer}, {item.b.best_layer}",
        f"{_number(item.a.accuracy)}, {_number(item.b.accuracy)}",
        f"{_number(item.a.seconds, 1)}, {_number(item.b.seconds, 1)}",
    ]


@app.command()
def schedule(
    path: SweepPath,
    overrides: Overrides = None,
    *,
    cron: Annotated[
        str,
        typer.Option(
            help="Five fields of crontab(5), such as '0 3 * * *', or a nickname such as @daily, in the sweep's zone. "
            "If neither day of month nor day of week begins with `*`, one match is enough; else both must match."
        ),
    ],
    root: Root = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Exit after this many rounds; unset: never.")] = None,
    log_format: LogFormat = LogFormat.text,
) -> None:
    """Keep running, and start a round at each time of a cron expression. Missed times are merged into one round."""
    from raysep.sweeps.cells import cells_of
    from raysep.sweeps.config import load_sweep
    from raysep.sweeps.schedule import Schedule, command_of
    from raysep.telemetry import Telemetry

    config = load_sweep(path, overrides or [], root)
    # Report invalid cells now, not at the first round.
    cells_of(config)
    arguments = [*(overrides or []), "--log-format", log_format.value, *(["--root", root] if root else [])]
    Schedule(config, cron, command_of(path, arguments), Telemetry(log_format=log_format.value)).run(rounds)


def _rows(uri: str) -> list[dict[str, Any]]:
    from raysep.storage.store import Storage
    from raysep.sweeps import results as table
    from raysep.sweeps.config import load_sweep

    sweep = load_sweep(uri) if uri.endswith((".yaml", ".yml")) else None
    results = Storage(uri if sweep is None else sweep.results)
    content = table.read(results)
    for line in content.remarks(results):
        typer.echo(line, err=True)
    return [row for row in content.rows if sweep is None or row["sweep"] == sweep.name]


def _points(name: str, sweep: str | None) -> "list[Point]":
    from raysep.api.results import open as open_run
    from raysep.errors import RunDirError
    from raysep.stages import run_directory
    from raysep.storage.store import Storage
    from raysep.sweeps import compare as comparing
    from raysep.sweeps import results as table

    if sweep is None:
        try:
            summary = open_run(name).summary
        except RunDirError as error:
            raise UsageError(f"{error}; rounds and dates need --sweep") from None
        return comparing.points_of_summary(summary, run_directory.data_hash(Storage(name)))
    rows = _rows(sweep)
    chosen = table.select(rows, round=name) or table.select(rows, date=name)
    if not chosen:
        known = dict.fromkeys([*(str(row["round"]) for row in rows), *(str(row["date"]) for row in rows)])
        raise UsageError(f"{sweep} has no round or date {name}; it has {', '.join(known) or 'none'}")
    return comparing.points_of_rows(chosen)


def _print_plan(label: str, plans: "list[Plan]") -> None:
    rows = []
    for item in plans:
        finetune = item.cell.config.finetune
        rows.append(
            [
                item.cell.name,
                "done" if item.done else f"will fail: {item.problem}" if item.problem else "pending",
                "-" if item.inputs is None else str(item.inputs.images),
                str(finetune.steps * len(finetune.seeds)) if finetune else "0",
                str(len(finetune.evaluate_at) * len(finetune.seeds) if finetune else 1),
                "unknown" if item.seconds is None else f"{item.seconds:.0f}",
            ]
        )
    known = [item.seconds for item in plans if item.seconds is not None and not item.done]
    pending = sum(not item.done for item in plans)
    headings = ["cell", "state", "images", "training steps", "checkpoints", "earlier seconds"]
    print_table(headings, rows, f"round {label}")
    typer.echo(f"{pending} of {len(plans)} cells pending; {len(known)} of them took {sum(known):.0f} s before")


def _print_round(name: str, result: "Round") -> None:
    from raysep.sweeps.leaderboard import HEAD, cells, ranked

    print_table(HEAD, map(cells, ranked(result.rows)), f"{name}, round {result.label}")


def _number(value: object, digits: int = 3) -> str:
    return f"{value:.{digits}f}" if isinstance(value, float) else "-"
