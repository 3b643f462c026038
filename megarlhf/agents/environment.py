"""An episode between the model and an environment: a class ``Agent`` of the user's."""

from dataclasses import dataclass, replace

from megarlhf.agents.messages import Action, AgentFailed, Observation, Step
from megarlhf.agents.pool import AgentPool, Place
from megarlhf.agents.sampling import Asking
from megarlhf.agents.tokens import Tokens
from megarlhf.agents.transcript import Transcript
from megarlhf.data.records import Episode, Prompt, Sample


@dataclass(frozen=True)
class Environment:
    """Plays episodes.

    Attributes:
        pool: Where the agents are.
        tokens: The tokenizer.
        has_reset: The class defines ``reset``; else every episode begins with the data's prompt.
        max_turns: Of an episode.
        max_prompt_tokens: Of what ``reset`` returns.
        template: Text with one ``{}`` for what a step observes, if it is a text.
    """

    pool: AgentPool
    tokens: Tokens
    has_reset: bool
    max_turns: int
    max_prompt_tokens: int
    template: str = "{}"

    async def play(self, prompt: Prompt, asking: Asking, *, alone: bool) -> Sample:
        """One episode, scored.

        Raises:
            AgentFailed: A call of the agent failed.
        """
        async with self.pool.place(alone=alone) as place:
            transcript = Transcript(await self._begin(place, prompt))
            try:
                sample = await self._turns(place, transcript, asking, prompt)
                await place.call("close")
            except AgentFailed as failure:
                raise _shown(failure, transcript, self.tokens) from failure
            return sample

    async def _begin(self, place: Place, prompt: Prompt) -> Prompt:
        if not self.has_reset:
            return prompt
        observation = await place.call("reset", prompt.text, prompt.label)
        begun = self.tokens.prompt(prompt, observation)
        if len(begun.token_ids) > self.max_prompt_tokens:
            raise AgentFailed(
                f"Agent.reset returned {len(begun.token_ids)} tokens, more than "
                f"data.max_prompt_tokens={self.max_prompt_tokens}"
            )
        return begun

    async def _turns(
        self, place: Place, transcript: Transcript, asking: Asking, prompt: Prompt
    ) -> Sample:
        limit, steps = asking.sampling.max_new_tokens, list[Step]()
        while True:
            turn = len(steps) + 1
            answer = await asking.answer(transcript.token_ids, turn, limit - len(transcript))
            transcript.sampled(answer)
            action = Action(
                answer.text,
                answer.response_ids,
                answer.finish_reason,
                turn,
                limit - len(transcript),
                prompt.text,
                prompt.label,
            )
            steps.append(await place.call("step", action))
            if steps[-1].done or turn == self.max_turns:
                ended = "done" if steps[-1].done else "turns"
                break
            observed = self.tokens.of(self._in_template(steps[-1].observation))
            if len(transcript) + len(observed) >= limit:
                ended = "tokens"
                break
            transcript.observed(observed)
        sample = transcript.as_sample(self.tokens.text)
        sample.reward = sum(step.reward for step in steps)
        scores = [step.score for step in steps if step.score is not None]
        sample.score = scores[-1] if scores else sample.reward
        if ended == "tokens":
            sample.finish_reason = "length"
        logs: dict[str, list[float]] = {}
        for step in steps:
            for name, values in step.logs.items():
                logs.setdefault(name, []).extend(values)
        return replace(sample, episode=Episode(turn, ended, logs))

    def _in_template(self, observation: Observation) -> Observation:
        if isinstance(observation, str):
            return self.template.replace("{}", observation)
        return observation


def _shown(failure: AgentFailed, transcript: Transcript, tokens: Tokens) -> AgentFailed:
    """The failure with what the model had said."""
    said = tokens.text(transcript.token_ids[len(transcript.prompt.token_ids) :])
    reason = f"{failure.reason} in turn {max(1, transcript.turns)}, after {said!r:.300}"
    return AgentFailed(reason, failure.trace, innocent=failure.innocent)
