"""One model on its ranks: loads, runs forward, takes optimizer steps."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist

from megarlhf.config.schema import ModelConfig, OptimizerConfig
from megarlhf.data import packing
from megarlhf.data.records import MicroBatch
from megarlhf.data.records import Sequence as TokenSequence
from megarlhf.engine import data_parallel
from megarlhf.engine.loss import TokenLoss
from megarlhf.engine.offload import Offloaded
from megarlhf.engine.optimizer import make_optimizer, state_tensors
from megarlhf.models.build import build_chunks, transformer_config
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
            experts=config.experts,
        )
        self._chunks = build_chunks(spec, self.config, topology, groups, rank)
        load_huggingface(spec, topology, rank, self._chunks)
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
            return [parameter.data for chunk in self._chunks for parameter in chunk.parameters()]
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
        self, sequences: Sequence[TokenSequence], *, temperature: float = 1.0
    ) -> dict[int, list[float]]:
        """Log-probability of every token of every sequence, given those before it.

        Args:
            sequences: The whole global batch, the same on every rank.
            temperature: The logits are divided by it.

        Returns:
            For the sequences of this data-parallel rank, by index, a float a token (entry 0 is 0). Empty
            on ranks that are not the first tensor rank of the last pipeline stage.
        """
        found: dict[int, list[float]] = {}
        lengths = [len(sequence.token_ids) for sequence in sequences]
        for batch, values in self._forward(sequences, temperature):
            found.update(packing.scatter(values, batch, lengths))
        return found

    def values(self, sequences: Sequence[TokenSequence]) -> dict[int, list[float]]:
        """A critic's value of the state in which each token was chosen: of all tokens before it.

        See `logprobs`, whose order and alignment it shares; the model has a scalar head.
        """
        return self.logprobs(sequences)

    def scores(self, sequences: Sequence[TokenSequence]) -> dict[int, float]:
        """A reward model's score of every sequence: its value at the last token.

        See `logprobs` for arguments and for which ranks know which; the model has a scalar head.
        """
        lengths = [len(sequence.token_ids) for sequence in sequences]
        return {
            index: value
            for batch, values in self._forward(sequences)
            for index, value in packing.last_values(values, batch, lengths)
        }

    @torch.no_grad()
    def _forward(
        self, sequences: Sequence[TokenSequence], temperature: float = 1.0
    ) -> list[tuple[MicroBatch, torch.Tensor]]:
        """Whole micro-batches and, on the CPU, an output a token [T]; empty on ranks without any."""
        batches = self._micro_batches(sequences)

        def collect(output: torch.Tensor, batch: MicroBatch, **_: Any) -> torch.Tensor:
            return self._token_outputs(output, batch, temperature)[0]

        for chunk in self.wrapped:
            chunk.eval()
        outputs = self._run(batches, collect, forward_only=True)
        if not (self._is_last_stage and self.place.tp == 0):
            return []
        return [
            (batch, context.gather_tokens(values, batch.lengths, self.groups.cp).cpu())
            for batch, values in zip(batches, outputs, strict=True)
        ]

    def train_step(
        self,
        sequences: Sequence[TokenSequence],
        loss: TokenLoss,
        *,
        lr: float,
    ) -> dict[str, float]:
        """One optimizer step on a global batch.

        Args:
            sequences: The whole global batch, the same on every rank.
            loss: Returns sums. The loss is divided here by the whole batch's total ``loss_weight``
                (a field of the sequences; without it, ``loss_mask``), metrics by its ``loss_mask``.
            lr: Learning rate of this step.

        Returns:
            The loss's metrics (means over the global batch), ``loss`` and ``grad_norm``; the same on
            every rank.
        """
        batches = self._micro_batches(sequences)
        tokens, weight = _denominators(sequences)
        # Megatron divides, in the one place where it scales a loss's gradient, so that a mixture's
        # auxiliary losses, which it sums over all tokens, are divided with it.
        everything = sum(len(sequence.token_ids) for sequence in sequences)
        self.config.grad_scale_func = lambda total: total / everything

        def compute(
            output: torch.Tensor, batch: MicroBatch
        ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
            values, entropy = self._token_outputs(
                output, batch, loss.temperature, with_entropy=loss.needs_entropy
            )
            total, metrics = loss(values, entropy, batch)
            metrics = {name: value.detach() / tokens for name, value in metrics.items()}
            metrics["loss"] = total.detach() / weight
            return total * (everything / weight), torch.ones((), dtype=torch.int), metrics

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

    @property
    def _is_last_stage(self) -> bool:
        return self.place.pp == self.topology.pp - 1

    def _micro_batches(self, sequences: Sequence[TokenSequence]) -> list[MicroBatch]:
        """This data-parallel rank's share, packed."""
        # Sequence parallelism cuts a rank's tokens by tp, context parallelism a sequence by 2 cp.
        multiple = self.topology.tp if self.topology.sequence_parallel else 1
        multiple *= 2 * self.topology.cp if self.topology.cp > 1 else 1
        shares = packing.partition(
            [packing.padded_length(len(sequence.token_ids), multiple) for sequence in sequences],
            dp_size=self.topology.dp,
            max_tokens=self.micro_batch_tokens,
            multiple_of=self.topology.pp if self.topology.vpp > 1 else 1,
        )
        return [
            packing.collate(sequences, indices, pad_to_multiple=multiple)
            for indices in shares[self.place.dp]
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
            batch.targets.to(self.device),
            vocab_size=self.spec.vocab_size,
            group=self.groups.tp,
            temperature=temperature,
            with_entropy=with_entropy,
        )

    def _run(self, batches: list[MicroBatch], consume: Any, *, forward_only: bool) -> list[Any]:
        """Megatron's schedule over the micro-batches; what ``consume`` returned on the last stage."""
        from megatron.core.pipeline_parallel import get_forward_backward_func

        batches = [context.local_part(batch, self.groups.cp) for batch in batches]

        def forward_step(iterator: Iterator[MicroBatch], model: Any) -> tuple[torch.Tensor, Any]:
            batch = next(iterator)
            positions = batch.position_ids.to(self.device)
            layout = PackedLayout(batch.lengths, positions, max(batch.lengths))
            output = model(
                input_ids=batch.token_ids.to(self.device)[None],
                position_ids=positions[None],
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
        mask = batch.padding.to(self.device)
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


def _denominators(sequences: Sequence[TokenSequence]) -> tuple[float, float]:
    """Trained tokens and total weight of a global batch."""
    tokens = math.fsum(math.fsum(sequence.loss_mask) for sequence in sequences)
    if tokens <= 0:
        raise ValueError("no token of the batch is trained on: every loss_mask is zero")
    weight = math.fsum(
        weight * mask
        for sequence in sequences
        for weight, mask in zip(
            sequence.fields.get("loss_weight", [1.0] * len(sequence.loss_mask)),
            sequence.loss_mask,
            strict=True,
        )
    )
    return tokens, weight
