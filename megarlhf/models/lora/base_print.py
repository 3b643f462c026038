"""Which model adapters were trained for: the fingerprint of its weights, kept beside them.

PEFT does not look at it. Adapters without one are taken as they are, if their shapes fit.
"""

import json
from pathlib import Path

import torch.distributed as dist

from megarlhf.errors import UserError
from megarlhf.models.spec import ModelSpec
from megarlhf.models.weights import fingerprint
from megarlhf.models.weights.loading import open_weights
from megarlhf.models.weights.row_files import full_disk_is_an_error

FILE = "base_fingerprint.json"


def of_base(spec: ModelSpec, rank: int = 0, world: int = 1) -> str:
    """The fingerprint of a model's directory. Collective over several ranks, each reads a share.

    Where the directory has its fingerprint in a file, as all that this project writes have, that is
    read instead.
    """
    files = open_weights(spec)
    prints = fingerprint.read(files.directory)
    if prints is not None:
        return fingerprint.of_model(prints)
    with files.rows() as rows:
        mine = {n: fingerprint.of_rows(rows, n) for n in sorted(files.tensors)[rank::world]}
    shares = [mine]
    if world > 1:
        shares = [{} for _ in range(world)]
        dist.all_gather_object(shares, mine)
    return fingerprint.of_model({n: found for share in shares for n, found in share.items()})


def write(directory: Path, found: str) -> None:
    """Keep it beside adapters."""
    content = {"algorithm": fingerprint.ALGORITHM, "model": found}
    with full_disk_is_an_error(directory):
        (directory / FILE).write_text(json.dumps(content, indent=1) + "\n")


def check(directory: Path, spec: ModelSpec, rank: int = 0, world: int = 1) -> None:
    """Adapters belong to a model, as far as their directory says. Collective: see `of_base`.

    Raises:
        UserError: They were trained for another one.
    """
    file = directory / FILE
    if not file.is_file():
        return
    try:
        content = json.loads(file.read_text())
        expected = content["model"] if content["algorithm"] == fingerprint.ALGORITHM else None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"the fingerprint does not parse: {error!r}", where=str(file)) from None
    if of_base(spec, rank, world) != expected:
        raise UserError(
            f"these adapters were trained for another base than {spec.path}: its weights differ",
            where=str(file),
            fix="give the base that they were trained for; if its files were changed on purpose "
            "(another dtype, say), remove this file",
        )
