"""The teacher of a distillation: checked before, built when the run begins."""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import PreTrainedTokenizerBase

from megarlhf.config import checks
from megarlhf.config.layout_checks import check_parallel, check_sequence_length
from megarlhf.config.schema import KDConfig, ModelConfig
from megarlhf.engine.model_engine import ModelEngine
from megarlhf.engine.teacher import Teacher
from megarlhf.errors import UserError
from megarlhf.models.spec import ModelSpec
from megarlhf.parallel.second_layout import SecondLayout
from megarlhf.parallel.topology import Topology
from megarlhf.trainer.preparation import Parts
from megarlhf.trainer.rl_inputs import load_tokenizer, read_language_model


def check_teacher(
    config: KDConfig, spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, world: int
) -> None:
    """The teacher fits its layout, the rows and the student's tokens.

    Raises:
        UserError: It does not.
    """
    with _said_of_the_teacher():
        model = checks.read_model_config(config.teacher.path)
        check_parallel(config.teacher.parallel, model, world, "torchrun's number of processes")
        check_sequence_length({"data.max_tokens": config.data.max_tokens}, model)
        teacher = read_language_model(config.teacher.path)
        Topology.of(config.teacher.parallel, world).layers_of(teacher.num_layers, 0)
    if load_tokenizer(config.teacher.path).get_vocab() != tokenizer.get_vocab():
        raise UserError(
            "the teacher has another tokenizer: its distributions are over other tokens",
            where="teacher.path",
            fix="choose a teacher whose tokenizer is that of model.path",
        )
    if teacher.vocab_size < spec.vocab_size:
        raise UserError(
            f"the teacher has {teacher.vocab_size} embeddings, the student {spec.vocab_size}",
            where="teacher.path",
            fix="choose a teacher with at least as many",
        )
    if (config.loss.top_k or 0) > spec.vocab_size:
        raise UserError(
            f"must be at most the vocabulary's size ({spec.vocab_size}), got {config.loss.top_k}",
            where="loss.top_k",
            fix="lower it, or leave it out to use the whole vocabulary",
        )


@contextmanager
def _said_of_the_teacher() -> Iterator[None]:
    """The rules for ``model`` hold for ``teacher`` too; so do their errors, with its keys."""

    def renamed(text: str | None) -> str | None:
        return text and text.replace("model.parallel", "teacher.parallel").replace(
            "model.path", "teacher.path"
        )

    try:
        yield
    except UserError as error:
        raise UserError(
            renamed(error.what), where=renamed(error.where), fix=renamed(error.fix)
        ) from None


def teacher_of(parts: Parts) -> Teacher:
    """Build the teacher in its layout, beside the student."""
    config, student = parts.config, parts.engine
    topology = Topology.of(config.teacher.parallel, student.topology.world)
    layout = SecondLayout(topology, config.train.seed)
    with layout.active():
        engine = ModelEngine(
            ModelSpec.read(config.teacher.path),
            ModelConfig(
                config.teacher.path, config.teacher.dtype, parallel=config.teacher.parallel
            ),
            topology,
            layout.groups,
            student.rank,
            micro_batch_tokens=config.train.micro_batch_tokens,
        )
    return Teacher(engine, layout, student, config.loss)
