"""Rules about the data section."""

import pytest

from megarlhf.config.data_checks import check_data
from megarlhf.config.loader import load
from megarlhf.config.schema import (
    PreferenceDataConfig,
    PromptDataConfig,
    StepDataConfig,
    SupervisedDataConfig,
    UnpairedDataConfig,
)
from megarlhf.errors import UserError


@pytest.mark.parametrize(
    "cls", [SupervisedDataConfig, PreferenceDataConfig, UnpairedDataConfig, StepDataConfig]
)
def test_defaults_and_lists(cls):
    data = load(cls, None, ["train=a,b", "probabilities=[0.5, 0.5]", "mixing=all_exhausted"])
    assert data.probabilities == (0.5, 0.5)
    check_data(data)


@pytest.mark.parametrize(
    "settings",
    [
        ["output_key=null", "apply_chat_template=true", "turns=marked"],
        ["pretrain_mode=true"],
        ["reward_key=score"],
        ["apply_chat_template=true", "tokenizer_chat_template={{ messages }}"],
    ],
)
def test_right_supervised_settings(settings):
    check_data(load(SupervisedDataConfig, None, ["train=some/data", *settings]))


@pytest.mark.parametrize(
    ("settings", "where", "message"),
    [
        (["output_key=null"], "data.output_key", "needs data.apply_chat_template=true"),
        (["turns=last"], "data.turns", "data.output_key=null"),
        (["pretrain_mode=true", "turns=last"], "data.turns", "data.output_key=null"),
        (["pretrain_mode=true", "input_template={}"], "data.input_template", "pretrain_mode"),
        (["pretrain_mode=true", "reward_key=r"], "data.reward_key", "pretrain_mode"),
        (
            ["pretrain_mode=true", "apply_chat_template=true"],
            "data.apply_chat_template",
            "pretrain_mode",
        ),
        (
            ["reward_key=r", "output_key=null", "apply_chat_template=true"],
            "data.reward_key",
            "input and an output",
        ),
        (["reward_template={input}"], "data.reward_template", "{reward} exactly once"),
        (["tokenizer_chat_template={{ m }}"], "data.tokenizer_chat_template", "needs"),
        (["mixing=all_exhausted"], "data.mixing", "needs data.probabilities"),
        (["train=parquet@/no/file"], "data.train", "no such file or directory: /no/file"),
        (["train=a,,b"], "data.train", "an empty source"),
        (["train=a,arrow@/no/file"], "data.train", "/no/file"),
        (["eval=json@/no/file"], "data.eval", "/no/file"),
    ],
)
def test_wrong_supervised_settings(settings, where, message):
    data = load(SupervisedDataConfig, None, ["train=some/data", *settings])
    with pytest.raises(UserError) as caught:
        check_data(data)
    assert caught.value.where == where
    assert message in caught.value.what
    assert caught.value.fix


def test_prompts():
    check_data(PromptDataConfig(prompts="a,b", probabilities=(0.5, 0.5)))
    with pytest.raises(UserError, match="/no/file"):
        check_data(PromptDataConfig(prompts="a", eval_prompts="b,json@/no/file"))
