"""Everything an offline run reads, read and checked before any model is built."""

from dataclasses import dataclass

from megarlhf.config import checks
from megarlhf.config.schema import OfflineConfig
from megarlhf.data.batches import ExampleStream
from megarlhf.data.store import StoredRows
from megarlhf.errors import UserError
from megarlhf.models.lora.attach import Adapters
from megarlhf.models.lora.wanted import adapters_of
from megarlhf.models.spec import ModelSpec
from megarlhf.parallel.topology import Topology
from megarlhf.trainer.methods import METHODS, Method
from megarlhf.trainer.rl_inputs import (
    check_vocabulary,
    checked,
    load_tokenizer,
    read_language_model,
)
from megarlhf.trainer.tokenized import with_cache


@dataclass(frozen=True)
class OfflineInputs:
    """What `prepare` found.

    Attributes:
        method: The method's row of the table.
        spec: The model that is trained.
        topology: The model's layout.
        adapters: The adapters that are trained instead of the model; None: the model is.
        rows: The rows to train on.
        held_out: The rows to evaluate on; None if the settings name none.
        stream: The training rows, in the order of training.
        total_steps: Optimizer steps of the whole run.
    """

    method: Method
    spec: ModelSpec
    topology: Topology
    adapters: Adapters | None
    rows: StoredRows
    held_out: StoredRows | None
    stream: ExampleStream
    total_steps: int


def prepare(config: OfflineConfig, world: int) -> OfflineInputs:
    """Read and check the configuration, the model's description and the data.

    Raises:
        UserError: Anything is missing, malformed or does not fit together.
    """
    method = METHODS[type(config)]
    checks.check_offline(config, world)
    if method.scalar_head:
        spec = checked(ModelSpec.read_scalar(config.model.path))
    else:
        spec = read_language_model(config.model.path)
    topology = Topology.of(config.model.parallel, world)
    topology.layers_of(spec.num_layers, 0)
    adapters = adapters_of(config.lora, spec, topology, config.train.seed)
    tokenizer = load_tokenizer(config.model.path)
    method.check(config, spec, tokenizer, world)
    data = with_cache(config.data, config.output)
    rows = method.load(data, tokenizer)
    evaluates = data.eval is not None or data.eval_split is not None
    held_out = method.load(data, tokenizer, held_out=True) if evaluates else None
    for part, where in ((rows, "data.train"), (held_out, "data.eval")):
        if part is None:
            continue
        check_vocabulary([[part.highest_token]], tokenizer, spec)
        if len(part) < method.least_rows:
            raise UserError(
                f"{method.name} needs at least {method.least_rows} rows, there are {len(part)}",
                where=where,
                fix="give more rows",
            )
    stream = ExampleStream(rows, seed=config.train.seed, shuffle=data.shuffle)
    total = config.train.steps or stream.steps_for(config.train.epochs, config.train.batch_size)
    return OfflineInputs(method, spec, topology, adapters, rows, held_out, stream, total)
