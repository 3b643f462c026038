"""What an engine is started with; no vLLM here."""

import ast
import importlib.util
import json
from pathlib import Path

import pytest
import torch

from megarlhf.errors import UserError
from megarlhf.rollout.cpu_kernels import check_kernels, latent_settings
from megarlhf.rollout.settings import engine_environment, gpu_settings, stop_token_ids
from tests.rollout.engine_process import settings_of
from tests.sync.shapes import spec_of

ONE = {"ranks": 1, "whole_experts": False}


@pytest.mark.parametrize(
    ("generation_config", "tokenizer_eos", "ids"),
    [
        (None, 2, [2]),
        (None, None, []),
        ({}, 2, [2]),
        ({"eos_token_id": None}, 2, [2]),
        ({"eos_token_id": 2}, 2, [2]),
        ({"eos_token_id": 0}, 2, [0, 2]),
        ({"eos_token_id": [128009, 128001]}, 128009, [128001, 128009]),
        ({"eos_token_id": [9, 5]}, None, [5, 9]),
    ],
)
def test_a_response_ends_at_every_eos_of_the_model(tmp_path, generation_config, tokenizer_eos, ids):
    if generation_config is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation_config))
    assert stop_token_ids(tmp_path, tokenizer_eos) == ids


def test_on_a_gpu_only_the_scheduler_stays_in_the_process():
    assert engine_environment(4, on_gpu=True) == {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    }


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({}, {}),
        (
            {"tensor_parallel": 2, "can_sleep": True},
            {"distributed_executor_backend": "mp", "disable_custom_all_reduce": True},
        ),
    ],
)
def test_what_engines_on_gpus_are_told(tmp_path, monkeypatch, changed, told):
    settings = settings_of(tmp_path, **changed)
    assert gpu_settings(settings) == {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = gpu_settings(settings)
    assert found == {"async_scheduling": False, **told}
    assert found.keys() <= arguments_of_vllm()


def arguments_of_vllm():
    """Of an engine; read, not imported: that takes seconds."""
    (folder,) = importlib.util.find_spec("vllm").submodule_search_locations
    source = ast.parse(Path(folder, "engine", "arg_utils.py").read_text())
    (cls,) = (n for n in source.body if isinstance(n, ast.ClassDef) and n.name == "EngineArgs")
    return {node.target.id for node in cls.body if isinstance(node, ast.AnnAssign)}


def test_on_cpus_the_engine_stays_in_its_process_and_off_the_cores(monkeypatch):
    monkeypatch.delenv("VLLM_LOGGING_LEVEL", raising=False)
    environment = engine_environment(3, on_gpu=False)
    assert all(isinstance(value, str) for value in environment.values())  # Ray takes no others
    assert environment["VLLM_CPU_KVCACHE_SPACE"] == "3"
    assert environment["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert environment["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert environment["VLLM_LOGGING_LEVEL"] == "ERROR"
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    assert engine_environment(3, on_gpu=False)["VLLM_LOGGING_LEVEL"] == "DEBUG"


def test_a_cpu_samples_with_latents_of_one_size_and_without_the_kernel_for_positions(tmp_path):
    latent = spec_of("deepseek-v3", tmp_path)
    with pytest.raises(UserError, match="latents of 512 beside 64, and these are of 16 beside 4"):
        check_kernels(latent, **ONE)
    check_kernels(spec_of("deepseek-v3", tmp_path, kv_lora_rank=512, qk_rope_head_dim=64), **ONE)
    assert "-rotary_embedding" in str(latent_settings(latent))
    plain = spec_of("llama", tmp_path)
    check_kernels(plain, **ONE)
    assert latent_settings(plain) == {}


def test_a_cpu_cannot_have_whole_experts_on_each_rank(tmp_path):
    mixture = spec_of("mixtral", tmp_path)
    check_kernels(mixture, ranks=1, whole_experts=True)
    check_kernels(mixture, ranks=2, whole_experts=False)
    with pytest.raises(UserError, match="whole experts") as caught:
        check_kernels(mixture, ranks=2, whole_experts=True)
    assert caught.value.where == "rollout.expert_parallel"
