"""A small model, a task with a checkable answer and its reward: what `make demo` trains."""
