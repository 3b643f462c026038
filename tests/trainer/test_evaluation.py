"""What an evaluation measures; engines and rewards are stood in for."""

import math

import pytest

from megarlhf.config import loader
from megarlhf.config.learning_checks import evaluation_metrics
from megarlhf.config.schema import RLConfig
from megarlhf.data.records import Prompt, Sample
from megarlhf.rewards.tally import Tally
from megarlhf.trainer.evaluation import Evaluation, mean_pass_at

SETS = {
    "": [Prompt(0, "a", (1,)), Prompt(1, "b", (2,))],
    "hard": [Prompt(0, "c", (3,))],
}


class Engines:
    """Answers that name their prompt and, sampled, their number."""

    def __init__(self):
        self.calls = []

    def __call__(self, prompts, sampling, seeds):
        self.calls.append((sampling, list(seeds)))
        count = sampling.samples
        return [
            [
                Sample(p, [1], [0.0], 0, "stop", p.text + str(number) * (count > 1))
                for number in range(count)
            ]
            for p in prompts
        ]


class Rewards:
    """Greedy answers to a are right; of the sampled ones to b one, to c all; some are not scored."""

    RIGHT = ("a", "b2", "c0", "c1", "c2", "c3")
    LOST = ("a0", "a1", "a2")

    def score(self, samples):
        for sample in samples:
            if sample.text not in self.LOST:
                sample.reward = sample.score = float(sample.text in self.RIGHT)
        return Tally(samples=len(samples))


@pytest.fixture
def evaluate():
    kept, engines = [], Engines()

    def evaluate(*overrides, step=3):
        settings = ["data.eval_prompts=json@a", "evaluation.sets=[hard=json@b]", *overrides]
        config = loader.load(RLConfig, None, settings)

        def keep(*args):
            kept.append(args)

        metrics = Evaluation(config, SETS, engines, Rewards(), keep).run(step)
        assert list(metrics) == evaluation_metrics(config)
        return metrics, engines.calls, kept

    return evaluate


def test_greedy_answers_by_default(evaluate):
    metrics, calls, kept = evaluate()
    assert metrics == {"eval_accuracy": 0.5, "eval_accuracy_hard": 0.0}
    assert [(sampling.samples, sampling.temperature) for sampling, _ in calls] == [(1, 0.0)] * 2
    assert [(step, name, len(groups)) for step, name, groups in kept] == [
        (3, "", 2),
        (3, "hard", 1),
    ]


def test_sampled_answers_give_pass_at_k(evaluate):
    settings = ("evaluation.samples=4", "evaluation.pass_at=[1,2,4]", "evaluation.temperature=0.8")
    metrics, calls, kept = evaluate(*settings)
    # Of a only one answer was scored, a wrong one; of b's four one is right.
    assert metrics["eval_accuracy"] == 0.5
    assert metrics["eval_pass@1"] == pytest.approx((0 + 1 / 4) / 2)
    assert metrics["eval_pass@2"] == pytest.approx(1 / 2)
    assert [metrics[f"eval_pass@{k}_hard"] for k in (1, 2, 4)] == [1.0] * 3
    assert {sampling.temperature for sampling, _ in calls if sampling.samples == 4} == {0.8}
    assert len(kept) == 2  # the greedy ones


def test_it_asks_the_same_again_and_each_prompt_with_a_seed_of_its_own(evaluate):
    evaluate("evaluation.samples=2", step=3)
    _, calls, _ = evaluate("evaluation.samples=2", step=9)
    assert calls[:4] == calls[4:]
    (first, second), (third,) = calls[1][1], calls[3][1]
    assert len({first, second, third}) == 3
    _, others, _ = evaluate("evaluation.samples=2", "train.seed=2")
    assert others[-3][1] != calls[1][1]


def test_pass_at_more_than_any_prompt_has_is_no_number():
    assert math.isnan(mean_pass_at(5, [(4, 4), (3, 0)]))
