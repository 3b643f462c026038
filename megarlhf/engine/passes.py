"""Passes of one model over packed micro-batches: Megatron's schedule, what comes out."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from megarlhf.data import packing
from megarlhf.data.records import MicroBatch
from megarlhf.data.records import Sequence as TokenSequence
from megarlhf.engine.shares import Shares, packs_last
from megarlhf.models.rotary import PackedLayout
from megarlhf.models.spec import ModelSpec
from megarlhf.parallel import context
from megarlhf.parallel.continued import continued_runs
from megarlhf.parallel.device import put
from megarlhf.parallel.logprobs import vocab_parallel_logprobs
from megarlhf.parallel.topology import Topology

if TYPE_CHECKING:
    from megatron.core.process_groups_config import ProcessGroupCollection

    from megarlhf.models.selected_tokens import SelectedTokens


class Passes(Shares):
    """How one model is run; every method that runs it is collective over its ranks.

    Args:
        spec: The model.
        model: This rank's chunks of it, wrapped for data parallelism where it is trained.
        topology: The layout.
        groups: Its process groups.
        rank: This rank.
        device: Where it computes.
        micro_batch_tokens: Most tokens a packed forward pass holds.
        share: Whether beginnings that sequences have in common, such as prompts, are run once.
    """

    def __init__(
        self,
        spec: ModelSpec,
        model: list[Any],
        topology: Topology,
        groups: "ProcessGroupCollection",
        rank: int,
        device: torch.device,
        micro_batch_tokens: int,
        *,
        share: bool = False,
    ) -> None:
        super().__init__(
            topology, micro_batch_tokens, share=share, with_last=packs_last(spec, share)
        )
        self.spec, self.groups = spec, groups
        self.place, self.device = topology.coordinates(rank), device
        self._model = model
        self._selected: SelectedTokens | None = None
        if self.is_last_stage and spec.scalar_head is None:
            self._selected = selected_tokens(model[-1], groups)

    @property
    def is_last_stage(self) -> bool:
        """Whether this rank has the model's output."""
        return self.place.pp == self.topology.pp - 1

    def micro_batches(
        self,
        sequences: Sequence[TokenSequence],
        groups: Sequence[tuple[int, ...]] | None = None,
    ) -> list[MicroBatch]:
        """This data-parallel rank's share, packed."""
        return [
            packing.collate(
                sequences,
                indices,
                pad_to_multiple=self.pad_to_multiple,
                share=self.share,
                with_last=self.with_last,
            )
            for indices in self.shares(sequences, groups)[self.place.dp]
        ]

    def run(
        self,
        batches: list[MicroBatch],
        consume: Any,
        *,
        forward_only: bool,
        trained_only: bool = False,
    ) -> list[Any]:
        """Megatron's schedule over the micro-batches; what ``consume`` returned on the last stage.

        With ``trained_only`` a language model's output is of the tokens that are trained on.
        """
        from megatron.core.pipeline_parallel import get_forward_backward_func

        batches = [context.local_part(batch, self.groups.cp).to(self.device) for batch in batches]

        def forward_step(iterator: Iterator[MicroBatch], model: Any) -> tuple[torch.Tensor, Any]:
            batch = next(iterator)
            layout = PackedLayout(
                batch.lengths,
                batch.position_ids,
                max(batch.lengths),
                continued_runs(batch.lengths, batch.starts, batch.behind, self.device),
            )
            if self._selected is not None:
                self._selected.rows = self._trained(batch) if trained_only else None
            output = model(
                input_ids=batch.token_ids[None],
                position_ids=batch.position_ids[None],
                attention_mask=None,
                packed_seq_params=layout,
                padding_mask=self._padding_mask(batch, model),
            )
            return output, lambda output, **kwargs: consume(output, batch, **kwargs)

        iterators = [iter(batches) for _ in self._model]
        outputs = get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=iterators if len(iterators) > 1 else iterators[0],
            model=self._model if len(self._model) > 1 else self._model[0],
            num_microbatches=len(batches),
            seq_length=self.micro_batch_tokens,
            micro_batch_size=1,
            forward_only=forward_only,
            collect_non_loss_data=forward_only,
        )
        if self.spec.num_experts:
            from megarlhf.models.mixture import forget_last_pass

            for chunk in self._model:
                forget_last_pass(chunk)
        return outputs

    def _padding_mask(self, batch: MicroBatch, model: Any) -> torch.Tensor | None:
        """bool [1, T] for a mixture's auxiliary losses: padding is routed, but does not count."""
        if not self.spec.num_experts:
            return None
        mask = batch.padding
        inner = getattr(model, "module", model)
        if self.topology.sequence_parallel and not inner.pre_process:
            # The first stage's model cuts the mask itself; the later ones do not.
            mask = mask.chunk(self.topology.tp)[self.place.tp]
        return mask[None]

    def token_outputs(
        self,
        output: torch.Tensor,
        batch: MicroBatch,
        temperature: float | torch.Tensor,
        *,
        with_entropy: bool = False,
        trained_only: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[T] in fp32 or wider: the targets' log-probabilities, or a scalar head's values.

        With ``trained_only`` the former are 0 at all other tokens: see `run`.
        """
        if self.spec.scalar_head is not None:
            values = output.flatten()
            return values.to(torch.promote_types(values.dtype, torch.float32)), None
        rows = self._trained(batch) if trained_only else slice(None)
        found = vocab_parallel_logprobs(
            output.view(-1, output.shape[-1]),
            batch.targets[rows],
            vocab_size=self.spec.vocab_size,
            group=self.groups.tp,
            temperature=temperature[rows] if torch.is_tensor(temperature) else temperature,
            with_entropy=with_entropy,
        )
        if not trained_only:
            return found
        logprobs, entropy = (
            None if part is None else part.new_zeros(len(batch.targets)).index_put((rows,), part)
            for part in found
        )
        return logprobs, entropy

    def _trained(self, batch: MicroBatch) -> torch.Tensor:
        return put(torch.tensor(batch.trained, dtype=torch.int64), self.device)

    def sum_metrics(
        self, names: tuple[str, ...], outputs: list[dict[str, torch.Tensor]]
    ) -> dict[str, float]:
        """Sums of what the micro-batches of all ranks have measured; the same on every rank."""
        total = torch.zeros(len(names), dtype=torch.float64, device=self.device)
        if self.is_last_stage and self.place.tp == 0:
            for output in outputs:
                total += torch.stack([output[name].to(self.device).double() for name in names])
        dist.all_reduce(total)
        return dict(zip(names, total.tolist(), strict=True))


def selected_tokens(model: Any, groups: "ProcessGroupCollection") -> "SelectedTokens":
    """Of the output layer of a model chunk, wrapped or not."""
    from megarlhf.models.selected_tokens import SelectedTokens

    while hasattr(model, "module"):
        model = model.module
    return SelectedTokens(model.output_layer, groups.tp)
