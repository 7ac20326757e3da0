"""The Prometheus metrics of a run or sweep. Names contain units.

Labels have low cardinality: stages, models, splits, states and layers of one run; never images or paths.
"""

from collections.abc import Mapping
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

from raysep.telemetry.worker_stats import Report

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
STATES = ("finished", "stopped", "failed")


class Metrics:
    """The metrics of one run, in a registry of their own, since a process may have several runs."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        counter, gauge = partial(Counter, registry=self.registry), partial(Gauge, registry=self.registry)
        histogram = partial(Histogram, buckets=SECONDS, registry=self.registry)
        self.build = Info("raysep_build", "Version and git revision.", registry=self.registry)
        self.run = Info("raysep_run", "Name and directory of the run.", registry=self.registry)
        self.progress = gauge("raysep_stage_progress_ratio", "Share of work done.", ["stage"])
        self.progress_time = gauge("raysep_last_progress_timestamp_seconds", "Unix time of the last progress.")
        self.running = gauge("raysep_running", "1 while a run, a sweep or a round of a schedule is working.", ["kind"])
        self.failed = gauge("raysep_failed", "1 if the run or sweep ended with an error.")
        self.stage_seconds = gauge("raysep_stage_duration_seconds", "Wall-clock time of a stage so far.", ["stage"])
        self.images = counter("raysep_images_embedded", "Images passed through a checkpoint.", ["model", "split"])
        self.images_failed = counter("raysep_images_failed", "Unreadable images.", ["model", "split"])
        self.bytes_read = counter("raysep_read_bytes", "Bytes read by workers.", ["stage"])
        self.bytes_written = counter("raysep_written_bytes", "Bytes written by workers.", ["stage"])
        self.batch = histogram("raysep_batch_seconds", "Time to read, decode and embed one batch.", ["model"])
        self.forward = histogram("raysep_forward_seconds", "Forward pass time per batch.", ["model"])
        waited = "Idle time of a worker before each piece of work."
        self.waited = histogram("raysep_queue_wait_seconds", waited, ["stage"])
        causes = "Retries, by cause: a lost worker, a transient storage error, GPU memory that ran out."
        self.retries = counter("raysep_retries", causes, ["stage", "why"])
        self.trials = gauge("raysep_trials", "Trials, by final state.", ["state"])
        self.scores = counter("raysep_scores_computed", "Computed scores.", ["model", "split"])
        self.layers_scored = counter("raysep_layers_scored", "Scored layers.", ["model", "split"])
        self.kmeans_iterations = counter("raysep_kmeans_iterations", "Lloyd iterations of k-means.")
        self.gpu_peak = gauge("raysep_gpu_memory_peak_bytes", "Peak GPU memory of torch.", ["stage", "node"])
        self.accuracy = gauge("raysep_seen_accuracy_ratio", "Accuracy on seen classes, at the last step.", ["model"])
        self.g = gauge("raysep_g", "Separability g on unseen classes by the headline metric, last step.", ["model"])
        self.corrected_g = gauge("raysep_corrected_g", "Separability g, corrected for selection bias.", ["model"])
        self.layer_g = gauge("raysep_layer_g", "g_i of each layer.", ["model", "layer"])
        self.sweep_cells = gauge("raysep_sweep_cells", "Cells of the sweep.", ["sweep", "state"])
        success = "Unix time of the last successful round of the sweep."
        self.sweep_success = gauge("raysep_sweep_last_success_timestamp_seconds", success, ["sweep"])
        regressed = "Cells of the last round that regressed."
        self.regressions = gauge("raysep_sweep_regressions", regressed, ["sweep"])
        self._gpu_peaks: dict[tuple[str, str], int] = {}

    def absorb(self, stage: str, report: Report, model: str) -> None:
        """Add a worker's report to the metrics."""
        counts = report.counts
        self.waited.labels(stage).observe(report.waited_s)
        self.bytes_read.labels(stage).inc(counts.get("bytes_read", 0))
        self.bytes_written.labels(stage).inc(counts.get("bytes_written", 0))
        self.kmeans_iterations.inc(counts.get("kmeans_iterations", 0))
        for name, histogram in (("batch", self.batch), ("forward", self.forward)):
            for seconds in report.samples.get(name, ()):
                histogram.labels(model).observe(seconds)
        if report.peak_gpu_bytes is not None:
            key = stage, report.node
            self._gpu_peaks[key] = max(report.peak_gpu_bytes, self._gpu_peaks.get(key, 0))
            self.gpu_peak.labels(*key).set(self._gpu_peaks[key])

    def trials_ended(self, states: Mapping[str, int]) -> None:
        """Set the number of trials in each final state."""
        for state in STATES:
            self.trials.labels(state).set(states.get(state, 0))
