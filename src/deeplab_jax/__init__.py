"""DeepLab v3 and v3+ in pure Flax: build, train, evaluate, predict."""

__version__ = "0.1.0"
