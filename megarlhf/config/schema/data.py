"""Sections that say where rows come from and what is in them."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from megarlhf.config.schema.common import REQUIRED


@dataclass(frozen=True)
class PromptDataConfig:
    """Prompts for RL and where to find their text and label in a row."""

    prompts: str = (
        REQUIRED  # json@PATH, parquet@PATH, ..., or a name for `datasets`; or several, by commas
    )
    eval_prompts: str | None = None  # held-out prompts, in the same format
    split: str | None = None  # split of prompts; null: the one called train, or the only one
    eval_split: str | None = None  # split of eval_prompts
    probabilities: tuple[float, ...] | None = None  # one per source; null: one after the other
    mixing: Literal["first_exhausted", "all_exhausted"] = "first_exhausted"  # a mix then ends
    input_key: str = "prompt"  # key of a row's prompt
    label_key: str | None = None  # key of a row's label, which the reward function is given
    input_template: str | None = None  # e.g. "Question: {}\nAnswer:"; excludes apply_chat_template
    apply_chat_template: bool = False  # wrap the input as a user turn with the tokenizer's template
    tokenizer_chat_template: str | None = None  # a template, or a file, in place of the tokenizer's
    max_samples: int | None = None  # use only so many rows
    max_prompt_tokens: int = 1024
    overlong_prompts: Literal["error", "drop"] = "error"  # what to do with longer prompts
    shuffle: bool = True
    curriculum: bool = False  # prefer prompts that are sometimes solved, by measured pass rates


@dataclass(frozen=True)
class RowDataConfig:
    """What the data of all offline methods has in common: sources, templates, limits."""

    sequences_per_row: ClassVar[int] = 1

    train: str = (
        REQUIRED  # json@PATH, parquet@PATH, ..., or a name for `datasets`; or several, by commas
    )
    eval: str | None = None  # held-out rows, in the same format; null: eval_split of train, if set
    split: str | None = None  # split of train; null: the one called train, or the only one
    eval_split: str | None = None  # split of eval, or of train where eval is null
    probabilities: tuple[float, ...] | None = None  # one per source; null: one after the other
    mixing: Literal["first_exhausted", "all_exhausted"] = "first_exhausted"  # a mix then ends
    input_template: str | None = None  # e.g. "Question: {}\nAnswer:"; excludes apply_chat_template
    apply_chat_template: bool = False  # make prompts and answers turns of the chat template
    tokenizer_chat_template: str | None = None  # a template, or a file, in place of the tokenizer's
    max_samples: int | None = None  # use only so many rows
    max_tokens: int = 2048  # longest sequence
    overlong_rows: Literal["error", "drop", "truncate_left", "truncate_right"] = "error"
    shuffle: bool = True
    workers: int = 1  # processes that tokenize
    cache_dir: str | None = None  # where tokenized rows are kept; null: in output.dir/tokenized


@dataclass(frozen=True)
class SupervisedDataConfig(RowDataConfig):
    """Rows for supervised training: input and output, conversations, or plain text."""

    input_key: str = "input"  # key of a row's input
    output_key: str | None = "output"  # key of a row's output; null: the input is a conversation
    turns: Literal["all", "last", "marked"] = "all"  # assistant turns that are trained on
    pretrain_mode: bool = False  # the input is plain text, all of it trained on; no output_key
    reward_key: str | None = None  # key of a number that reward_template writes into the input
    reward_template: str = "{input} <rm_score>: {reward} "


@dataclass(frozen=True)
class PreferenceDataConfig(RowDataConfig):
    """Pairs of answers, for reward models and DPO."""

    sequences_per_row: ClassVar[int] = 2

    prompt_key: str | None = "prompt"  # null: chosen and rejected are whole texts or conversations
    chosen_key: str = "chosen"
    rejected_key: str = "rejected"
    margin_key: str | None = None  # key of a number: by how much chosen is better


@dataclass(frozen=True)
class UnpairedDataConfig(RowDataConfig):
    """Single answers, each desirable or not, for KTO."""

    input_key: str = "prompt"
    output_key: str = "completion"
    label_key: str = "label"  # key of whether the answer is desirable


@dataclass(frozen=True)
class StepDataConfig(RowDataConfig):
    """Answers in steps, each with a label, for process reward models."""

    input_key: str | None = "prompt"  # null: there are only steps
    steps_key: str = "completions"  # key of a list, or of a text with step_token after each step
    label_key: str = "labels"  # key of one label per step: true or false, or a number from 0 to 1
    step_token: str = "\n"  # one token of the tokenizer, at which a step is judged
