"""Topology and process groups, the CPU device, and operations that run over several ranks."""
