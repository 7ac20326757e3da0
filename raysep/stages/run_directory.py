"""A run directory: to which configuration and images it belongs, and the state of its stages."""

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
# Of the layout of run directories and the meaning of their cache keys. Another one is refused.
FORMAT = 2
# Pieces of work and worker seconds of each node.
Bill = dict[str, dict[str, float]]
PACKAGES = ("ray", "torch", "torchvision", "timm", "scikit-learn", "numpy", "pyarrow", "pillow", "cuml-cu13")


def check_belongs(store: Storage, config: RunConfig, split: pa.Table) -> bool:
    """Whether the directory is a run of this configuration and these images already.

    Returns:
        False where there is nothing yet.

    Raises:
        RunDirError: it belongs to another configuration or other images, and says which differ.
    """
    try:
        old = yaml.safe_load(store.read_bytes(CONFIG))
    except FileNotFoundError:
        # A call that was stopped while it began the run may have left these.
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
                    f"{store.display()} belongs to another configuration; take another --run-dir, or undo:",
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
    """Raise RunDirError for a run of another format, which would be read half and computed again half."""
    try:
        manifest = store.read_json(MANIFEST)
    except FileNotFoundError:
        return
    with store.understood(MANIFEST):
        found, by = manifest.get("format", 1), manifest.get("raysep", "unknown")
    if found != FORMAT:
        raise RunDirError(
            f"{store.display()} is a run of format {found} (raysep {by}), and this raysep {__version__} reads "
            f"and writes format {FORMAT}: take another --run-dir to compute it again, or read it with the raysep that "
            "wrote it"
        )


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """Paths of models as workers must know them, and as a run's config.yaml has them: theirs is another directory."""
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
    """Write the split, a first manifest, and last the resolved configuration, which makes the directory a run.

    Args:
        remarks: what there is to say of the images; kept, so that later calls say the same.
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
    """What there was to say of the images when the run was begun, a sentence each."""
    remarks = store.read_json(MANIFEST).get("data", {})
    return [*remarks.get("left_out", []), *remarks.get("notes", [])]


def data_hash(store: Storage) -> str | None:
    """Hash of the images and their roles; None where the directory doesn't say it."""
    try:
        found: str | None = store.read_json(MANIFEST).get("data_sha256")
    except FileNotFoundError:
        return None
    return found


def record(store: Storage, stage: str, bill: Bill | None = None, **state: Any) -> None:
    """Set a stage's state in the manifest.

    Args:
        bill: what ran on which node in this call, added to what ran there before.
    """
    manifest = store.read_json(MANIFEST)
    nodes: Bill = manifest["stages"].get(stage, {}).get("nodes", {})
    for node, entry in (bill or {}).items():
        before = nodes.setdefault(node, {"pieces": 0, "seconds": 0.0})
        nodes[node] = {name: round(before[name] + value, 3) for name, value in entry.items()}
    manifest["stages"][stage] = {**state, **({"nodes": nodes} if nodes else {}), "at": now()}
    store.write_json(MANIFEST, manifest)


def record_retries(store: Storage, again: Mapping[str, Mapping[Why, int]]) -> None:
    """Add how often something was begun again, by stage and by why, to what it was in the calls before."""
    manifest = store.read_json(MANIFEST)
    for stage, counts in again.items():
        known = manifest.setdefault("retries", {}).setdefault(stage, {})
        for why, times in counts.items():
            known[why] = known.get(why, 0) + times
    store.write_json(MANIFEST, manifest)


def record_machines(store: Storage, kinds: Sequence[str]) -> None:
    """Set what the cluster is made of: how many nodes of each kind, in the last call that had work."""
    store.write_json(MANIFEST, {**store.read_json(MANIFEST), "machines": dict(Counter(kinds))})


def versions() -> dict[str, str]:
    """Installed versions of the packages that results depend on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def git_revision() -> str | None:
    """The commit of the working directory, or None outside a checkout."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def now() -> str:
    """The time in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")
