"""The teacher of a distillation: checked before, built when the run begins."""

from transformers import PreTrainedTokenizerBase

from megarlhf.config.batch_checks import check_sequence_length
from megarlhf.config.layout_checks import check_parallel
from megarlhf.config.model_files import read_model_config
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
    layout = config.teacher.parallel
    model = read_model_config(config.teacher.path, "teacher.path")
    check_parallel(layout, model, world, "torchrun's number of processes", "teacher.parallel")
    check_sequence_length({"data.max_tokens": config.data.max_tokens}, model, "teacher")
    teacher = read_language_model(config.teacher.path)
    Topology.of(layout, world).layers_of(teacher.num_layers, 0)
    student = Topology.of(config.model.parallel, world)
    stride = student.dp * (student.pp if student.vpp > 1 else 1)
    if config.train.batch_size % stride:
        raise UserError(
            f"must be a multiple of {stride}, for the teacher to know who needs what of its "
            f"distributions, got {config.train.batch_size}",
            where="train.batch_size",
            fix=f"use {-(-config.train.batch_size // stride) * stride}",
        )
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
