"""Rules about the data section: sources and their shares, templates, which settings go together."""

from pathlib import Path

from megarlhf.config.schema import PromptDataConfig, RowDataConfig, SupervisedDataConfig
from megarlhf.errors import UserError

FILE_PREFIXES = ("json@", "parquet@", "arrow@", "csv@")


def check_data(data: PromptDataConfig | RowDataConfig) -> None:
    """Everything about a data section that can be known before a row is read.

    Raises:
        UserError: A rule is broken; names the key and what to change.
    """
    check_input_text(data)
    if isinstance(data, PromptDataConfig):
        training, sources = "data.prompts", data.prompts
        check_data_source("data.eval_prompts", data.eval_prompts)
    else:
        training, sources = "data.train", data.train
        check_data_source("data.eval", data.eval)
    check_data_source(training, sources)
    check_mixing(data)
    if isinstance(data, SupervisedDataConfig):
        check_supervised(data)


def check_input_text(data: PromptDataConfig | RowDataConfig) -> None:
    """The input is put in one template, which has one place for it."""
    if data.tokenizer_chat_template is not None and not data.apply_chat_template:
        raise UserError(
            "needs data.apply_chat_template=true",
            where="data.tokenizer_chat_template",
            fix="set that, or leave the template out",
        )
    template = data.input_template
    if template is None:
        return
    if data.apply_chat_template:
        raise UserError(
            "excludes data.apply_chat_template=true",
            where="data.input_template",
            fix="leave one of the two out",
        )
    if template.count("{}") != 1:
        raise UserError(
            f"must contain {{}} exactly once, where the input goes, got {template!r}",
            where="data.input_template",
            fix=r'write it like "Question: {}\nAnswer:"',
        )


def check_data_source(key: str, sources: str | None) -> None:
    """The paths of ``json@PATH`` and the like exist; what else there is, is for `data` to say."""
    if sources is None:
        return
    whole = sources.partition("@")[2]
    if whole and Path(whole).exists():  # there may be a comma in its name
        return
    for source in sources.split(","):
        source = source.strip()
        if not source:
            raise UserError(
                f"an empty source in {sources!r}", where=key, fix="remove the extra comma"
            )
        path = Path(source.partition("@")[2])
        if source.startswith(FILE_PREFIXES) and not path.exists():
            raise UserError(f"no such file or directory: {path}", where=key, fix="check the path")


def check_mixing(data: PromptDataConfig | RowDataConfig) -> None:
    """A rule for the end of a mix needs a mix; whose shares are right is for `data` to say."""
    if data.probabilities is None and data.mixing != "first_exhausted":
        raise UserError(
            "needs data.probabilities: without them the sources are read one after the other",
            where="data.mixing",
            fix="set data.probabilities, one for each source, or leave data.mixing out",
        )


def check_supervised(data: SupervisedDataConfig) -> None:
    """The settings of the three kinds of rows are not mixed up."""
    if data.pretrain_mode:
        for key, is_set in {
            "data.input_template": data.input_template is not None,
            "data.apply_chat_template": data.apply_chat_template,
            "data.reward_key": data.reward_key is not None,
        }.items():
            if is_set:
                raise UserError(
                    "excludes data.pretrain_mode=true, which takes the text as it is",
                    where=key,
                    fix="leave one of the two out",
                )
    elif data.output_key is None and not data.apply_chat_template:
        raise UserError(
            "a conversation (data.output_key=null) needs data.apply_chat_template=true",
            where="data.output_key",
            fix="set that, name the key of the outputs, or set data.pretrain_mode=true",
        )
    if data.turns != "all" and (data.output_key is not None or data.pretrain_mode):
        raise UserError(
            "is for conversations that hold their answers (data.output_key=null)",
            where="data.turns",
            fix="set data.output_key=null, or leave data.turns out",
        )
    if data.reward_key is not None and data.output_key is None:
        raise UserError(
            "needs rows with an input and an output",
            where="data.reward_key",
            fix="set data.output_key, or leave data.reward_key out",
        )
    for slot in ("{input}", "{reward}"):
        if data.reward_template.count(slot) != 1:
            raise UserError(
                f"must contain {slot} exactly once, got {data.reward_template!r}",
                where="data.reward_template",
                fix='write it like "{input} <rm_score>: {reward} "',
            )
