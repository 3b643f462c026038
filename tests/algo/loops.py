"""The losses and estimators once more, as plain loops over Python floats."""

import math

KL = {
    "k1": lambda d: d,
    "k2": lambda d: d * d / 2,
    "k3": lambda d: math.exp(-d) - 1 + d,
}


def clip(x, low, high):
    return max(low, min(x, high))


def trained(sequence):
    return [t for t, m in enumerate(sequence["mask"]) if m]


def mean_difference(sequence, first, second):
    positions = trained(sequence)
    return sum(sequence[first][t] - sequence[second][t] for t in positions) / len(positions)


def ppo_term(ratio, advantage, config):
    """(loss, bound active) of one token."""
    low, high = 1 - config.clip_low, 1 + config.clip_high
    objective = min(ratio * advantage, clip(ratio, low, high) * advantage)
    active = (ratio > high and advantage > 0) or (ratio < low and advantage < 0)
    if config.dual_clip is not None and advantage < 0 and objective < config.dual_clip * advantage:
        objective, active = config.dual_clip * advantage, True
    return -objective, active


def surrogate(kind, sequence, t, config):
    """(loss, bound active) of one token."""
    advantage = sequence["advantages"][t]
    if kind == "gspo":
        ratio = math.exp(mean_difference(sequence, "logprobs", "old_logprobs"))
        return ppo_term(ratio, advantage, config)
    ratio = math.exp(sequence["logprobs"][t] - sequence["old_logprobs"][t])
    if kind == "cispo":
        weight = clip(ratio, 1 - config.clip_low, 1 + config.clip_high)
        return -weight * advantage * sequence["logprobs"][t], weight != ratio
    return ppo_term(ratio, advantage, config)


def correction(sequence, t, config):
    low, high = config.correction_low, config.correction_high
    weight = math.exp(sequence["old_logprobs"][t] - sequence["rollout_logprobs"][t])
    if config.correction == "tis":
        return clip(weight, low, high)
    if config.correction == "icepop":
        return weight if low <= weight <= high else 0.0
    if config.correction == "sequence_mask":
        mean = math.exp(mean_difference(sequence, "old_logprobs", "rollout_logprobs"))
        return clip(weight, low, high) if low <= mean <= high else 0.0
    return 1.0


def kl_weight(sequence, t, config):
    if config.correction == "none":
        return 1.0
    gap = sequence["old_logprobs"][t] - sequence["rollout_logprobs"][t]
    return min(math.exp(gap), config.correction_high)


def aggregated(losses, config, max_tokens):
    """One number of the trained tokens' losses, a list a sequence."""
    if config.aggregation == "token_mean":
        flat = [x for sequence in losses for x in sequence]
        return sum(flat) / len(flat)
    if config.aggregation == "sequence_mean":
        return sum(sum(x) / len(x) for x in losses) / len(losses)
    return sum(sum(x) / max_tokens for x in losses) / len(losses)


def policy_loss(kind, sequences, config, max_tokens):
    """The loss of a whole batch, and the sums of its metrics."""
    losses, sums = [], {}
    for s in sequences:
        losses.append([])
        for t in trained(s):
            loss, active = surrogate(kind, s, t, config)
            weight = correction(s, t, config)
            kl = KL[config.kl_estimator](s["logprobs"][t] - s["reference_logprobs"][t])
            kl *= kl_weight(s, t, config)
            full = weight * loss - config.entropy_coef * s["entropy"][t]
            full += config.kl_coef * kl if config.kl_in == "loss" else 0.0
            losses[-1].append(full)
            gap = s["old_logprobs"][t] - s["rollout_logprobs"][t]
            for name, value in {
                "policy_loss": loss,
                "kl": kl,
                "entropy": s["entropy"][t],
                "clip_fraction": float(active),
                "logprob_gap": abs(gap),
                "sampler_kl": KL["k3"](-gap),
                "correction": weight,
            }.items():
                sums[name] = sums.get(name, 0.0) + value
    return aggregated(losses, config, max_tokens), sums


def value_loss(sequences, config, max_tokens):
    losses = []
    for s in sequences:
        losses.append([])
        for t in trained(s):
            value, old, target = s["logprobs"][t], s["old_values"][t], s["returns"][t]
            error = (value - target) ** 2
            if config.value_clip is not None:
                near = old + clip(value - old, -config.value_clip, config.value_clip)
                error = max(error, (near - target) ** 2)
            losses[-1].append(error / 2)
    return aggregated(losses, config, max_tokens)


# -- estimators: mask and rewards of one sequence, lists -----------------------------------------


def rewards_of(per_token, outcome, mask):
    """The chosen tokens' rewards in order, the outcome on the last."""
    rewards = [r for r, m in zip(per_token, mask, strict=True) if m]
    if rewards:
        rewards[-1] += outcome
    return rewards


def spread(values, mask):
    """The chosen tokens' values back at their places."""
    left = iter(values)
    return [next(left) if m else 0.0 for m in mask]


def returns(per_token, outcome, mask, gamma):
    """From its definition, a sum for each token."""
    rewards = rewards_of(per_token, outcome, mask)
    found = [
        sum(gamma**k * reward for k, reward in enumerate(rewards[t:])) for t in range(len(rewards))
    ]
    return spread(found, mask)


def gae(per_token, outcome, mask, values, gamma, lam):
    """From its definition: sum over l of (gamma lambda)^l delta_{t+l}."""
    rewards = rewards_of(per_token, outcome, mask)
    chosen = [v for v, m in zip(values, mask, strict=True) if m] + [0.0]
    deltas = [r + gamma * chosen[t + 1] - chosen[t] for t, r in enumerate(rewards)]
    found = [
        sum((gamma * lam) ** k * delta for k, delta in enumerate(deltas[t:]))
        for t in range(len(deltas))
    ]
    return spread(found, mask), spread([a + v for a, v in zip(found, chosen, strict=False)], mask)


def baseline(kind, rewards):
    """A group's outcomes minus its baseline."""
    n, mean = len(rewards), sum(rewards) / len(rewards)
    if kind == "leave_one_out":
        return [
            r - sum(other for j, other in enumerate(rewards) if j != i) / (n - 1)
            for i, r in enumerate(rewards)
        ]
    if kind == "centred":
        return [r - mean for r in rewards]
    deviation = math.sqrt(sum((r - mean) ** 2 for r in rewards) / (n - 1))
    return [(r - mean) / (deviation + 1e-6) for r in rewards]


def normalized(rows, masks, kind):
    """Over all chosen tokens of all sequences."""
    chosen = [
        a
        for row, mask in zip(rows, masks, strict=True)
        for a, m in zip(row, mask, strict=True)
        if m
    ]
    mean = sum(chosen) / len(chosen)
    variance = sum((a - mean) ** 2 for a in chosen) / len(chosen)
    scale = math.sqrt(max(variance, 1e-8)) if kind == "std" else 1.0
    return [
        [(a - mean) / scale if m else 0.0 for a, m in zip(row, mask, strict=True)]
        for row, mask in zip(rows, masks, strict=True)
    ]
