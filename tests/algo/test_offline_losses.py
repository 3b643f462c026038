"""The offline losses against loops over floats, written from the papers' and TRL's formulas."""

import math

import pytest
import torch

from megarlhf.algo.preference_loss import PreferenceLoss
from megarlhf.algo.reward_loss import PairwiseRewardLoss, StepRewardLoss
from megarlhf.algo.unpaired_loss import UnpairedLoss
from megarlhf.config.schema import PreferenceLossConfig, UnpairedLossConfig
from megarlhf.parallel.context import sequence_sums
from tests.algo.pairs import draw, packed

LENGTHS = (9, 4, 6, 7, 5, 12, 3, 3)
MICRO_BATCHES = ([2, 3, 6, 7], [0, 1, 4, 5])
REFERENCE = {"fields": ("reference_logprobs",)}


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def run(loss, sequences):
    """The engine's means over the micro-batches, and every sequence's outputs."""
    divisors = loss.divisors(sequences)
    total, metrics, rows = 0.0, dict.fromkeys(loss.metric_names, 0.0), {}
    for indices in MICRO_BATCHES:
        outputs, batch, own = packed(sequences, indices, seed=indices[0], pad_to_multiple=4)
        rows |= own
        part, found = loss(outputs, None, batch)
        total += part.item() / divisors.loss
        for name, value in found.items():
            metrics[name] += value.item() / divisors.of(name)
        # Gradients are the derivatives of the loss, also where sums go over whole sequences.
        step = torch.randn(len(outputs), generator=torch.manual_seed(0), dtype=torch.float64)
        (gradient,) = torch.autograd.grad(part, outputs)
        with torch.no_grad():
            ahead, behind = (loss(outputs + h * step, None, batch)[0] for h in (1e-5, -1e-5))
        slope = (ahead - behind).item() / 2e-5
        assert (gradient * step).sum().item() == pytest.approx(slope, rel=1e-6, abs=1e-8)
    return total, metrics, rows


def log_ratio(sequence, outputs, *, reference=True):
    old = sequence.fields["reference_logprobs"] if reference else [0.0] * len(sequence.token_ids)
    terms = zip(sequence.loss_mask, outputs, old, strict=False)
    return sum(mask * (new - before) for mask, new, before in terms)


@pytest.mark.parametrize("center", [0.0, 0.3])
@pytest.mark.parametrize("margins", [False, True])
def test_reward_model(center, margins):
    values = {"margin": lambda rng: rng.random()} if margins else {}
    sequences = draw(LENGTHS, values=values)
    total, metrics, rows = run(PairwiseRewardLoss(sequence_sums, center), sequences)
    terms, right, differences = [], [], []
    for pair in range(4):
        chosen, rejected = rows[2 * pair][-1], rows[2 * pair + 1][-1]
        margin = sequences[2 * pair].values.get("margin", 0.0)
        terms.append(
            -math.log(sigmoid(chosen - rejected - margin)) + center * (chosen + rejected) ** 2
        )
        right.append(chosen > rejected)
        differences.append(chosen - rejected)
    assert total == pytest.approx(sum(terms) / 4, rel=1e-12)
    assert metrics["accuracy"] == sum(right) / 4
    assert metrics["margin"] == pytest.approx(sum(differences) / 4, rel=1e-12)
    gap = metrics["chosen_score"] - metrics["rejected_score"]
    assert gap == pytest.approx(metrics["margin"], rel=1e-12)


@pytest.mark.parametrize("soft", [False, True])
def test_process_reward_model(soft):
    sequences = draw(LENGTHS, fields=("labels",))
    for sequence in sequences:
        sequence.fields["labels"] = [
            abs(label) % 1 if soft else float(label > -1) for label in sequence.fields["labels"]
        ]
    total, metrics, rows = run(StepRewardLoss(), sequences)
    terms, right = [], []
    for index, sequence in enumerate(sequences):
        for mask, value, label in zip(
            sequence.loss_mask, rows[index], sequence.fields["labels"], strict=False
        ):
            if mask:
                p = sigmoid(value)
                terms.append(-label * math.log(p) - (1 - label) * math.log(1 - p))
                right.append((p > 0.5) == (label > 0.5))
    assert total == pytest.approx(sum(terms) / len(terms), rel=1e-12)
    assert metrics["accuracy"] == pytest.approx(sum(right) / len(right), rel=1e-12)


def dpo(difference, config):
    """TRL's `DPOTrainer.dpo_loss`, loss_type "sigmoid"."""
    logit = config.beta * difference
    return -(1 - config.label_smoothing) * math.log(
        sigmoid(logit)
    ) - config.label_smoothing * math.log(sigmoid(-logit))


def ipo(difference, config):
    """The same, loss_type "ipo", of log-ratios that are means over tokens."""
    return (difference - 1 / (2 * config.beta)) ** 2


