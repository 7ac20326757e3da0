"""Metrics from the notes in a sweep's directory."""

from pathlib import Path

from raysep.storage.store import Storage
from raysep.sweeps import notes
from raysep.sweeps.config import SweepConfig
from raysep.telemetry.prometheus import Metrics


def test_missing_or_damaged_notes_set_no_metrics(tmp_path: Path) -> None:
    config = SweepConfig.model_validate({"name": "s", "root": str(tmp_path), "base": {}, "matrix": {}})
    metrics = Metrics()
    for content in (None, b"", b"{}", b"[]", b"null"):
        for name in (notes.SUCCESS, notes.LAST):
            if content is not None:
                Storage(str(tmp_path)).write_bytes(name, content)
        notes.publish_last(config, metrics)
        sample = metrics.registry.get_sample_value
        assert sample("raysep_sweep_last_success_timestamp_seconds", {"sweep": "s"}) is None
        assert sample("raysep_sweep_regressions", {"sweep": "s"}) is None
