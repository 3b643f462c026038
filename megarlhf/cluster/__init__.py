"""The processes of a run, kept by Ray or by torchrun: placement, the ranks of models, engines."""
