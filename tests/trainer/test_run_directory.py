import json
import subprocess
import sys

import pytest

from megarlhf.config import loader
from megarlhf.config.schema import RLConfig, SFTConfig
from megarlhf.config.settings import to_dict
from megarlhf.errors import UserError
from megarlhf.trainer.run_directory import RunDirectory

HOLD = """
import sys
from megarlhf.config import loader
from megarlhf.config.schema import RLConfig
from megarlhf.trainer.run_directory import RunDirectory
with RunDirectory("rl", loader.load(RLConfig, None, [f"output.dir={sys.argv[1]}"])):
    print("claimed", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def claim(tmp_path):
    """The run directory ``tmp_path/out`` for a configuration with the given overrides."""

    def claim(*overrides, command="rl", cls=RLConfig):
        config = loader.load(cls, None, [f"output.dir={tmp_path / 'out'}", *overrides])
        return RunDirectory(command, config)

    return claim


def refused(directory) -> UserError:
    with pytest.raises(UserError) as caught, directory:
        pass
    assert caught.value.where == str(directory.path)
    assert "output.dir" in caught.value.fix
    return caught.value


def snapshot(path):
    return {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}


def save(directory, step, **state):
    draft = directory.checkpoints.begin(step)
    (draft / "weights").write_text(str(step))
    return directory.checkpoints.commit(draft, {"step": step, **state})


# --- Whose it is --------------------------------------------------------------------------------


def test_a_new_directory_is_made_and_says_what_runs(claim):
    with claim("optimizer.lr=2e-6") as directory:
        assert directory.checkpoints.newest() is None
    loaded = loader.load(RLConfig, directory.path / "config.yaml")
    assert loaded.optimizer.lr == 2e-6
    assert to_dict(loaded) == json.loads((directory.path / "run.json").read_text())["config"]


def test_a_run_from_before_a_setting_was_there_goes_on(claim):
    with claim() as directory:
        noted = json.loads((directory.path / "run.json").read_text())
    del noted["config"]["train"]["seed"]
    (directory.path / "run.json").write_text(json.dumps(noted))
    with claim():
        pass
    (directory.path / "run.json").write_text(json.dumps(noted))
    assert "train.seed was 1, is 2" in refused(claim("train.seed=2")).what


def test_logs_of_the_launcher_are_not_in_the_way(claim, tmp_path):
    (tmp_path / "out" / "logs").mkdir(parents=True)
    with claim():
        pass


def test_the_same_run_goes_on(claim):
    for _ in range(2):
        with claim("optimizer.lr=2e-6"):
            pass


@pytest.mark.parametrize(
    "override",
    [
        "train.steps=7",
        "train.epochs=2",
        "train.save_every=3",
        "train.eval_every=3",
        "train.keep_checkpoints=1",
        "output.tensorboard=false",
        "output.sampled_rollouts=0",
        "cluster.actor_ranks=4",
        "model.parallel.tensor=2",
        "rollout.engines=2",
        "reward.parallel.tensor=2",
        # What errors of a running run tell to change.
        "reward.on_failure=drop",
        "agent.on_failure=drop",
        "algorithm.max_logprob_gap=0.1",
        "rollout.timeout_s=7200",
        "stream.transport=gloo",
        "stream.verify=never",
    ],
)
def test_length_rhythm_and_place_may_change(claim, override):
    with claim():
        pass
    with claim(override) as directory:
        pass
    assert loader.load(RLConfig, directory.path / "config.yaml") == loader.load(
        RLConfig, None, [f"output.dir={directory.path}", override]
    )


def test_a_changed_setting_is_refused_with_both_values(claim):
    with claim("train.seed=3", "rollout.dtype=bfloat16") as directory:
        pass
    before = snapshot(directory.path)
    error = refused(claim("train.seed=4", "data.input_key=q", "train.steps=7"))
    assert error.what.endswith(
        "different are: data.input_key was 'prompt', is 'q'; "
        "rollout.dtype was 'bfloat16', is None; train.seed was 3, is 4"
    )
    assert snapshot(directory.path) == before
    with claim("train.seed=3", "rollout.dtype=bfloat16"):  # the refused one let go of the lock
        pass


def test_reward_servers_may_move_but_not_change(claim):
    with claim("reward.urls=[a=http://one:1/x,a=http://two:1/x,b=http://one:2/x]"):
        pass
    with claim("reward.urls=[a=http://three:9/y,b=http://three:8/y]"):
        pass
    assert "reward.urls was" in refused(claim("reward.urls=[b=http://one:2/x]")).what
    assert "reward.urls was" in refused(claim("reward.urls=[]")).what


def test_another_commands_run_is_refused(claim):
    with claim(command="sft", cls=SFTConfig):
        pass
    assert "a run of 'sft'" in refused(claim()).what


def test_a_directory_of_something_else_is_left_alone(claim, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    assert "thesis.tex" in refused(claim()).what
    assert not (tmp_path / "out" / "run.json").exists()


def test_no_resume_means_a_new_directory(claim):
    with claim("train.resume=false"):
        pass
    error = refused(claim("train.resume=false"))
    assert "train.resume is false" in error.what
    with claim():
        pass


def test_what_a_run_killed_as_it_began_has_left_is_not_in_the_way(claim, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".run.json.123.tmp").write_text('{"comm')
    with claim():
        pass


def test_a_path_that_cannot_be_written(claim, tmp_path):
    (tmp_path / "out").write_text("a file")
    assert "File exists" in refused(claim()).what


def test_one_process_at_a_time(claim, tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path / "out")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        try:
            assert other.stdout.readline() == "claimed\n"
            before = snapshot(tmp_path / "out")
            assert "another process" in refused(claim()).what
            assert snapshot(tmp_path / "out") == before
        finally:
            other.kill()
    with claim():  # however it ended
        pass


# --- Checkpoints --------------------------------------------------------------------------------


def test_the_newest_checkpoint_is_the_one_to_go_on_from(claim):
    with claim() as directory:
        for step in (9, 10, 100):
            final = save(directory, step, stream={"position": step}, before=None)
    with claim() as directory:
        newest = directory.checkpoints.newest()
    assert newest.directory == final
    assert newest.state == {"step": 100, "stream": {"position": 100}, "before": None}
    assert (final / "weights").read_text() == "100"


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_oldest_checkpoints_go(claim, keep):
    with claim(f"train.keep_checkpoints={keep}") as directory:
        for step in (8, 9, 10, 11):
            save(directory, step)
        kept = sorted(path.name for path in (directory.path / "checkpoints").iterdir())
    assert kept == [f"step-{step:08d}" for step in (8, 9, 10, 11)][-keep:]


def test_an_unfinished_checkpoint_does_not_count_and_is_cleared_away(claim):
    with claim("train.keep_checkpoints=1") as directory:
        save(directory, 1)
        draft = directory.checkpoints.begin(2)
        (draft / "trainer.json").write_text(
            '{"step": 2}'
        )  # killed just before it was declared whole
        assert directory.checkpoints.newest().state["step"] == 1
        assert list(directory.checkpoints.begin(2).iterdir()) == []  # begun again
    with claim() as directory:
        assert not draft.exists()
        assert directory.checkpoints.newest().state["step"] == 1


def test_half_a_removed_checkpoint_does_not_count(claim, monkeypatch):
    def killed(path, ignore_errors=False):
        if not ignore_errors:  # else it is not sure that there is one
            (path / "weights").unlink()
            raise KeyboardInterrupt

    with claim("train.keep_checkpoints=1") as directory:
        save(directory, 1)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("shutil.rmtree", killed)
            save(directory, 2)
    with claim("train.keep_checkpoints=2") as directory:
        save(directory, 3)
        kept = sorted(path.name for path in (directory.path / "checkpoints").iterdir())
    assert kept == ["step-00000002", "step-00000003"]


def test_a_checkpoint_without_its_state_is_ignored(claim):
    with claim() as directory:
        save(directory, 1)
        (directory.path / "checkpoints" / "step-00000002").mkdir()
        assert directory.checkpoints.newest().state["step"] == 1


def test_what_a_damaged_disk_has_left_is_named(claim):
    with claim() as directory:
        noted = save(directory, 3) / "trainer.json"
        noted.write_text("")
        with pytest.raises(UserError) as caught:
            directory.checkpoints.newest()
    assert caught.value.where == str(noted)
    assert caught.value.fix.startswith(f"remove {noted.parent}, and the run goes on")
    (directory.path / "run.json").write_text("{")
    with pytest.raises(UserError, match="does not parse"), claim():
        pass


def test_a_step_saved_again_replaces_the_first(claim):
    with claim() as directory:
        save(directory, 5, attempt=1)
        save(directory, 5, attempt=2)
        assert directory.checkpoints.newest().state["attempt"] == 2
