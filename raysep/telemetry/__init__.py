"""Progress for the user, the run's log (journal), and Prometheus metrics (prometheus, exposition)."""

from raysep.telemetry.progress import Bar, Telemetry

__all__ = ["Bar", "Telemetry"]
