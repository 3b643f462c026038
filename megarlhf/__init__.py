"""RLHF for models too large for ZeRO: Megatron-Core trains, vLLM generates, Ray places and drives."""

__version__ = "0.1.0"
