"""What the collector of cycles does while a process starts, and afterwards."""

import gc
import weakref

import pytest
import torch

from megarlhf.startup import building, importing


@pytest.fixture(autouse=True)
def as_before():
    yield
    gc.unfreeze()
    gc.enable()


def cycle():
    """A tensor that only the collector can free."""
    tensor = torch.zeros(3)
    tensor.itself = tensor
    return weakref.ref(tensor)


@pytest.mark.parametrize("around", [importing, building])
def test_nothing_is_collected_meanwhile_and_nothing_of_it_afterwards(around):
    with around():
        assert not gc.isenabled()
        kept = [[] for _ in range(1000)]
    assert gc.isenabled()
    assert gc.get_freeze_count() > 1000
    assert id(kept) not in map(id, gc.get_objects())  # which leaves out what is frozen


def test_garbage_of_building_goes():
    with building():
        left = cycle()
        assert left() is not None
    assert left() is None


def test_the_collector_is_on_again_after_an_error():
    with pytest.raises(ValueError), building():
        raise ValueError
    assert gc.isenabled()
