"""Advantages, KL, losses: pure tensor functions, and one registry row an algorithm."""
