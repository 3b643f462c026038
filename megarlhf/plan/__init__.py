"""Will it fit, and how fast: the trainer's own build and steps on fake ranks, before a run starts."""
