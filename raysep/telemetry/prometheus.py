"""The Prometheus metrics of a run or sweep. Names contain units.

Labels have low cardinality: stages, models, splits, states and layers of one run; never images or paths.
"""

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

from raysep.telemetry.worker_stats import Report

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
STATES = ("finished", "stopped", "failed")


class Metrics:
    """The metrics of one run, in a registry of their own, since a process may have several runs."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.build = Info("raysep_build", "Version and git revision.", registry=registry)
        self.run = Info("raysep_run", "Name and directory of the run.", registry=registry)
        self.progress = Gauge("raysep_stage_progress_ratio", "Share of work done.", ["stage"], registry=registry)
        self.progress_time = Gauge(
            "raysep_last_progress_timestamp_seconds", "Unix time of the last progress.", registry=registry
        )
        self.running = Gauge(
            "raysep_running", "1 while a run, a sweep or a round of a schedule is working.", ["kind"], registry=registry
        )
        self.failed = Gauge("raysep_failed", "1 if it ended with an error.", registry=registry)
        self.stage_seconds = Gauge(
            "raysep_stage_duration_seconds", "Wall-clock time of a stage so far.", ["stage"], registry=registry
        )
        self.images = Counter(
            "raysep_images_embedded", "Images passed through a checkpoint.", ["model", "split"], registry=registry
        )
        self.images_failed = Counter(
            "raysep_images_failed", "Unreadable images.", ["model", "split"], registry=registry
        )
        self.bytes_read = Counter("raysep_read_bytes", "Bytes read by workers.", ["stage"], registry=registry)
        self.bytes_written = Counter("raysep_written_bytes", "Bytes written by workers.", ["stage"], registry=registry)
        self.batch = Histogram(
            "raysep_batch_seconds",
            "Time to read, decode and embed one batch.",
            ["model"],
            buckets=SECONDS,
            registry=registry,
        )
        self.forward = Histogram(
            "raysep_forward_seconds", "Forward pass time per batch.", ["model"], buckets=SECONDS, registry=registry
        )
        self.waited = Histogram(
            "raysep_queue_wait_seconds",
            "Idle time of a worker before each piece of work.",
            ["stage"],
            buckets=SECONDS,
            registry=registry,
        )
        self.retries = Counter(
            "raysep_retries",
            "Retries, by cause: a lost worker, a transient storage error, GPU memory that ran out.",
            ["stage", "why"],
            registry=registry,
        )
        self.trials = Gauge("raysep_trials", "Trials, by final state.", ["state"], registry=registry)
        self.scores = Counter("raysep_scores_computed", "Computed scores.", ["model", "split"], registry=registry)
        self.layers_scored = Counter("raysep_layers_scored", "Scored layers.", ["model", "split"], registry=registry)
        self.kmeans_iterations = Counter("raysep_kmeans_iterations", "Lloyd iterations of k-means.", registry=registry)
        self.gpu_peak = Gauge(
            "raysep_gpu_memory_peak_bytes", "Peak GPU memory of torch.", ["stage", "node"], registry=registry
        )
        self.accuracy = Gauge(
            "raysep_seen_accuracy_ratio", "Accuracy on seen classes, last step.", ["model"], registry=registry
        )
        self.g = Gauge("raysep_g", "g of the headline metric, last step, unseen.", ["model"], registry=registry)
        self.corrected_g = Gauge(
            "raysep_corrected_g", "g after correction for selection bias.", ["model"], registry=registry
        )
        self.layer_g = Gauge("raysep_layer_g", "g_i of each layer.", ["model", "layer"], registry=registry)
        self.sweep_cells = Gauge("raysep_sweep_cells", "Cells of the sweep.", ["sweep", "state"], registry=registry)
        self.sweep_success = Gauge(
            "raysep_sweep_last_success_timestamp_seconds",
            "Unix time of the last successful round of the sweep.",
            ["sweep"],
            registry=registry,
        )
        self.regressions = Gauge(
            "raysep_sweep_regressions", "Cells of the last round that regressed.", ["sweep"], registry=registry
        )
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
