import contextlib
import errno
import json
import pickle
import subprocess
import sys

import pytest

from megarlhf import __version__, cli
from megarlhf.cli import COMMANDS, main
from megarlhf.config.settings import settings
from megarlhf.errors import ProcessLost, UserError

ERROR = UserError("the weights end early", where="model.safetensors", fix="download them again")
SAID = "megarlhf: error: model.safetensors: the weights end early\n  -> download them again\n"


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs ``megarlhf rl`` whose training is the given function: status and what it printed."""
    import megarlhf.trainer.start

    def run(train):
        monkeypatch.setattr(megarlhf.trainer.start, "rl", train)
        return main(["rl"]), capsys.readouterr().err

    return run


def raiser(error):
    def train(config):
        raise error

    return train


def in_a_remote_process(error):
    """The error that `ray.get` raises when a task raised ``error``."""
    from ray.exceptions import RayTaskError

    text = "Traceback (most recent call last):\n  File ..."
    wrapped = RayTaskError("train", text, error, proctitle="ray::rank", pid=1, ip="127.0.0.1")
    return wrapped.as_instanceof_cause()


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"megarlhf {__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_config_lists_every_setting(capsys, name):
    assert main([name, "--help-config"]) == 0
    lines = capsys.readouterr().out.splitlines()
    keys = [setting.key for setting in settings(COMMANDS[name].config())]
    assert [line.split()[0] for line in lines] == keys
    assert " required  # Hugging Face directory" in lines[keys.index("model.path")]
    assert lines[keys.index("optimizer.lr")].endswith(" 1e-06  # peak learning rate")


@pytest.mark.parametrize("argv", [[], ["train"], ["rl", "--confg=x"]])
def test_what_argparse_refuses(capsys, argv):
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    assert "usage: megarlhf" in capsys.readouterr().err


def test_as_a_process(monkeypatch):
    monkeypatch.undo()  # it may start
    command = [sys.executable, "-m", "megarlhf", "rl", "rollout.engine=2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "did you mean 'rollout.engines'" in done.stderr


STOPPED = {"interrupted": True, "steps": 3}


@pytest.mark.parametrize(("summary", "status"), [({"steps": 3}, 0), (STOPPED, 130)])
def test_status_of_a_run(run, summary, status):
    assert run(lambda config: summary) == (status, "")


def test_a_launcher_is_told_that_a_run_was_stopped(run, monkeypatch, tmp_path):
    monkeypatch.setenv("MEGARLHF_STOP_FILE", str(tmp_path / "stop"))
    assert run(lambda config: STOPPED) == (0, "")  # any other status is a failure to torchrun
    assert (tmp_path / "stop").read_text() == "3\n"


@pytest.mark.parametrize("error", [ERROR, KeyError("a bug")])
def test_a_failure_is_recorded_for_the_launcher(run, monkeypatch, tmp_path, error):
    file = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    monkeypatch.setenv("RANK", "5")
    with contextlib.suppress(KeyError):
        run(raiser(error))
    record = json.loads(file.read_text())
    assert record["rank"] == 5
    text = record["message"]["message"]
    if error is ERROR:
        assert text == SAID.rstrip()
    else:
        assert text.startswith("Traceback") and text.endswith("KeyError: 'a bug'\n")


def test_a_run_stopped_at_once(run):
    assert run(raiser(KeyboardInterrupt())) == (130, "stopped\n")


def test_a_user_error_survives_pickling():
    copy = pickle.loads(pickle.dumps(ERROR))
    assert type(copy) is UserError
    assert (copy.what, copy.where, copy.fix) == (ERROR.what, ERROR.where, ERROR.fix)
    assert str(copy) == str(ERROR)


def test_a_user_error_says_what_it_knows():
    assert str(UserError("bad")) == "bad"
    assert str(UserError("bad", where="here")) == "here: bad"
    assert str(UserError("bad", fix="mend it")) == "bad\n  -> mend it"


def test_a_user_error_of_this_process(run):
    assert run(raiser(ERROR)) == (2, SAID)


def test_a_user_error_of_a_remote_process_comes_without_its_traceback(run):
    remote = in_a_remote_process(ERROR)
    assert isinstance(remote, UserError)  # and yet its text is the remote traceback
    assert "File ..." in str(remote)
    assert run(raiser(remote)) == (2, SAID)


def test_a_user_error_that_caused_another(run):
    error = RuntimeError("the run ended")
    error.__cause__ = in_a_remote_process(ERROR)
    assert run(raiser(error)) == (2, SAID)


@pytest.mark.parametrize("wrap", [lambda error: error, in_a_remote_process], ids=["here", "remote"])
def test_a_full_disk(run, wrap):
    status, said = run(raiser(wrap(OSError(errno.ENOSPC, "No space left on device", "out/x.json"))))
    assert status == 2
    assert said.startswith("megarlhf: error: out/x.json: cannot write: No space left on device")
    assert "make room" in said


def test_a_lost_process_has_a_status_of_its_own(run):
    status, said = run(raiser(ProcessLost("process 7 ended", fix="go on")))
    assert (status, said) == (3, "megarlhf: error: process 7 ended\n  -> go on\n")


@pytest.mark.parametrize("wrap", [lambda error: error, in_a_remote_process], ids=["here", "remote"])
def test_other_errors_keep_their_traceback(run, wrap):
    with pytest.raises(KeyError):
        run(raiser(wrap(KeyError("a bug"))))
    assert cli._user_error_behind(wrap(KeyError("a bug"))) is None


def test_the_demo_gets_its_arguments(monkeypatch):
    import megarlhf.demo.run

    monkeypatch.setattr(megarlhf.demo.run, "run_demo", lambda *arguments: arguments)
    assert main(["demo"]) == ("runs/demo", 1)
    assert main(["demo", "--dir=there", "--seed=5"]) == ("there", 5)


def test_settings_may_stand_on_both_sides_of_an_option(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("train:\n  seed: 5\n")
    words = ["rl", "optimizer.lr=1e-5", "--config", str(file), "train.steps=3"]
    assert cli._parse(words).overrides == ["optimizer.lr=1e-5", "train.steps=3"]


@pytest.mark.parametrize("word", ["--confg", "stray"])
def test_an_unknown_word_is_refused(word, capsys):
    with pytest.raises(SystemExit):
        cli._parse(["rl", "a=1", "--help-config", word])
    assert word in capsys.readouterr().err
