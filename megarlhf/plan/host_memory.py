"""What a GPU's models keep in the memory of its host."""

from collections.abc import Sequence

from megarlhf.plan.fake_run import AVERAGE, MAIN, OPTIMIZER, WEIGHTS, RankRun

KEPT = (
    WEIGHTS,
    MAIN,
    OPTIMIZER,
    AVERAGE,
)  # of a model that is away from its GPU; gradients are not


def bytes_on_host(processes: Sequence[Sequence[RankRun]], *, shared: bool, engines: bool) -> int:
    """Bytes at most: optimizer states with ``optimizer.offload=states``, and models that are away.

    Args:
        processes: The models of each process on the GPU.
        shared: Whether they take turns.
        engines: Whether engines have a turn, too: then all of them are away at a time.
    """
    always = sum(run.host for process in processes for run in process)
    if not shared:
        return always
    asleep = [sum(run.resting.get(kind, 0) for run in runs for kind in KEPT) for runs in processes]
    return always + sum(asleep) - (0 if engines else min(asleep))
