"""One model on its ranks: forward, train step, checkpoint."""
