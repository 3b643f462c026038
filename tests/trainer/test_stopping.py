import signal

import pytest

from megarlhf import launcher
from megarlhf.trainer import stopping
from megarlhf.trainer.stopping import StopRequest

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def handlers():
    """Handlers of this test's own, so that a broken restoration harms no other test."""
    before = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
    yield [signal.getsignal(number) for number in SIGNALS]
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("first", SIGNALS)
@pytest.mark.parametrize("second", SIGNALS)
def test_the_first_signal_asks_and_the_second_stops(capsys, handlers, monkeypatch, first, second):
    monkeypatch.setattr(stopping, "ECHO_S", 0.0)
    with pytest.raises(KeyboardInterrupt), StopRequest() as stop:
        assert not stop
        signal.raise_signal(first)
        assert stop
        assert "stopping after this step" in capsys.readouterr().out
        signal.raise_signal(second)
    assert [signal.getsignal(number) for number in SIGNALS] == handlers


def test_the_same_signal_passed_on_by_torchrun_is_no_second_one():
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert stop


def test_handlers_come_back(handlers):
    with StopRequest() as stop:
        assert [signal.getsignal(number) for number in SIGNALS] != handlers
    assert not stop
    assert [signal.getsignal(number) for number in SIGNALS] == handlers


def test_the_file_of_a_launcher_asks_and_gets_the_answer(monkeypatch, tmp_path):
    file = tmp_path / "stop"
    monkeypatch.setenv("MEGARLHF_STOP_FILE", str(file))
    with StopRequest() as stop:
        assert not stop
        file.touch()
        assert stop
    assert launcher.tell_stopped(12)
    assert file.read_text() == "12\n"


def test_without_a_launcher_nobody_is_told(monkeypatch):
    monkeypatch.delenv("MEGARLHF_STOP_FILE", raising=False)
    assert not StopRequest()
    assert not launcher.tell_stopped(12)