@pytest.mark.parametrize(
    ("settings", "term"),
    [
        ({}, dpo),
        ({"beta": 0.5, "label_smoothing": 0.2}, dpo),
        ({"nll_coef": 0.7}, dpo),
        ({"reference": "none"}, dpo),
        ({"kind": "ipo", "beta": 0.2}, ipo),
    ],
)
def test_preference(settings, term):
    config = PreferenceLossConfig(**settings)
    reference = config.reference != "none"
    sequences = draw(LENGTHS, **(REFERENCE if reference else {}))
    total, metrics, rows = run(PreferenceLoss(config, sequence_sums), sequences)
    terms, rewards, likelihoods = [], [], []
    for pair in range(4):
        ratios = []
        for index in (2 * pair, 2 * pair + 1):
            ratio = log_ratio(sequences[index], rows[index], reference=reference)
            ratios.append(ratio / sum(sequences[index].loss_mask) if term is ipo else ratio)
        likelihood = -log_ratio(sequences[2 * pair], rows[2 * pair], reference=False)
        likelihoods.append(likelihood / sum(sequences[2 * pair].loss_mask))
        terms.append(term(ratios[0] - ratios[1], config) + config.nll_coef * likelihoods[-1])
        rewards.append([config.beta * ratio for ratio in ratios])
    assert total == pytest.approx(sum(terms) / 4, rel=1e-12)
    assert metrics["chosen_nll"] == pytest.approx(sum(likelihoods) / 4, rel=1e-12)
    assert metrics["accuracy"] == sum(chosen > rejected for chosen, rejected in rewards) / 4
    margins = [chosen - rejected for chosen, rejected in rewards]
    assert metrics["margin"] == pytest.approx(sum(margins) / 4, rel=1e-12)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.3, 0.4)])
def test_unpaired(weights):
    config = UnpairedLossConfig(
        beta=0.3, desirable_weight=weights[0], undesirable_weight=weights[1]
    )
    numbers = {"desirable": lambda rng: rng.random() < 0.5, "kl": lambda rng: 0.125}
    sequences = draw(LENGTHS, **REFERENCE, values=numbers)
    total, metrics, rows = run(UnpairedLoss(config, sequence_sums), sequences)
    terms, rewards = [], {0.0: [], 1.0: []}
    for index, sequence in enumerate(sequences):
        ratio = log_ratio(sequence, rows[index])
        label = sequence.values["desirable"]
        # TRL's `KTOTrainer.kto_loss`
        if label:
            terms.append(weights[0] * (1 - sigmoid(config.beta * (ratio - 0.125))))
        else:
            terms.append(weights[1] * (1 - sigmoid(config.beta * (0.125 - ratio))))
        rewards[label].append(config.beta * ratio)
    assert all(rewards.values())
    assert total == pytest.approx(sum(terms) / 8, rel=1e-12)
    assert metrics["kl"] == pytest.approx(0.125, rel=1e-12)
    for label, name in ((1.0, "desirable_reward"), (0.0, "undesirable_reward")):
        mean = sum(rewards[label]) / len(rewards[label])
        assert metrics[name] == pytest.approx(mean, rel=1e-12)


LOSSES = [
    PairwiseRewardLoss(sequence_sums, 0.1),
    PreferenceLoss(PreferenceLossConfig(nll_coef=0.1), sequence_sums),
    PreferenceLoss(PreferenceLossConfig(kind="ipo"), sequence_sums),
    UnpairedLoss(UnpairedLossConfig(), sequence_sums),
]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_sequences_without_a_trained_token_do_not_count(loss):
    numbers = {"desirable": lambda rng: rng.random() < 0.5, "kl": lambda rng: 0.125}
    sequences = draw(LENGTHS, **REFERENCE, values=numbers)
    counted = loss.divisors(sequences)
    for sequence in sequences[6:]:
        sequence.loss_mask = [0.0] * len(sequence.loss_mask)
    few = loss.divisors(sequences)
    assert few.loss == few.metrics == counted.loss * 6 / 8 == loss.divisors(sequences[:6]).loss
    outputs, batch, _ = packed(sequences, [4, 5, 6, 7])
    total, metrics = loss(outputs, None, batch)
    ends = sum(batch.lengths[:2])
    assert batch.order[:2] == (5, 4)
    short, own, _ = packed(sequences[:6], [4, 5])
    with torch.no_grad():
        short.copy_(outputs[:ends])
    alone, of_two = loss(short, None, own)
    assert total.item() == pytest.approx(alone.item(), rel=1e-12)
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(
        {name: value.item() for name, value in of_two.items()}, rel=1e-12
    )


def test_nothing_trained_is_refused():
    (sequence,) = draw([4])
    sequence.loss_mask = [0.0] * 4
    for loss in (StepRewardLoss(),):
        with pytest.raises(ValueError, match="no token of the batch is trained on"):
            loss.divisors([sequence])
