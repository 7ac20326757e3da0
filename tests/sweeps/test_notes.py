"""Notes of a sweep's directory as metrics."""

from pathlib import Path

from raysep.storage.store import Storage
from raysep.sweeps import notes
from raysep.sweeps.config import SweepConfig
from raysep.telemetry.prometheus import Metrics


def test_notes_that_are_missing_or_damaged_are_no_metrics(tmp_path: Path):
    config = SweepConfig.model_validate({"name": "s", "root": str(tmp_path), "base": {}, "matrix": {}})
    value = Metrics()
    for content in (None, b"", b"{}", b"[]", b"null"):
        for name in (notes.SUCCESS, notes.LAST):
            if content is not None:
                Storage(str(tmp_path)).write_bytes(name, content)
        notes.report_last(config, value)
        sample = value.registry.get_sample_value
        assert sample("raysep_sweep_last_success_timestamp_seconds", {"sweep": "s"}) is None
        assert sample("raysep_sweep_regressions", {"sweep": "s"}) is None
