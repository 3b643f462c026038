"""Sequences with a common beginning: packed once, and nothing is lost or in two places."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from megarlhf.data.beginnings import beginning_of, together
from megarlhf.data.dealing import partition
from megarlhf.data.packing import collate, last_values, padded_length, scatter
from megarlhf.data.records import Sequence


@st.composite
def batches(draw):
    """Samples of some prompts, beside sequences on which all or nothing is trained."""
    rng = random.Random(draw(st.integers(0, 1000)))
    sequences = []
    for _ in range(draw(st.integers(1, 5))):
        prompt = [rng.randrange(9) for _ in range(draw(st.integers(1, 6)))]
        for _ in range(draw(st.integers(1, 5))):
            response = [rng.randrange(9) for _ in range(rng.randrange(1, 6))]
            mask = [0.0] * len(prompt) + [1.0] * len(response)
            field = [0.0] * len(prompt) + [rng.random() for _ in response]
            sequences.append(Sequence(prompt + response, mask, {"advantages": field}))
    for mask in draw(st.lists(st.sampled_from((0.0, 1.0)), max_size=3)):
        ids = [rng.randrange(9) for _ in range(4)]
        sequences.append(Sequence(ids, [0.0] + [mask] * 3, {"advantages": [0.0] * 4}))
    return sequences


@settings(max_examples=60, deadline=None)
@given(batches(), st.sampled_from((1, 4)), st.booleans())
def test_a_pack_says_the_same_of_every_sequence_with_less(sequences, multiple, with_last):
    indices = range(len(sequences))
    whole, shared = (
        collate(sequences, indices, pad_to_multiple=multiple, share=share, with_last=last)
        for share, last in ((False, True), (True, with_last))
    )
    lengths = [len(sequence.token_ids) for sequence in sequences]
    for of in (
        lambda batch: batch.token_ids,
        lambda batch: batch.targets,
        lambda batch: batch.position_ids,
        lambda batch: batch.loss_mask,
        lambda batch: batch.fields["advantages"],
    ):
        found, expected = (
            dict(scatter(of(batch).double(), batch, lengths)) for batch in (shared, whole)
        )
        assert found == expected
    if with_last:
        for of in (lambda batch: batch.token_ids, lambda batch: batch.ends):
            found, expected = (dict(last_values(of(b), b, lengths)) for b in (shared, whole))
            assert found == expected
    assert shared.loss_mask.sum() == whole.loss_mask.sum()
    assert shared.ends.sum() == len(sequences)
    if multiple == 1:
        left_out = 0 if with_last else len(sequences)
        assert len(shared.token_ids) <= len(whole.token_ids) - left_out


@settings(max_examples=100, deadline=None)
@given(batches(), st.integers(4, 60), st.integers(1, 4), st.sampled_from((1, 4)), st.booleans())
def test_groups_fit_and_can_be_dealt_wherever_sequences_can(
    sequences, tokens, multiple, pad, with_last
):
    way = {"pad_to_multiple": pad, "with_last": with_last}
    groups = together(sequences, max_tokens=tokens, multiple=multiple, **way)
    assert sorted(i for group in groups for i in group.members) == list(range(len(sequences)))
    for group in groups:
        packed = collate(sequences, group.members, share=True, **way)
        assert group.tokens == sum(packed.lengths)
        assert group.tokens <= tokens or len(group.members) == 1
        assert len({beginning_of(sequences[index]) for index in group.members}) == 1
    if len(sequences) % multiple == 0:
        sizes = [group.tokens for group in groups]
        shares = partition(sizes, dp_size=multiple, max_tokens=tokens)
        assert sum(len(pack) for rank in shares for pack in rank) == len(groups)


def test_all_samples_of_a_prompt_are_together_where_there_is_room():
    sequences = [
        Sequence([*prompt, 7, number], [0.0, 0.0, 0.0, 1.0, 1.0])
        for prompt in ([1, 2, 3], [1, 2, 4])
        for number in range(4)
    ]
    groups = together(sequences, max_tokens=100, multiple=1)
    assert [group.members for group in groups] == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert [group.tokens for group in groups] == [
        2 + 4 * 3
    ] * 2  # the last of the prompt: each its own
    assert [len(g.members) for g in together(sequences, max_tokens=13, multiple=2)] == [2] * 4
    alone = together(sequences, max_tokens=5, multiple=8)
    assert [group.tokens for group in alone] == [padded_length(5, 1)] * 8
