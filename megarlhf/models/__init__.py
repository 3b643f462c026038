"""Build a Megatron-Core model from a Hugging Face configuration, and move its weights."""
