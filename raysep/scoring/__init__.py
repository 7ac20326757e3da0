"""Class separation of an embedding: metrics, and the backends that compute them."""
