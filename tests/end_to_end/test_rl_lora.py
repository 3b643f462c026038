"""Reinforcement learning of adapters only: engines get the base once, then what was trained."""

from safetensors.torch import load_file

from megarlhf.report.metrics import MetricsLog

RANK = 4


def test_only_adapters_are_trained_and_sent(tmp_path, rl_command, run_cli):
    run = tmp_path / "run"
    run_cli(
        rl_command(
            run,
            f"lora.rank={RANK}",
            "model.parallel.tensor=2",
            "cluster.actor_ranks=2",
            "stream.verify=always",
            "train.steps=3",
            "data.eval_prompts=null",
        )
    )
    steps = [row for row in MetricsLog.read(run) if "logprob_gap" in row]
    assert len(steps) == 3
    assert all(row["grad_norm"] > 0 for row in steps)
    # Sampled from merged weights, trained beside them: rounding of the sum, as in test_rl.py.
    assert max(row["logprob_gap"] for row in steps) < 2e-6
    adapter = load_file(run / "adapter" / "adapter_model.safetensors")
    assert {
        tensor.shape[0 if name.endswith("A.weight") else 1] for name, tensor in adapter.items()
    } == {RANK}
    nbytes = sum(tensor.nbytes for tensor in adapter.values())
    assert {row["stream_bytes"] for row in steps} == {float(nbytes)}
