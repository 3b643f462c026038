"""vLLM engines, sampling, rewards."""
