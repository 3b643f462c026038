"""One model on its ranks: loads, runs forward, takes optimizer steps."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist

from megarlhf.config.schema import ModelConfig, OptimizerConfig
from megarlhf.data import dealing, packing
from megarlhf.data.records import Batch, MicroBatch
from megarlhf.data.records import Sequence as TokenSequence
from megarlhf.engine import data_parallel
from megarlhf.engine.loss import TokenLoss
from megarlhf.engine.offload import Offloaded
from megarlhf.engine.optimizer import make_optimizer, state_tensors
from megarlhf.models.build import build_chunks, transformer_config
from megarlhf.models.lora.attach import Adapters, attach
from megarlhf.models.rotary import PackedLayout
from megarlhf.models.spec import ModelSpec
from megarlhf.models.weights.loading import load_huggingface
from megarlhf.parallel import context, device
from megarlhf.parallel.logprobs import vocab_parallel_logprobs
from megarlhf.parallel.topology import Topology

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel
    from megatron.core.process_groups_config import ProcessGroupCollection

Part = Literal["weights", "gradients", "optimizer"]


class ModelEngine:
    """A model laid out over ranks; every method is collective over them.

    Args:
        spec: The model; its weights are loaded from ``spec.path``.
        config: dtype and recompute.
        topology: The layout.
        groups: Its process groups.
        rank: This rank.
        micro_batch_tokens: Most tokens a packed forward pass holds.
        optimizer: Given for a model that is trained; without it there are no gradient buffers.
        adapters: Given where only these are trained.
    """

    def __init__(
        self,
        spec: ModelSpec,
        config: ModelConfig,
        topology: Topology,
        groups: "ProcessGroupCollection",
        rank: int,
        *,
        micro_batch_tokens: int,
        optimizer: OptimizerConfig | None = None,
        adapters: Adapters | None = None,
    ) -> None:
        self.spec, self.topology, self.groups, self.rank = spec, topology, groups, rank
        self.device = device.prepare()
        self.place = topology.coordinates(rank)
        self.micro_batch_tokens = micro_batch_tokens
        self.config = transformer_config(
            spec,
            topology,
            dtype=config.dtype,
            recompute=config.recompute,
            aux_loss_coef=config.aux_loss_coef,
            z_loss_coef=config.z_loss_coef,
            experts=config.experts if adapters is None else adapters.experts(config.experts),
        )
        self._chunks = build_chunks(spec, self.config, topology, groups, rank)
        load_huggingface(spec, topology, rank, self._chunks)
        self.adapters, self.switch = adapters, None
        if adapters is not None:
            self.switch = attach(adapters, topology, groups, rank, self._chunks)
        self.wrapped: list[Any] = list(self._chunks)
        self.optimizer: Any = None
        self._offloaded: dict[str, Offloaded] = {}
        self._unsettled = False
        if optimizer is not None:
            overlap = config.parallel.overlap
            self.wrapped = data_parallel.wrap(self._chunks, self.config, groups, overlap=overlap)
            self.optimizer = self._make_optimizer(optimizer)

    def _make_optimizer(self, settings: OptimizerConfig) -> Any:
        return make_optimizer(settings, self.config, self.wrapped, self.groups)

    @property
    def chunks(self) -> "list[GPTModel]":
        """This rank's model chunks, their parameters up to date: see `settle`."""
        self.settle()
        return self._chunks

    def settle(self) -> None:
        """Finish what an overlapped optimizer step left for the next forward pass.

        For whoever reads parameters outside a pass; collective over the replicas.
        """
        if self._unsettled:
            data_parallel.gather_parameters(self.wrapped)
            self._unsettled = False

    # -- memory -----------------------------------------------------------------------------------

    def offload(self, *parts: Part) -> int:
        """Give back the device memory of ``weights``, ``gradients`` or ``optimizer`` state.

        Nothing may be computed until `reload`. Returns the bytes given back.
        """
        self.settle()
        for part in parts:
            if part not in self._offloaded:
                tensors = self._tensors_of(part)
                self._offloaded[part] = Offloaded(tensors, keep=part != "gradients")
        return sum(self._offloaded[part].nbytes for part in parts)

    def reload(self) -> None:
        """Undo every `offload`: the same bits, gradients zero."""
        for offloaded in self._offloaded.values():
            offloaded.restore()
        self._offloaded.clear()

    def _tensors_of(self, part: Part) -> list[torch.Tensor]:
        if part == "weights":
            held = ((*chunk.parameters(), *chunk.buffers()) for chunk in self._chunks)
            return [tensor.data for tensors in held for tensor in tensors]
        if self.optimizer is None:
            return []
        if part == "gradients":
            return [
                buffer.grad_data
                for model in self.wrapped
                for buffer in (*model.buffers, *model.expert_parallel_buffers)
            ]
        return state_tensors(self.optimizer)

    # -- passes -----------------------------------------------------------------------------------

    def logprobs(
        self,
        sequences: Sequence[TokenSequence],
        *,
        temperature: float = 1.0,
        groups: Sequence[tuple[int, ...]] | None = None,
    ) -> dict[int, list[float]]:
        """Log-probability of every token of every sequence, given those before it.

        Args:
            sequences: The whole global batch, the same on every rank.
            temperature: The logits are divided by it.
            groups: See `Batch`; with those of the training step the packs are the same, and so is
                the rounding.

        Returns:
            For the sequences of this data-parallel rank, by index, a float a token (entry 0 is 0). Empty
            on ranks that are not the first tensor rank of the last pipeline stage.
        """
        longer, groups = self.filled(sequences, groups)
        lengths = [len(sequence.token_ids) for sequence in longer]
        return {
            index: of_tokens
            for batch, values in self._forward(longer, temperature, groups)
            for index, of_tokens in packing.scatter(values, batch, lengths)
            if index < len(sequences)
        }

    def values(self, sequences: Sequence[TokenSequence]) -> dict[int, list[float]]:
        """A critic's value of the state in which each token was chosen: of all tokens before it.

        See `logprobs`, whose order and alignment it shares; the model has a scalar head.
        """
        return self.logprobs(sequences)

    def scores(self, sequences: Sequence[TokenSequence]) -> dict[int, float]:
        """A reward model's score of every sequence: its value at the last token.

        See `logprobs` for arguments and for which ranks know which; the model has a scalar head.
        """
        longer, _ = self.filled(sequences)
        lengths = [len(sequence.token_ids) for sequence in longer]
        return {
            index: value
            for batch, values in self._forward(longer)
            for index, value in packing.last_values(values, batch, lengths)
            if index < len(sequences)
        }

    @torch.no_grad()
    def _forward(
        self,
        sequences: Sequence[TokenSequence],
        temperature: float = 1.0,
        groups: Sequence[tuple[int, ...]] | None = None,
    ) -> list[tuple[MicroBatch, torch.Tensor]]:
        """Whole micro-batches and, on the CPU, an output a token [T]; empty on ranks without any."""

        def collect(output: torch.Tensor, batch: MicroBatch, **_: Any) -> torch.Tensor:
            return self._token_outputs(output, batch, temperature)[0]

        batches, outputs = self.run_forward(sequences, collect, groups)
        if not (self._is_last_stage and self.place.tp == 0):
            return []
        return [
            (batch, context.gather_tokens(values, batch.lengths, self.groups.cp).cpu())
            for batch, values in zip(batches, outputs, strict=True)
        ]

    def run_forward(
        self,
        sequences: Sequence[TokenSequence],
        consume: Any,
        groups: Sequence[tuple[int, ...]] | None = None,
    ) -> tuple[list[MicroBatch], list[Any]]:
        """Run the model, without dropout, on its share of a number of sequences of any size.

        Args:
            sequences: The whole global batch, the same on every rank.
            consume: Called on the last stage with a micro-batch's output and this rank's part of
                it. Behind the given sequences there may be copies: see `filled`.
            groups: See `Batch`.

        Returns:
            This data-parallel rank's whole micro-batches, and what ``consume`` returned.
        """
        batches = self._micro_batches(*self.filled(sequences, groups))
        for chunk in self.wrapped:
            chunk.eval()
        return batches, self._run(batches, consume, forward_only=True)

    def filled(
        self,
        sequences: Sequence[TokenSequence],
        groups: Sequence[tuple[int, ...]] | None = None,
    ) -> tuple[list[TokenSequence], list[tuple[int, ...]]]:
        """As many groups as can always be dealt; see `dealing.filled`."""
        return dealing.filled(sequences, groups, self.topology.dp * self._multiple_of)

    def train_step(
        self,
        sequences: Sequence[TokenSequence],
        loss: TokenLoss,
        *,
        lr: float,
        groups: Sequence[tuple[int, ...]] | None = None,
    ) -> dict[str, float]:
        """One optimizer step on a global batch.

        Args:
            sequences: The whole global batch, the same on every rank.
            loss: Returns sums, which are divided here by its ``divisors`` of the whole batch.
            lr: Learning rate of this step.
            groups: Positions of sequences that have to be in one micro-batch; see `Batch`.

        Returns:
            The loss's metrics (means over the global batch), ``loss`` and ``grad_norm``; the same on
            every rank.
        """
        batches = self._micro_batches(sequences, groups)
        divisors = loss.divisors(sequences)
        # Megatron divides, in the one place where it scales a loss's gradient, so that a mixture's
        # auxiliary losses, which it sums over all tokens, are divided with it.
        everything = sum(len(sequence.token_ids) for sequence in sequences)
        self.config.grad_scale_func = lambda total: total / everything

        def compute(
            output: torch.Tensor, batch: MicroBatch
        ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
            total, metrics = self._loss_of(output, batch, loss)
            sums = {**metrics, "loss": total}
            metrics = {name: value.detach() / divisors.of(name) for name, value in sums.items()}
            return total * (everything / divisors.loss), torch.ones((), dtype=torch.int), metrics

        for chunk in self.wrapped:
            chunk.train()
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        outputs = self._run(batches, compute, forward_only=False)
        _, grad_norm, _ = self.optimizer.step()
        self._unsettled = True
        metrics = self._sum_metrics(("loss", *loss.metric_names), outputs)
        return {**metrics, "grad_norm": float(grad_norm), "lr": lr}

    @torch.no_grad()
    def evaluate(self, batches: Iterable[tuple[Batch, TokenLoss]]) -> dict[str, float]:
        """A loss and its metrics over several batches of any size, without a step.

        Args:
            batches: Whole global batches, the same on every rank, each with its loss, all of one
                kind. At least one; they may be made while this runs.

        Returns:
            The metrics and ``loss``: means over all batches together, the same on every rank.
        """
        sums, counts = Counter(), Counter()
        for batch, loss in batches:
            divisors = loss.divisors(batch.sequences)
            for name, total in self._summed(batch, loss).items():
                sums[name] += total
                counts[name] += divisors.of(name)
        return {name: total / counts[name] for name, total in sums.items()}

    def _summed(self, batch: Batch, loss: TokenLoss) -> dict[str, float]:
        """A loss and its metrics, summed over a global batch."""

        def measure(output: torch.Tensor, part: MicroBatch, **_: Any) -> dict[str, torch.Tensor]:
            total, metrics = self._loss_of(output, part, loss)
            return {**metrics, "loss": total}

        _, outputs = self.run_forward(batch.sequences, measure, batch.groups)
        return self._sum_metrics(("loss", *loss.metric_names), outputs)

    def _loss_of(
        self, output: torch.Tensor, batch: MicroBatch, loss: TokenLoss
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        values, extra = self._token_outputs(
            output, batch, loss.temperature, with_entropy=loss.needs_entropy
        )
        if loss.from_logits is not None:
            extra = loss.from_logits(output.view(-1, output.shape[-1]), batch, self.groups.tp)
        return loss(values, extra, batch)

    @property
    def _is_last_stage(self) -> bool:
        return self.place.pp == self.topology.pp - 1

    @property
    def _multiple_of(self) -> int:
        return self.topology.pp if self.topology.vpp > 1 else 1

    @property
    def pad_to_multiple(self) -> int:
        """Sequences are padded to this: tp cuts a rank's tokens, context parallelism a sequence."""
        multiple = self.topology.tp if self.topology.sequence_parallel else 1
        return multiple * (2 * self.topology.cp if self.topology.cp > 1 else 1)

    def shares(
        self,
        sequences: Sequence[TokenSequence],
        groups: Sequence[tuple[int, ...]] | None = None,
    ) -> list[list[list[int]]]:
        """Which sequences are in which micro-batch of which data-parallel rank."""
        lengths = [len(sequence.token_ids) for sequence in sequences]
        return dealing.partition(
            [packing.padded_length(length, self.pad_to_multiple) for length in lengths],
            dp_size=self.topology.dp,
            max_tokens=self.micro_batch_tokens,
            multiple_of=self._multiple_of,
            groups=groups,
        )

    def _micro_batches(
        self,
        sequences: Sequence[TokenSequence],
        groups: Sequence[tuple[int, ...]] | None = None,
    ) -> list[MicroBatch]:
        """This data-parallel rank's share, packed."""
        return [
            packing.collate(sequences, indices, pad_to_multiple=self.pad_to_multiple)
            for indices in self.shares(sequences, groups)[self.place.dp]
        ]

    def _token_outputs(
        self,
        output: torch.Tensor,
        batch: MicroBatch,
        temperature: float,
        *,
        with_entropy: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[T] in fp32 or wider: the targets' log-probabilities, or a scalar head's values."""
        if self.spec.scalar_head is not None:
            values = output.flatten()
            return values.to(torch.promote_types(values.dtype, torch.float32)), None
        return vocab_parallel_logprobs(
            output.view(-1, output.shape[-1]),
            batch.targets,
            vocab_size=self.spec.vocab_size,
            group=self.groups.tp,
            temperature=temperature,
            with_entropy=with_entropy,
        )

    def _run(self, batches: list[MicroBatch], consume: Any, *, forward_only: bool) -> list[Any]:
        """Megatron's schedule over the micro-batches; what ``consume`` returned on the last stage."""
        from megatron.core.pipeline_parallel import get_forward_backward_func

        batches = [context.local_part(batch, self.groups.cp).to(self.device) for batch in batches]

        def forward_step(iterator: Iterator[MicroBatch], model: Any) -> tuple[torch.Tensor, Any]:
            batch = next(iterator)
            layout = PackedLayout(batch.lengths, batch.position_ids, max(batch.lengths))
            output = model(
                input_ids=batch.token_ids[None],
                position_ids=batch.position_ids[None],
                attention_mask=None,
                packed_seq_params=layout,
                padding_mask=self._padding_mask(batch, model),
            )
            return output, lambda output, **kwargs: consume(output, batch, **kwargs)

        iterators = [iter(batches) for _ in self.wrapped]
        outputs = get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=iterators if len(iterators) > 1 else iterators[0],
            model=self.wrapped if len(self.wrapped) > 1 else self.wrapped[0],
            num_microbatches=len(batches),
            seq_length=self.micro_batch_tokens,
            micro_batch_size=1,
            forward_only=forward_only,
            collect_non_loss_data=forward_only,
        )
        if self.spec.num_experts:
            from megarlhf.models.mixture import forget_last_pass

            for chunk in self._chunks:
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

    def _sum_metrics(
        self, names: tuple[str, ...], outputs: list[dict[str, torch.Tensor]]
    ) -> dict[str, float]:
        total = torch.zeros(len(names), dtype=torch.float64)
        if self._is_last_stage and self.place.tp == 0:
            for output in outputs:
                total += torch.stack([output[name].double().cpu() for name in names])
        total = total.to(self.device)
        dist.all_reduce(total)
        return dict(zip(names, total.tolist(), strict=True))
