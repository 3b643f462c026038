"""Everything an RL run reads, read and checked before any process starts or model is built."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from megarlhf.agents.rewards import AgentRewards
from megarlhf.algo import registry
from megarlhf.algo.registry import Algorithm
from megarlhf.algo.rules import check_algorithm
from megarlhf.cluster.stream_links import engine_topology
from megarlhf.config import checks
from megarlhf.config.learning_checks import evaluation_sets
from megarlhf.config.reward_checks import models_by_name
from megarlhf.config.schema import RLConfig
from megarlhf.data.curriculum import prompt_stream
from megarlhf.data.prompts import PromptStream, load_prompts
from megarlhf.data.records import Prompt
from megarlhf.errors import UserError
from megarlhf.models.lora.wanted import adapters_of
from megarlhf.models.spec import ModelSpec
from megarlhf.models.weights.loading import check_names, open_weights
from megarlhf.parallel.topology import Topology
from megarlhf.rewards.mix import Rewards
from megarlhf.sync.streamable import check_streamable
from megarlhf.trainer.pretraining_rows import PretrainingRows
from megarlhf.trainer.samplers import scoring_of


@dataclass
class RLInputs:
    """What `prepare` found.

    Attributes:
        spec: The model that is trained.
        tokenizer: The model's tokenizer.
        algorithm: Its row of the registry.
        reward: What scores the samples; checked, not started.
        stream: The training prompts, in the order of training.
        eval_sets: Held-out prompts by name, ``""`` for those of ``data.eval_prompts``.
        ptx: Supervised rows mixed into the actor's batches; None without `ptx.coef`.
        total_steps: How many rollouts the whole run trains on.
    """

    spec: ModelSpec
    tokenizer: PreTrainedTokenizerBase
    algorithm: Algorithm
    reward: Rewards | AgentRewards
    stream: PromptStream
    eval_sets: dict[str, list[Prompt]]
    ptx: PretrainingRows | None
    total_steps: int


def prepare(config: RLConfig) -> RLInputs:
    """Read and check the configuration, the model's description, the data and the reward.

    Raises:
        UserError: Anything is missing, malformed or does not fit together.
    """
    algorithm = registry.find(config.algorithm.name, config.algorithm.file)
    checks.check_rl(config)
    check_algorithm(algorithm, config)
    spec = read_language_model(config.model.path)
    check_streamable(spec, engine_topology(config))
    topology = Topology.of(config.model.parallel, config.cluster.actor_ranks)
    topology.layers_of(spec.num_layers, 0)
    adapters_of(config.lora, spec, topology, config.train.seed)
    tokenizer = load_tokenizer(config.model.path)
    prompts = load_prompts(config.data, config.data.prompts, tokenizer)
    eval_sets = {
        name: load_prompts(config.data, source, tokenizer, held_out=True)
        for name, source in evaluation_sets(config).items()
    }
    ptx = PretrainingRows.read(config, tokenizer)
    tokens = [prompt.token_ids for part in (prompts, *eval_sets.values()) for prompt in part]
    check_vocabulary([*tokens, *([[ptx.highest_token]] if ptx else [])], tokenizer, spec)
    stream = prompt_stream(config.data, prompts, config.train.seed)
    steps = config.train.steps
    if steps is None:
        steps = stream.steps_for(config.train.epochs, config.rollout.prompts_per_step)
    if algorithm.needs_critic:
        check_critic(config, tokenizer)
    reward = scoring_of(config, reward_tokenizers(config, tokenizer))
    return RLInputs(
        spec=spec,
        tokenizer=tokenizer,
        algorithm=algorithm,
        reward=reward,
        stream=stream,
        eval_sets=eval_sets,
        ptx=ptx,
        total_steps=steps,
    )


def check_critic(config: RLConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that the critic can be built and reads the same tokens as the actor.

    Raises:
        UserError: It cannot be built, or it has another tokenizer.
    """
    checks.check_critic(config)
    path = config.critic.path
    spec = checked(ModelSpec.read_scalar(path or config.model.path))
    ranks = config.cluster.critic_ranks or config.cluster.actor_ranks
    Topology.of(config.critic.parallel, ranks).layers_of(spec.num_layers, 0)
    if path is not None and load_tokenizer(path).get_vocab() != tokenizer.get_vocab():
        raise UserError(
            "the critic's tokenizer is not the actor's: it would read other words in the same ids",
            where="critic.path",
            fix="start the critic from a model with the tokenizer of model.path",
        )


def reward_tokenizers(
    config: RLConfig, tokenizer: PreTrainedTokenizerBase
) -> dict[str, PreTrainedTokenizerBase]:
    """Check the reward models; returns, by name, the tokenizers that differ from the actor's.

    Raises:
        UserError: A model cannot be built, or is no reward model.
    """
    checks.check_reward_models(config)
    others = {}
    for name, path in models_by_name(config.reward.models).items():
        own = check_reward_model(config, path)
        if own.get_vocab() != tokenizer.get_vocab():
            others[name] = own
    return others


def check_reward_model(config: RLConfig, path: str) -> PreTrainedTokenizerBase:
    """Check one of ``reward.models``; returns its tokenizer.

    Raises:
        UserError: The model cannot be built, or is no reward model.
    """
    spec = checked(ModelSpec.read(path))
    if spec.scalar_head is None:
        raise UserError(
            "a language model: it predicts tokens and scores nothing",
            where=path,
            fix="give an AutoModelForSequenceClassification directory",
        )
    topology = Topology.of(config.reward.parallel, config.cluster.reward_ranks)
    topology.layers_of(spec.num_layers, 0)
    return load_tokenizer(path)


def checked(spec: ModelSpec) -> ModelSpec:
    """Return ``spec`` if its directory holds its weights; only the files' headers are read.

    Raises:
        UserError: A file or a tensor is missing, damaged, unknown or of another shape.
    """
    check_names(spec, open_weights(spec))
    return spec


def read_language_model(path: str) -> ModelSpec:
    """The description of a model that predicts tokens.

    Raises:
        UserError: It is a reward model; or see `checked`.
    """
    spec = checked(ModelSpec.read(path))
    if spec.scalar_head is not None:
        raise UserError(
            "a reward model: it scores tokens and does not predict them",
            where=path,
            fix="set model.path to a language model",
        )
    return spec


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a Hugging Face directory.

    Raises:
        UserError: There is none, or it does not load.
    """
    try:
        return AutoTokenizer.from_pretrained(path)
    except Exception as error:  # OSError, ValueError, KeyError, the bare Exception of `tokenizers`
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"the tokenizer does not load: {reason:.300}",
            where=path,
            fix="put the tokenizer's files (tokenizer.json, ...) beside the model's",
        ) from error


def check_vocabulary(
    sequences: Iterable[Sequence[int]], tokenizer: PreTrainedTokenizerBase, spec: ModelSpec
) -> None:
    """Refuse token ids that the model has no embedding for.

    Raises:
        UserError: Names such a token.
    """
    highest = max(max(token_ids) for token_ids in sequences)
    if highest >= spec.vocab_size:
        token = tokenizer.convert_ids_to_tokens(highest)
        raise UserError(
            f"the tokenizer gives id {highest} ({token!r}), the model has only "
            f"{spec.vocab_size} embeddings",
            where=str(spec.path),
            fix="use the tokenizer that belongs to the model",
        )
