"""A model whose ranks are the program's own: every rank calls the same methods together."""

from typing import Any

import torch.distributed as dist

from megarlhf.engine.model_worker import ModelWorker


class LaunchedGroup:
    """Answers as a group of Ray actors does, on every rank.

    Args:
        worker: This rank's part of the model, built.
    """

    def __init__(self, worker: ModelWorker) -> None:
        self._worker = worker

    def call(self, method: str, *args: Any) -> list[Any]:
        """Run a method here; the other ranks do as well."""
        return [getattr(self._worker, method)(*args)]

    def results(self, answers: list[Any]) -> list[Any]:
        """What a `call` returned, on every rank."""
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, answers[0])
        return gathered

    def run(self, method: str, *args: Any) -> list[Any]:
        """Both."""
        return self.results(self.call(method, *args))

    def merged(self, method: str, *args: Any) -> dict[int, Any]:
        """Call a method whose answers are dictionaries of disjoint shares, and join them."""
        answers = self.run(method, *args)
        return {index: value for answer in answers for index, value in answer.items()}
