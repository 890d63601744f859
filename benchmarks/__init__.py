"""Benchmarks: run from the checkout, `python -m benchmarks.report`, or by asv."""
