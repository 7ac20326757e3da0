"""Sections that results do not depend on: compute and monitoring."""

from typing import Self

from pydantic import Field, model_validator

from raysep.config.base import Section


class NodeShape(Section):
    """Nodes that the autoscaler of the cluster could add."""

    cpus: float = Field(gt=0, description="of each node")
    gpus: float = Field(0, ge=0, description="of each node")
    nodes: int = Field(1, ge=1, le=1000, description="upper limit")


class ComputeConfig(Section):
    """CPUs and GPUs per process, and the numbers of processes. Unset values are planned from the cluster."""

    cpus_per_trial: float | None = Field(None, gt=0, description="CPUs of a training process")
    gpus_per_trial: float | None = Field(None, ge=0, description="GPUs of a training process")
    embed_actors: int | None = Field(None, ge=1, description="processes that embed")
    cpus_per_embed_actor: int | None = Field(None, ge=1, description="CPUs of each")
    gpus_per_embed_actor: float | None = Field(None, ge=0, description="GPUs of each")
    decode_actors: int | None = Field(None, ge=0, description="CPU processes that decode for GPU actors; 0: none")
    score_actors: int | None = Field(None, ge=1, description="processes that score")
    gpus_per_score_actor: float | None = Field(None, ge=0, description="GPUs of each")
    may_add: list[NodeShape] = Field(
        default_factory=list, description="nodes that the autoscaler could add but Ray doesn't report"
    )

    @property
    def addable(self) -> list[tuple[float, float]]:
        """CPUs and GPUs of each node of `may_add`."""
        return [(shape.cpus, shape.gpus) for shape in self.may_add for _ in range(shape.nodes)]


class MonitoringConfig(Section):
    """Prometheus metrics of a run. For a password, or access from other machines, use a reverse proxy."""

    port: int | None = Field(0, ge=0, le=65535, description="of /metrics; 0: a free port, printed; null: not served")
    address: str = Field("127.0.0.1", description="of the server; 0.0.0.0 for all interfaces")
    textfile: str | None = Field(None, description="written at the end, for node_exporter: .../name.prom")
    pushgateway: str | None = Field(None, description="pushed to at the end: host:port or URL")

    @model_validator(mode="after")
    def _suffix(self) -> Self:
        if self.textfile is not None and not self.textfile.endswith(".prom"):
            raise ValueError(f"node_exporter reads *.prom only: textfile is {self.textfile}")
        if self.pushgateway is not None and "@" in self.pushgateway:
            raise ValueError("the pushgateway URL is stored with the results, so it must not contain a password")
        return self
