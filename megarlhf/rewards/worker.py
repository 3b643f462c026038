"""A process that runs the user's reward function: ``python -m megarlhf.rewards.worker``.

`worker_process` starts it and talks with it over a socket of the two; nothing else can.
"""

import asyncio
import faulthandler
import os
import sys
from multiprocessing.connection import Connection

from megarlhf.errors import UserError
from megarlhf.rewards.function_file import (
    RewardFunction,
    call_reward_function,
    load_reward_function,
)
from megarlhf.rewards.scorer import Batch, CallFailed, Scores

GRACE_S = 5.0  # the owner kills a process that is late; this is for one without an owner


def main() -> None:
    """Load the function and answer batches until the owner closes the socket."""
    descriptor, path, timeout_s = int(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    os.set_inheritable(descriptor, False)  # what the function starts must not keep it open
    connection = Connection(descriptor)
    try:
        function = load_reward_function(path)
    except UserError as error:
        connection.send(error)
        return
    connection.send(None)
    process = os.getpid()
    with asyncio.Runner() as runner:  # one event loop for all calls: the function may keep sessions
        while True:
            try:
                batch = connection.recv()
            except EOFError:
                return
            # Works without the interpreter's help, which a hung regular expression never gives.
            faulthandler.dump_traceback_later(timeout_s + GRACE_S, exit=True)
            outcome = runner.run(_outcome(function, batch))
            if os.getpid() != process:  # the function forked, and its child came back
                os._exit(0)
            faulthandler.cancel_dump_traceback_later()
            connection.send(outcome)


async def _outcome(function: RewardFunction, batch: Batch) -> Scores | CallFailed:
    try:
        return await call_reward_function(function, batch)
    except CallFailed as failure:
        return failure


if __name__ == "__main__":
    main()
