"""How well an embedding keeps classes apart: metrics, backends, and Ray around them."""
