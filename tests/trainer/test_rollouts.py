"""What a rollout is made of, and that it is the same made in turn or ahead."""

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest

from megarlhf.config.schema import AlgorithmConfig, RLConfig, RolloutConfig
from megarlhf.data.prompts import PromptStream
from megarlhf.data.records import Prompt
from megarlhf.errors import UserError
from megarlhf.rewards.tally import Tally
from megarlhf.trainer.ahead import Ahead
from megarlhf.trainer.rollout_source import advice_on
from megarlhf.trainer.rollouts import InTurn, RolloutMaker
from tests.trainer.made_up import Engines, Rewards

CONFIG = RLConfig(
    rollout=RolloutConfig(prompts_per_step=5, samples_per_prompt=2),
    algorithm=AlgorithmConfig(dynamic_filtering=True, max_refills=2),
)


def no_phase(name):
    return nullcontext()


def maker(config=CONFIG, unscored=()):
    prompts = [Prompt(index, str(index), (index,)) for index in range(40)]
    inputs = SimpleNamespace(
        stream=PromptStream(prompts, seed=3), reward=Rewards(Tally, unscored), total_steps=6
    )
    engines = Engines()
    made = RolloutMaker(config, inputs, engines, SimpleNamespace(to_engines=lambda: None))
    made.engines, made.inputs = engines, inputs
    return made


def run(source, engines, steps):
    """Rollouts as the loop takes them, without what depends on the clock."""
    taken = []
    source.start(0)
    for number in range(steps):
        rollout = source.take(number)
        for name in list(rollout.metrics):
            if name.startswith(("sampler_seconds", "staleness", "queue")):
                del rollout.metrics[name]
        taken.append(rollout)
        engines.version = number + 1
        source.has_weights(number + 1, number + 1)
    return taken


def test_ahead_by_nothing_is_in_turn():
    in_turn, by_thread = maker(), maker()
    expected = run(InTurn(in_turn, no_phase), in_turn.engines, 6)
    with Ahead(by_thread.make, 0, 6, no_phase, lambda: None) as source:
        assert run(source, by_thread.engines, 6) == expected
    assert any(rollout.metrics["groups_dropped"] > 0 for rollout in expected)
    assert by_thread.engines.asked == in_turn.engines.asked


def test_who_goes_on_after_a_rollout_draws_the_prompts_of_the_next():
    whole, resumed = maker(), maker()
    rollouts = [whole.make(number, no_phase) for number in range(4)]
    resumed.inputs.stream.load_state_dict(rollouts[1].stream)
    assert resumed.make(2, no_phase) == rollouts[2]


def test_refills_until_there_are_enough_or_no_more_are_allowed():
    made = maker()
    rollout = made.make(0, no_phase)
    assert len(rollout.groups) == 5
    assert len(made.engines.asked[0]) == 5
    assert 1 < len(made.engines.asked) <= 3  # the first, and two refills
    for group in rollout.groups[: 5 - len(made.engines.asked[2])]:
        assert {sample.reward for sample in group} == {0.0, 1.0}


def test_unscored_prompts_are_replaced_and_too_many_end_the_run():
    plain = replace(CONFIG, algorithm=AlgorithmConfig(dynamic_filtering=False))
    rollout = maker(plain, unscored=range(64)).make(0, no_phase)
    assert rollout.metrics["reward_dropped"] > 0
    assert all(sample.reward is not None for group in rollout.groups for sample in group)
    with pytest.raises(UserError, match="10 of 10 responses could not be scored; it says nothing"):
        maker(plain, unscored=range(256)).make(0, no_phase)


def test_corrections_that_do_not_correct_old_samples_are_pointed_out():
    def advice(**settings):
        return advice_on(AlgorithmConfig(**settings)) or ""

    assert "correction=none" in advice(correction="none")
    assert "correction_low=0.5" in advice(correction="tis")
    assert "correction_low=0.5" in advice(correction="sequence_mask")
    assert advice(correction="tis", correction_low=0.0) == advice(correction="icepop") == ""
