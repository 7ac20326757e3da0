"""From Python: `raysep.score`, `compare`, `embed`, `run` and `open`; and embeddings by other programs."""
