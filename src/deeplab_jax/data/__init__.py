"""Datasets: sources, transforms, batches. No jax in here: it runs in worker threads."""
