"""Proof that every layout computes the same function: ``megarlhf parity``."""
