"""The optimizer and the learning rate, without Megatron."""

import copy

import pytest
import torch

from megarlhf.config.schema import OptimizerConfig
from megarlhf.engine.adam import GroupStepAdam
from megarlhf.engine.schedule import learning_rate


def make_problem():
    """A regression; weights and biases in groups of their own, one parameter without gradient."""
    generator = torch.Generator().manual_seed(0)
    inputs, targets = (torch.randn(16, 5, generator=generator) for _ in range(2))
    parameters = [torch.randn(*shape, generator=generator) for shape in ((5, 5), (5,), (3,))]
    weight, bias, unused = (parameter.requires_grad_() for parameter in parameters)
    groups = [{"params": [weight, unused]}, {"params": [bias], "weight_decay": 0.0, "lr": 3e-2}]
    return groups, lambda: (inputs @ weight + bias - targets).square().mean()


SETTINGS = {"lr": 1e-2, "betas": (0.8, 0.95), "eps": 1e-8, "weight_decay": 0.1}


def train(optimizer_class, steps, state=None, settings=SETTINGS):
    groups, loss_of = make_problem()
    optimizer = optimizer_class(groups, **settings)
    if state is not None:
        parameters, optimizer_state = state
        optimizer.load_state_dict(optimizer_state)
        with torch.no_grad():
            for group, values in zip(optimizer.param_groups, parameters, strict=True):
                for parameter, value in zip(group["params"], values, strict=True):
                    parameter.copy_(value)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    parameters = [[p.detach().clone() for p in g["params"]] for g in optimizer.param_groups]
    return losses, parameters, copy.deepcopy(optimizer.state_dict())


def test_adam_is_torchs_adamw():
    losses, parameters, _ = train(GroupStepAdam, 20)
    expected_losses, expected, _ = train(torch.optim.AdamW, 20)
    assert losses == pytest.approx(expected_losses, rel=1e-6)
    for ours, theirs in zip(parameters, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    assert losses[-1] < losses[0]


def test_adam_goes_on_from_its_state():
    whole, expected, _ = train(GroupStepAdam, 20)
    first, parameters, state = train(GroupStepAdam, 8)
    assert [group["step"] for group in state["param_groups"]] == [8, 8]
    second, found, _ = train(GroupStepAdam, 12, (parameters, state))
    assert first + second == whole
    for ours, theirs in zip(found, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_adam_is_decoupled_only():
    with pytest.raises(ValueError, match="decoupled"):
        GroupStepAdam(make_problem()[0], adam_w_mode=False)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # 2 steps of warm-up, then steps 2 to 6; the last is at lr * min_lr_ratio
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.775, 0.55, 0.325, 0.1]),
        ("cosine", [0.5, 1.0, 1.0, 0.868198051534, 0.55, 0.231801948466, 0.1]),
    ],
)
def test_learning_rate_by_hand(schedule, expected):
    config = OptimizerConfig(lr=2.0, min_lr_ratio=0.1, schedule=schedule, warmup_steps=2)
    found = [learning_rate(config, step, 7) for step in range(7)]
    assert found == pytest.approx([2.0 * value for value in expected], rel=1e-10)
    assert learning_rate(config, 9, 7) == pytest.approx(2.0 * expected[-1])


def test_learning_rate_of_the_shortest_runs():
    config = OptimizerConfig(lr=2.0, schedule="cosine")
    assert learning_rate(config, 0, 1) == 2.0
    assert [learning_rate(config, step, 2) for step in (0, 1)] == [2.0, 0.0]
    only_warmup = OptimizerConfig(lr=2.0, schedule="linear", warmup_steps=4)
    assert [learning_rate(only_warmup, step, 4) for step in range(4)] == [0.5, 1.0, 1.5, 2.0]
