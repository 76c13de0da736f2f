"""DeepLab v3 and v3+ in pure Flax: build, train, evaluate, predict."""

import importlib

__version__ = "0.1.0"

# Fetched when first asked for: `import deeplab_jax` alone loads no JAX.
_LAZY = {"count": "counting", "load": "segmenter"}


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
