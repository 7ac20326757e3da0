"""What a run says of itself: to a person (progress), to its log (journal), to Prometheus (metrics, exposition)."""

from raysep.telemetry.progress import Bar, Telemetry

__all__ = ["Bar", "Telemetry"]
