"""Records, prompt and supervised streams, packing. Imports neither megatron, vllm nor ray."""
