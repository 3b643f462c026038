"""Checkpoints from Hugging Face's format to Megatron's and back: see docs/checkpoints.md."""
