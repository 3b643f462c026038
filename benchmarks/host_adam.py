"""An optimizer step with its state on the host against one with it on the device, of bf16 parameters.

On a machine without a GPU both are one memory: the ratio is what gradients and weights cost that pass
through the slots, and the seconds tell how fast a host's processors compute Adam.
"""

import argparse
from pathlib import Path

import torch

from benchmarks.timing import table, take_turns, write_json
from megarlhf.engine.adam import GroupStepAdam
from megarlhf.engine.host_adam import HostAdam
from megarlhf.parallel import device


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.host_adam")
    parser.add_argument("--millions", type=int, default=64, help="parameters")
    parser.add_argument("--tensors", type=int, default=16, help="of equal sizes")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    where = device.prepare()
    torch.set_num_threads(options.threads)
    size = options.millions * 10**6 // options.tensors
    weights = [torch.randn(size, device=where).bfloat16() for _ in range(options.tensors)]
    gradients = [torch.randn(size, device=where) for _ in weights]
    mains = [weight.float() for weight in weights]
    on_device = GroupStepAdam([{"params": mains}], lr=1e-6)
    on_host = HostAdam([{"params": weights}], lr=1e-6)
    on_host.begin(options.threads)
    for weight, main_, gradient in zip(weights, mains, gradients, strict=True):
        main_.grad = weight.decoupled_grad = gradient

    @torch.no_grad()
    def step_on_device() -> None:
        on_device.step()
        for weight, main_ in zip(weights, mains, strict=True):
            weight.copy_(main_)

    ways = {"device": step_on_device, "host": on_host.step}
    seconds = take_turns(ways, rounds=options.rounds)
    rows = [
        {
            "states on the": name,
            "seconds": taken,
            "10^6 parameters/s": size * options.tensors / taken / 1e6,
            "ratio": taken / seconds["device"],
        }
        for name, taken in seconds.items()
    ]
    print(f"{options.millions} million parameters, {options.threads} threads, on {where}")
    print(table(rows))
    write_json(options.json, rows)


if __name__ == "__main__":
    main()
