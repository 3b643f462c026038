"""Sections that say where rows come from and what is in them."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from megarlhf.config.schema.common import REQUIRED


@dataclass(frozen=True)
class PromptDataConfig:
    """Prompts for RL and where to find their text and label in a row."""

    prompts: str = (
        REQUIRED  # json@PATH, parquet@PATH, ..., or a name for `datasets`; several with commas
    )
    eval_prompts: str | None = None  # held-out prompts, same format
    split: str | None = None  # of prompts; None: the one called train, or the only one
    eval_split: str | None = None  # of eval_prompts
    probabilities: tuple[float, ...] | None = None  # one a source of prompts; None: one by one
    mixing: Literal["first_exhausted", "all_exhausted"] = "first_exhausted"  # when a mix ends
    input_key: str = "prompt"
    label_key: str | None = None  # handed to the reward function
    input_template: str | None = None  # e.g. "Question: {}\nAnswer:"; excludes apply_chat_template
    apply_chat_template: bool = False  # wrap the input as a user turn with the tokenizer's template
    tokenizer_chat_template: str | None = None  # a template, or a file, in place of the tokenizer's
    max_samples: int | None = None
    max_prompt_tokens: int = 1024
    overlong_prompts: Literal["error", "drop"] = "error"
    shuffle: bool = True
    curriculum: bool = False  # prefer prompts that are sometimes solved, by measured pass rates


@dataclass(frozen=True)
class RowDataConfig:
    """What the data of all offline methods has in common: sources, templates, limits."""

    sequences_per_row: ClassVar[int] = 1

    train: str = (
        REQUIRED  # json@PATH, parquet@PATH, ..., or a name for `datasets`; several with commas
    )
    eval: str | None = None  # held-out rows, same format; None: eval_split of train, if it is set
    split: str | None = None  # of train; None: the one called train, or the only one
    eval_split: str | None = None  # of eval, or of train without eval
    probabilities: tuple[float, ...] | None = None  # one a source of train; None: one by one
    mixing: Literal["first_exhausted", "all_exhausted"] = "first_exhausted"  # when a mix ends
    input_template: str | None = None  # e.g. "Question: {}\nAnswer:"; excludes apply_chat_template
    apply_chat_template: bool = False  # prompts and answers are turns of the chat template
    tokenizer_chat_template: str | None = None  # a template, or a file, in place of the tokenizer's
    max_samples: int | None = None
    max_tokens: int = 2048
    overlong_rows: Literal["error", "drop", "truncate_left", "truncate_right"] = "error"
    shuffle: bool = True
    workers: int = 1  # processes that tokenize
    cache_dir: str | None = None  # tokenized rows are kept here; None: in output.dir/tokenized


@dataclass(frozen=True)
class SupervisedDataConfig(RowDataConfig):
    """Rows for supervised training: input and output, conversations, or plain text."""

    input_key: str = "input"
    output_key: str | None = "output"  # null: the input is a conversation with the answers in it
    turns: Literal["all", "last", "marked"] = "all"  # of such: which assistant turns are trained on
    pretrain_mode: bool = False  # the input is plain text, all of it trained on; no output_key
    reward_key: str | None = None  # a number that reward_template writes into the input
    reward_template: str = "{input} <rm_score>: {reward} "


@dataclass(frozen=True)
class PreferenceDataConfig(RowDataConfig):
    """Pairs of answers, for reward models and DPO."""

    sequences_per_row: ClassVar[int] = 2

    prompt_key: str | None = "prompt"  # null: chosen and rejected are whole texts or conversations
    chosen_key: str = "chosen"
    rejected_key: str = "rejected"
    margin_key: str | None = None  # by how much chosen is better, a number


@dataclass(frozen=True)
class UnpairedDataConfig(RowDataConfig):
    """Single answers, each desirable or not, for KTO."""

    input_key: str = "prompt"
    output_key: str = "completion"
    label_key: str = "label"  # true: desirable


@dataclass(frozen=True)
class StepDataConfig(RowDataConfig):
    """Answers in steps, each with a label, for process reward models."""

    input_key: str | None = "prompt"  # null: the steps are all there is
    steps_key: str = "completions"  # a list of steps, or a text with step_token after each
    label_key: str = "labels"  # true or false, or numbers from 0 to 1, one a step
    step_token: str = "\n"  # one token of the tokenizer; the step is judged at it
