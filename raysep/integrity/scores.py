"""Verify the score table: every score exactly once, computed from all images of its shard set, within its range."""

import math
from collections import Counter
from collections.abc import Sequence

from raysep.config.names import DIAGNOSTIC
from raysep.config.registry import METRICS
from raysep.embedding.shards import ShardSet
from raysep.integrity.findings import UNREADABLE, Finding, Verification, short
from raysep.scoring import table
from raysep.storage.store import Storage


def scores(store: Storage, tasks: Sequence[table.Task], found: Verification) -> None:
    """Check every score of the run."""
    try:
        rows = table.read(store)
    except UNREADABLE as error:
        found.findings.append(Finding(table.FILE, short(error), table.FILE))
        return
    current = table.belonging(tasks, rows)
    counts = Counter(tuple(row[name] for name in table.NAMES) for row in current)
    twice = sum(count > 1 for count in counts.values())
    if twice:
        found.findings.append(Finding(table.FILE, f"{twice} duplicate scores", table.FILE))
    images = {(task.shard_set, task.layer.index): task.manifest.rows for task in tasks}
    for row in current:
        shard_set = ShardSet(row["model"], row["trial"], row["step"], row["split"])
        what = _score_damage(row, images[shard_set, row["layer"]])
        if what is not None:
            where = f"{row['metric']} of {shard_set.directory}, layer {row['layer']}"
            found.findings.append(Finding(table.FILE, f"{where}: {what}", table.FILE))
    found.counts["scores"] = len(counts)
    if len(current) < len(rows):
        found.unfinished.append(f"{len(rows) - len(current)} obsolete scores, of embeddings that no longer exist")
    if missing := table.missing(tasks, rows):
        found.unfinished.append(f"{len(missing)} of {len(tasks)} layers are not scored yet")


def _score_damage(row: table.Row, images: int) -> str | None:
    if row["n"] != images:
        return f"of {row['n']} images, expected {images}"
    value, low, high = row["value"], row["ci_low"], row["ci_high"]
    if value is None:
        return None
    if not math.isfinite(value):
        return f"is {value}"
    if row["protocol"] != DIAGNOSTIC and not METRICS[row["metric"]].low - 1e-9 <= value <= 1 + 1e-9:
        return f"is {value}, outside its range"
    if low is not None and high is not None and not low - 1e-9 <= value <= high + 1e-9:
        return f"is {value}, outside its confidence interval {low} to {high}"
    return None
