"""The stream of weights from the trainer's ranks into vLLM engines."""
