"""The records that travel through a run, one class a stage.

Legend used throughout the project: B sequences, L tokens of one sequence, T packed tokens of a
micro-batch, V vocabulary, H hidden size. Token ids are host integers until a micro-batch is packed.
"""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import torch

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class Prompt:
    """One prompt of the data set, ready to be sampled from.

    Attributes:
        index: Position in the data set (stable between runs; seeds derive from it).
        text: The prompt after its template, as the model sees it.
        token_ids: ``text`` tokenized, special tokens included. Length P >= 1.
        label: Whatever the data file holds under ``data.label_key``; None without that key.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    label: Any = None


@dataclass(frozen=True)
class Episode:
    """How an agent's sample came about.

    Attributes:
        turns: How many times the model was asked.
        ended: ``done``: the environment or the program said so; ``turns``, ``tokens``: a limit was
            reached; ``failed``: see ``failure``.
        logs: What the agent reports as ``extra_logs``, by name.
        counts: Further counts, by name.
        retries: How many times it was started again.
        failure: Why it has no reward, naming its prompt.
    """

    turns: int
    ended: Literal["done", "turns", "tokens", "failed"]
    logs: dict[str, list[float]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    retries: int = 0
    failure: str = ""


@dataclass
class Sample:
    """One response that an engine sampled, or an agent's episode.

    Attributes:
        prompt: What was answered.
        response_ids: The very ids that were sampled, the stop token included, and between them, in
            an agent's, those of its environment. Length R >= 1; the last was sampled.
        rollout_logprobs: log p of each sampled id under the sampler's own distribution (after
            temperature), nats, fp32; 0 at an environment's. Length R.
        policy_version: Version of the weights that sampled it (its first token, if several did).
        finish_reason: ``"stop"`` (a stop token was sampled) or ``"length"`` (cut at the limit).
        text: ``response_ids`` decoded, without special tokens unless an environment's are among them;
            for rewards and people, never trained on.
        reward: Scalar score; None until scored.
        score: For filtering prompts by difficulty, usually 0 to 1: what the reward's source gives as
            ``scores``, else the reward. None until scored.
        version_spans: Which versions made which tokens: version and the position behind its last
            token, in order; the last position is R.
        mask: 1 where the id was sampled, 0 where it is an environment's, length R; None: all were.
        earlier: Further sequences of the same episode, in time: those that this one does not extend.
            Their reward is this one's.
        episode: How an agent's sample came about; None for any other.
    """

    prompt: Prompt
    response_ids: list[int]
    rollout_logprobs: list[float]
    policy_version: int
    finish_reason: str
    text: str
    reward: float | None = None
    score: float | None = None
    version_spans: list[tuple[int, int]] = field(default_factory=list)
    mask: list[int] | None = None
    earlier: list["Sample"] = field(default_factory=list)
    episode: Episode | None = None

    @property
    def parts(self) -> list["Sample"]:
        """All of its sequences, in the order of time."""
        return [*self.earlier, self]

    @property
    def sampled(self) -> int:
        """How many tokens the policy chose, in all its parts."""
        return sum(
            len(part.response_ids) if part.mask is None else sum(part.mask) for part in self.parts
        )


@dataclass
class Sequence:
    """One sequence to run a model on: tokens and what a loss needs at each of them.

    All per-token fields have the sequence's length L and are aligned with ``token_ids``: entry t
    belongs to the *prediction of* ``token_ids[t]`` (so entry 0 is never used; ``loss_mask[0]`` = 0).

    Attributes:
        token_ids: ids, length L >= 2.
        loss_mask: 1.0 where the prediction of this token is trained on, else 0.0. Length L.
        fields: Further float values a token, by name (advantages, old_logprobs, ...). Length L each.
        values: Further numbers of the whole sequence, by name (margin, desirable, ...).
    """

    token_ids: list[int]
    loss_mask: list[float]
    fields: dict[str, list[float]] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)


@dataclass
class Example:
    """One row of a data set for an offline method, tokenized.

    Attributes:
        sequences: The row's sequences: one, or the chosen and the rejected one of a pair. All
            begin with the same ``prompt_tokens`` tokens.
        prompt_tokens: Tokens of the prompt; 0 where all is text to learn.
        values: Numbers of the row, by name (margin, desirable).
    """

    sequences: list[Sequence]
    prompt_tokens: int
    values: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Batch:
    """The sequences of one optimizer step of an offline method, over all ranks.

    Attributes:
        sequences: What the model runs on.
        groups: Positions in ``sequences``: those of one group have to be in one micro-batch,
            because the loss compares them. Every sequence is in exactly one group.
    """

    sequences: list[Sequence]
    groups: list[tuple[int, ...]]


@dataclass
class MicroBatch:
    """Sequences packed end to end for one forward pass.

    Where sequences share their beginning that is packed once, as a sequence of its own that others go
    on from: see `beginnings`.

    Attributes:
        token_ids: int64 [T].
        position_ids: int64 [T], restarting at 0 with each sequence.
        targets: int64 [T]; ``targets[t] = token_ids[t+1]`` inside a sequence, 0 at its last token.
        loss_mask: float32 [T]; 1 where the prediction made *at* t (of ``targets[t]``) is trained on.
        fields: float32 [T] each, shifted like ``targets``.
        padding: bool [T]; True where the token only fills its sequence up to a multiple.
        ends: bool [T]; True at each sequence's last token that is no padding.
        lengths: Host integers, the packed sequences' lengths in order; they sum to T.
        order: For each packed sequence, its index in the list that was packed; -1: a shared beginning.
        context_group: Ranks that hold the other parts of the same sequences; None where this rank
            holds them whole.
        values: float32 [n] each, a number of every packed sequence, in their order.
        starts: For each packed sequence, the place of its first token: 0, or behind its beginning.
        behind: For each packed sequence, the packed one that it goes on from; -1: none.
        trained: Host integers, the positions where ``loss_mask`` is not 0, in order.
    """

    token_ids: torch.Tensor
    position_ids: torch.Tensor
    targets: torch.Tensor
    loss_mask: torch.Tensor
    fields: dict[str, torch.Tensor]
    padding: torch.Tensor
    ends: torch.Tensor
    lengths: tuple[int, ...]
    order: tuple[int, ...]
    context_group: "ProcessGroup | None" = None
    values: dict[str, torch.Tensor] = field(default_factory=dict)
    starts: tuple[int, ...] = ()
    behind: tuple[int, ...] = ()
    trained: tuple[int, ...] = ()

    def to(self, device: torch.device) -> "MicroBatch":
        """A copy whose tensors are on a device."""

        def moved(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {name: tensor.to(device) for name, tensor in tensors.items()}

        own = {name: value for name, value in vars(self).items() if torch.is_tensor(value)}
        return replace(self, **moved(own), fields=moved(self.fields), values=moved(self.values))

    @property
    def copies(self) -> int:
        """On how many ranks a value of a whole sequence (see `context.sequence_sums`) exists."""
        return 1 if self.context_group is None else self.context_group.size()
