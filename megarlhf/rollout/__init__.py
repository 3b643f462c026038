"""vLLM engines, sampling."""
