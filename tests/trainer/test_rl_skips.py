"""A rollout that breaks the losses of actor and critic leaves both as if it had not been."""

import math
from dataclasses import replace

from megarlhf.algo import registry
from megarlhf.config.schema import OutputConfig
from megarlhf.data.saved_batch import read_batch
from megarlhf.engine.actor_worker import ActorWorker
from megarlhf.engine.critic_worker import CriticWorker
from megarlhf.errors import UserError
from megarlhf.parallel.groups import make_groups
from megarlhf.trainer.experience import CreditAssignment, as_sequences
from megarlhf.trainer.trained_models import TrainedModels
from tests.models.tiny import write_llama
from tests.trainer.launched_group import LaunchedGroup
from tests.trainer.test_ppo_layouts import LONGEST, configure, rollouts


def train(rank, world, path, out, broken):
    """Rollouts 1, 2 and 3, the second with losses that are no numbers, or left out.

    After them two more such rollouts, where only one is allowed in a row. Returns the metrics, what was
    said meanwhile, and the error.
    """
    config = configure(path, world, {})
    config = replace(
        config,
        output=OutputConfig(dir=str(out / str(rank))),
        train=replace(config.train, max_skipped_steps=1),
        algorithm=replace(config.algorithm, updates_per_rollout=1),
    )
    (out / str(rank)).mkdir(parents=True)
    algorithm = registry.find("ppo", None)
    actor, critic = (worker(config, rank, world, 1) for worker in (ActorWorker, CriticWorker))
    groups = make_groups(actor.topology, seed=1)
    for worker in (actor, critic):
        worker.start_with(groups)
    notes, found = [], []
    models = TrainedModels(
        config, algorithm, 5, LaunchedGroup(actor), LaunchedGroup(critic), note=notes.append
    )
    credit = CreditAssignment(algorithm, config.algorithm, LONGEST)

    def learn(number, sampled, *, breaks=False):
        sequences = as_sequences(sampled)
        models.add_predictions(sequences)
        credit.assign(sampled, sequences)
        if breaks:
            for name in ("advantages", "returns"):
                sequences[0].fields[name][-1] = math.nan
        found.append(models.update(sequences, number, credit.kl.value))

    first, second, third, *_ = rollouts()
    learn(0, first)
    if broken:
        learn(1, second, breaks=True)
    learn(2, third)
    try:
        for number in (3, 4):
            learn(number, second, breaks=True)
    except UserError as error:
        return found, notes, error.what, error.where
    return found, notes, "", ""


def test_a_broken_rollout_is_skipped_and_two_end_the_run(ranks, tmp_path):
    path = write_llama(tmp_path / "model")
    undisturbed = ranks.run(2, train, path, tmp_path / "a", False)
    disturbed = ranks.run(2, train, path, tmp_path / "b", True)
    for (found, notes, error, file), (expected, *_) in zip(disturbed, undisturbed, strict=True):
        assert found[0] == expected[0]
        assert found[1] == {"skipped_steps": 1.0, "critic_skipped_steps": 1.0, "kl_coef": 0.01}
        assert found[2] == expected[1]  # to the bit
        assert (found[2]["skipped_steps"], found[2]["critic_skipped_steps"]) == (0.0, 0.0)
        assert [note.partition(":")[0] for note in notes] == [
            *("step 2 of the actor", "step 2 of the critic"),
            *("step 4 of the actor", "step 4 of the critic", "step 5 of the actor"),
        ]
        assert error.startswith("step 5 of the actor: loss and grad_norm is not a finite number")
        sequences, about = read_batch(file)
        assert (len(sequences), about["step"]) == (8, "step 5")
        assert math.isnan(sequences[0].fields["advantages"][-1])
