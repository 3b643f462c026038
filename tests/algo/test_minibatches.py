"""Which sequences each optimizer step takes."""

from collections import Counter

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from megarlhf.algo.minibatches import minibatches


def test_one_epoch_goes_in_order():
    assert minibatches(6, 3, 1, "seed") == [[0, 1], [2, 3], [4, 5]]


def test_epochs_mix_each_in_its_own_way_and_by_the_seed():
    first = minibatches(64, 4, 2, "1-0")
    assert first == minibatches(64, 4, 2, "1-0")
    assert first != minibatches(64, 4, 2, "1-1")
    assert first[:4] != first[4:]


@hypothesis_settings(max_examples=50, deadline=None)
@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 4))
def test_every_epoch_takes_every_sequence_once(size, updates, epochs):
    steps = minibatches(size * updates, updates, epochs, "seed")
    assert [len(step) for step in steps] == [size] * (updates * epochs)
    for epoch in range(epochs):
        taken = Counter(i for step in steps[epoch * updates : (epoch + 1) * updates] for i in step)
        assert taken == Counter(range(size * updates))
    assert all(step == sorted(step) for step in steps)
