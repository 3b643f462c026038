"""Text to token ids and back, as agents need it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from megarlhf.agents.messages import AgentFailed, Observation
from megarlhf.data.records import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Tokens:
    """The actor's tokenizer.

    Args:
        tokenizer: Its.
        vocab_size: Embeddings of the model.
        special_in_prompt: The tokenizer adds its special tokens to a prompt's text: not to one that
            a chat template made, which has them.
    """

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", vocab_size: int, *, special_in_prompt: bool
    ) -> None:
        self.tokenizer, self._vocab_size = tokenizer, vocab_size
        self._special_in_prompt = special_in_prompt

    def of(self, observation: Observation, *, prompt: bool = False) -> list[int]:
        """Ids of a text, or the ids that were given. Special tokens in a text count as such.

        Args:
            observation: Either.
            prompt: It begins a sequence.

        Raises:
            AgentFailed: The model has no embedding for one of them.
        """
        if isinstance(observation, str):
            observation = self.encode(observation, special=prompt and self._special_in_prompt)
        if observation and max(observation) >= self._vocab_size:
            raise AgentFailed(
                f"its observation has the id {max(observation)}; the model knows {self._vocab_size}"
            )
        return list(observation)

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Ids of a text; ``special``: the tokenizer adds what begins (or ends) a text of its own."""
        return self.tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]

    def text(self, ids: Sequence[int], *, special: bool = False) -> str:
        """The text of ids, with special tokens if wanted."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=not special)

    def prompt(self, given: Prompt, observation: Observation) -> Prompt:
        """The prompt that an agent begins with in place of a given one.

        Raises:
            AgentFailed: It has no tokens, or impossible ones.
        """
        if observation in (given.text, list(given.token_ids)):
            return given
        ids = self.of(observation, prompt=True)
        if not ids:
            raise AgentFailed("Agent.reset returned nothing for the model to answer")
        text = observation if isinstance(observation, str) else self.text(ids, special=True)
        return Prompt(given.index, text, tuple(ids), given.label)
