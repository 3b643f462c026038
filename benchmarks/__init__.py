"""Timings, as ratios taken in one run. Each file is a command: python -m benchmarks.NAME."""
