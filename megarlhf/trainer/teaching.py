"""The teacher of a distillation: checked before, built when the run begins."""

from transformers import PreTrainedTokenizerBase

from megarlhf.config.batch_checks import check_sequence_length
from megarlhf.config.layout_checks import check_parallel
from megarlhf.config.model_files import read_model_config
from megarlhf.config.offline_checks import check_lessons
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
    if load_tokenizer(config.teacher.path).get_vocab() != tokenizer.get_vocab():
        raise UserError(
            "the teacher has another tokenizer: its distributions are over other tokens",
            where="teacher.path",
            fix="choose a teacher whose tokenizer is that of model.path",
        )
    check_lessons(config, spec.vocab_size, teacher.vocab_size, world)


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
