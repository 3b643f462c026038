"""One model on its ranks: forward passes, optimizer steps, memory, checkpoints."""
