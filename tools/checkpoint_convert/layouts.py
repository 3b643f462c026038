"""The layout that a Megatron checkpoint is written for."""

from megarlhf.config.layout_checks import check_parallel
from megarlhf.config.schema import ParallelConfig
from megarlhf.errors import UserError
from megarlhf.models.spec import ModelSpec
from megarlhf.parallel.topology import Topology

_OPTIONS = {  # what a configuration calls them
    "model.parallel.virtual_pipeline": "--vpp",
    "model.parallel.pipeline": "--pp",
    "model.parallel.tensor": "--tp",
    "model.parallel.expert": "--ep",
}


def topology_of(spec: ModelSpec, *, tp: int, pp: int, vpp: int, ep: int) -> Topology:
    """One copy of the model, its experts over as many data-parallel ranks as they need.

    Raises:
        UserError: The model cannot be laid out so.
    """
    parallel = ParallelConfig(
        tensor=tp, pipeline=pp, virtual_pipeline=vpp, expert=ep, sequence=tp > 1
    )
    world = tp * pp * ep
    for option, size in (("--tp", tp), ("--pp", pp), ("--vpp", vpp), ("--ep", ep)):
        if size < 1:
            raise UserError(f"must be at least 1, got {size}", where=option)
    try:
        check_parallel(parallel, spec.hf_config, world, "the layout")
    except UserError as error:
        raise UserError(
            _in_options(error.what), where=_in_options(error.where), fix=_in_options(error.fix)
        ) from None
    return Topology.of(parallel, world)


def _in_options(text: str | None) -> str:
    text = text or ""
    for key, option in _OPTIONS.items():
        text = text.replace(key, option)
    return text


def describe(topology: Topology) -> dict[str, int]:
    """To note in a checkpoint."""
    return {
        "tensor": topology.tp,
        "pipeline": topology.pp,
        "virtual_pipeline": topology.vpp,
        "expert": topology.ep,
    }
