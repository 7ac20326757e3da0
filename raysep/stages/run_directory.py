"""A run directory: its configuration, its images, and the state of its stages."""

import hashlib
import platform
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from raysep import __version__
from raysep.config import RunConfig
from raysep.config.base import not_in_key
from raysep.config.load import differences, to_yaml
from raysep.data import splits
from raysep.data.source import Remarks
from raysep.errors import RunDirError
from raysep.storage.retries import Why
from raysep.storage.store import LEASES, Storage, is_uri

CONFIG, MANIFEST, SPLITS = "config.yaml", "manifest.json", "splits.parquet"
# Version of the layout of run directories and of their cache keys. Other versions are refused.
FORMAT = 3
# Pieces of work and worker seconds, by node.
NodeWork = dict[str, dict[str, float]]
PACKAGES = ("ray", "torch", "torchvision", "timm", "scikit-learn", "numpy", "pyarrow", "pillow", "cuml-cu13")


def check_belongs(store: Storage, config: RunConfig, split: pa.Table) -> bool:
    """Whether the directory is a run of this configuration and these images; False if no run was begun in it.

    Raises:
        RunDirError: the directory is a run of another configuration or other images (the message lists the
            differences); or it holds other files.
    """
    try:
        old = yaml.safe_load(store.read_bytes(CONFIG))
    except FileNotFoundError:
        # A call that was stopped in `begin` may have left the split, the manifest and lease files.
        others = [
            file for file in store.files() if file not in {SPLITS, MANIFEST} and not file.startswith(f"{LEASES}/")
        ]
        if others:
            raise RunDirError(
                f"{store.display()} holds other files ({others[0]}, ...) and no run: take another --run-dir"
            ) from None
        return False
    except yaml.YAMLError as error:
        raise RunDirError(f"{store.display(CONFIG)} is damaged ({' '.join(str(error).split())}): restore it") from None
    check_format(store)
    now = with_absolute_paths(config).model_dump(mode="json")
    with store.understood(CONFIG):
        free = tuple(not_in_key(RunConfig))
        changed = [line for line in differences(old, now) if not line.startswith(free)]
    if changed:
        raise RunDirError(
            "\n".join(
                [
                    f"{store.display()} belongs to another configuration; use another --run-dir, or undo:",
                    *(f"  - {line}" for line in changed),
                ]
            )
        )
    if store.exists(SPLITS):
        with store.understood(SPLITS):
            before = splits.from_parquet(store.read_bytes(SPLITS))
        if splits.fingerprint(before) != splits.fingerprint(split):
            old_ids, new_ids = set(before["image_id"].to_pylist()), set(split["image_id"].to_pylist())
            raise RunDirError(
                f"{store.display()} belongs to other images: {len(old_ids - new_ids)} of its {len(old_ids)} are gone "
                f"and {len(new_ids - old_ids)} are new (or changed their class); take another --run-dir"
            )
    return True


def check_format(store: Storage) -> None:
    """Raise RunDirError for a run of another format: its files and cache keys have another meaning."""
    try:
        manifest = store.read_json(MANIFEST)
    except FileNotFoundError:
        return
    with store.understood(MANIFEST):
        run_format, writer = manifest.get("format", 1), manifest.get("raysep", "unknown")
    if run_format != FORMAT:
        raise RunDirError(
            f"{store.display()} is a run of format {run_format} (raysep {writer}), and this raysep {__version__} reads "
            f"and writes format {FORMAT}: take another --run-dir to compute it again, or read it with the raysep that "
            "wrote it"
        )


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """The configuration with absolute paths of models, for workers, whose working directory differs."""
    models = []
    for model in config.models:
        if isinstance(model.pretrained, str) and not is_uri(model.pretrained):
            model = model.model_copy(update={"pretrained": _absolute(model.pretrained)})
        if model.local_directory is not None:
            model = model.model_copy(update={"name": f"local-dir:{_absolute(model.local_directory)}"})
        models.append(model)
    return config.model_copy(update={"models": models})


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().resolve())


def begin(store: Storage, config: RunConfig, split: pa.Table, remarks: Remarks | None = None) -> None:
    """Write the split, a first manifest, and last the resolved configuration, whose presence marks a run.

    Args:
        remarks: remarks on the images; stored, so that later calls report them too.
    """
    text = to_yaml(config)
    store.write_bytes(SPLITS, splits.to_parquet(split))
    store.write_json(
        MANIFEST,
        {
            "format": FORMAT,
            "raysep": __version__,
            "git_revision": git_revision(),
            "created": now(),
            "python": platform.python_version(),
            "versions": versions(),
            "config_sha256": hashlib.sha256(text.encode()).hexdigest(),
            "data_sha256": splits.fingerprint(split),
            "data": asdict(remarks or Remarks()),
            "seeds": {
                "split": config.data.split.seed if config.data.split else None,
                "finetune": config.finetune.seeds if config.finetune else None,
                "score": config.score.seed,
            },
            "stages": {},
        },
    )
    store.write_bytes(CONFIG, text.encode())


def data_remarks(store: Storage) -> list[str]:
    """Remarks on the images, stored when the run began, one sentence each."""
    remarks = store.read_json(MANIFEST).get("data", {})
    return [*remarks.get("left_out", []), *remarks.get("notes", [])]


def data_hash(store: Storage) -> str | None:
    """Hash of the images and their roles; None without a manifest."""
    try:
        data_sha256: str | None = store.read_json(MANIFEST).get("data_sha256")
    except FileNotFoundError:
        return None
    return data_sha256


def record(store: Storage, stage: str, work: NodeWork | None = None, **state: Any) -> None:
    """Set a stage's state in the manifest.

    Args:
        work: pieces of work and worker seconds by node in this call, added to those of earlier calls.
    """
    manifest = store.read_json(MANIFEST)
    nodes: NodeWork = manifest["stages"].get(stage, {}).get("nodes", {})
    for node, entry in (work or {}).items():
        before = nodes.setdefault(node, {"pieces": 0, "seconds": 0.0})
        nodes[node] = {name: round(before[name] + value, 3) for name, value in entry.items()}
    manifest["stages"][stage] = {**state, **({"nodes": nodes} if nodes else {}), "at": now()}
    store.write_json(MANIFEST, manifest)


def record_retries(store: Storage, retries: Mapping[str, Mapping[Why, int]]) -> None:
    """Add retries, by stage and cause, to those of earlier calls."""
    manifest = store.read_json(MANIFEST)
    for stage, counts in retries.items():
        total = manifest.setdefault("retries", {}).setdefault(stage, {})
        for why, times in counts.items():
            total[why] = total.get(why, 0) + times
    store.write_json(MANIFEST, manifest)


def record_machines(store: Storage, kinds: Sequence[str]) -> None:
    """Record the number of nodes of each kind in the manifest; `kinds` has the kind of each node."""
    store.write_json(MANIFEST, {**store.read_json(MANIFEST), "machines": dict(Counter(kinds))})


def versions() -> dict[str, str]:
    """Installed versions of the packages that results depend on."""
    installed = {}
    for package in PACKAGES:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            continue
    return installed


def git_revision() -> str | None:
    """The git commit of the working directory; None outside a checkout."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def now() -> str:
    """The time in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")
