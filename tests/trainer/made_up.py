"""Engines and rewards that answer at once, the same to the same question."""

import hashlib

from megarlhf.data.records import Prompt, Sample


def sample_of(number, version, length=4):
    """A sample of one version's."""
    return Sample(
        prompt=Prompt(number, f"prompt {number}", (number,)),
        response_ids=list(range(length)),
        rollout_logprobs=[0.0] * length,
        policy_version=version,
        finish_reason="stop",
        text="",
        version_spans=[(version, length)],
    )


class Engines:
    """An `EngineGroup` whose samples depend on prompt, seed and version."""

    def __init__(self):
        self.version = 0
        self.asked = []

    def generate(self, prompts, sampling, seeds):
        self.asked.append([prompt.index for prompt in prompts])
        return [
            [self._sample(prompt, seed + n) for n in range(sampling.samples)]
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]

    def _sample(self, prompt, seed):
        sample = sample_of(prompt.index, self.version)
        sample.response_ids = list(
            hashlib.sha256(f"{prompt}{seed}{self.version}".encode()).digest()
        )
        return sample


class Rewards:
    """Even or odd; no reward for the responses that begin with one of some ids."""

    def __init__(self, tally, unscored=()):
        self._tally, self._unscored = tally, unscored

    def score(self, samples):
        failed = 0
        for sample in samples:
            if sample.response_ids[0] in self._unscored:
                failed += 1
            else:
                sample.reward = float(sample.response_ids[0] % 2)
        return self._tally(samples=len(samples), dropped=failed, failure="it says nothing")
