"""raysep: which layer of a vision model generalizes best to classes it was never trained on.

The method is the one of Dyballa, Gerritz and Zucker, "A separability-based approach to quantifying
generalization: which layer is best?" (arXiv:2405.01524). See raysep/README.md for how an image leads to the score g.
"""

__version__ = "0.1.0"
