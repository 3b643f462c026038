"""How tensors are laid into parts of equal size."""

import pytest

from megarlhf.engine.pieces import ALIGN, cut


@pytest.mark.parametrize("sizes", [(), (5,), (64,), (65,), (3, 200, 1, 0, 64, 7)], ids=str)
def test_parts_hold_every_element_once(sizes):
    parts = cut(sizes, most=64)
    for index, size in enumerate(sizes):
        own = [piece for part in parts for piece in part if piece.index == index]
        assert [n for p in own for n in range(p.begin, p.end)] == list(range(size))
    for part in parts:
        places = [(piece.place, piece.place + piece.size) for piece in part]
        assert all(begin % ALIGN == 0 for begin, _ in places)
        ends = [0, *(end for _, end in places)]
        assert all(end <= begin for end, (begin, _) in zip(ends, places, strict=False))
        assert ends[-1] <= 64
