"""A conversion that was stopped goes on, and ends as one that was not."""

import os
import signal
import subprocess
import sys

import pytest

from megarlhf.models.weights import fingerprint, publishing
from tests.checkpoint_convert.damage import flip, refusal
from tests.checkpoint_convert.models import convert, write_random
from tools.checkpoint_convert import conversion
from tools.checkpoint_convert.checkpoints import open_checkpoint
from tools.checkpoint_convert.cli import INTERRUPTED, main


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_random(tmp_path_factory.mktemp("source") / "hf", "qwen3", num_hidden_layers=3)


class StopAfter:
    """Convert some tensors, then be interrupted."""

    def __init__(self, count):
        self.left, self.moved = count, []

    def __call__(self, converter, name, *rest):
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        self.moved.append(name)
        return ORIGINAL(converter, name, *rest)


ORIGINAL = conversion.Conversion._move


def begin(monkeypatch, arguments, count):
    stop = StopAfter(count)
    with monkeypatch.context() as patch:
        patch.setattr(conversion.Conversion, "_move", lambda *given: stop(*given))
        assert main([str(argument) for argument in arguments]) == INTERRUPTED
    return stop.moved


def go_on(monkeypatch, arguments):
    """What it still has to convert."""
    every = StopAfter(-1)
    with monkeypatch.context() as patch:
        patch.setattr(conversion.Conversion, "_move", lambda *given: every(*given))
        convert(*arguments, "--resume")
    return every.moved


def test_it_goes_on_from_what_is_done(source, tmp_path, monkeypatch, capsys):
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    to = ("hf-to-megatron", "--hf", source, "--out", out, "--tp", 2)
    done = begin(monkeypatch, to, 10)
    assert not out.exists()
    assert partial.is_dir()
    assert "--resume" in capsys.readouterr().err
    # A torn line, as of a process that was killed, and bytes that never reached the disk.
    with (partial / ".converted-0.jsonl").open("a") as journal:
        journal.write('{"name": "model.la')
    lost = open_target_run(source, partial, done[4])
    flip(*lost)
    rest = go_on(monkeypatch, to)
    assert done[4] in rest
    assert set(rest) & set(done) == {done[4]}
    assert len(rest) + len(done) - 1 == len(open_checkpoint(source).spec.tensors)
    assert list(tmp_path.iterdir()) == [out]
    assert not [file for file in out.iterdir() if "convert" in file.name]
    convert("verify", out, source)


def open_target_run(source, partial, name):
    """A file and a place in it where the tensor's bytes are."""
    from tools.checkpoint_convert.layouts import topology_of
    from tools.checkpoint_convert.targets import megatron_target

    checkpoint = open_checkpoint(source)
    topology = topology_of(checkpoint.spec, tp=2, pp=1, vpp=1, ep=1)
    target = megatron_target(checkpoint.spec, topology, checkpoint.dtypes)
    run = target.tensors[name].runs[0]
    return partial / run.file, run.offset


def test_it_does_not_go_on_with_another_job(source, tmp_path, monkeypatch, capsys):
    to = ("hf-to-megatron", "--hf", source, "--out", tmp_path / "out")
    begin(monkeypatch, (*to, "--tp", 2), 3)
    said = refusal(capsys, *to, "--pp", 2, "--resume")
    assert "another one (target)" in said
    assert "begin again without --resume" in said
    file = source / "model.safetensors"
    stamp = file.stat()
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
    assert "another one (files)" in refusal(capsys, *to, "--tp", 2, "--resume")
    convert(*to, "--tp", 2)  # from the beginning
    convert("verify", tmp_path / "out", source)


def test_two_do_not_write_to_one_place(source, tmp_path, monkeypatch, capsys):
    to = ("hf-to-megatron", "--hf", source, "--out", tmp_path / "out")
    begin(monkeypatch, to, 3)
    with publishing.claimed(tmp_path / "out"):
        for again in (to, (*to, "--resume")):
            assert "out.partial: another process is writing there" in refusal(capsys, *again)
    convert(*to, "--resume")
    convert("verify", tmp_path / "out", source)


def test_with_nothing_begun_it_begins(source, tmp_path):
    convert("hf-to-megatron", "--hf", source, "--out", tmp_path / "out", "--resume")
    convert("verify", tmp_path / "out", source)


def test_it_can_be_killed(source, tmp_path):
    """By a signal that nobody can catch, in a process of its own."""
    out = tmp_path / "out"
    code = (
        "import os, signal\n"
        "from tools.checkpoint_convert import conversion, cli\n"
        "def stop(*_): os.kill(os.getpid(), signal.SIGKILL)\n"
        "add, lines = conversion.Journal.add, []\n"
        "def count(*given):\n"
        "    add(*given)\n"
        "    lines.append(given) if len(lines) < 5 else stop()\n"
        "conversion.Journal.add = count\n"
        f"cli.main(['hf-to-megatron', '--hf', {str(source)!r}, '--out', {str(out)!r}])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not out.exists()
    assert len(conversion.Journal(tmp_path / "out.partial", 0).read()) >= 6  # of several threads
    convert("hf-to-megatron", "--hf", source, "--out", out, "--resume")
    convert("verify", out, source)
    assert fingerprint.read(out) is not None
