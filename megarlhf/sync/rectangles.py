"""What two cuts of one tensor have in common."""

from megarlhf.models.weights.operations import Rect


def intersection(one: Rect, other: Rect) -> Rect | None:
    """The box that lies in both; None where there is none."""
    ranges = tuple(
        (max(a, c), min(b, d)) for (a, b), (c, d) in zip(one.ranges, other.ranges, strict=True)
    )
    return Rect(ranges) if all(start < stop for start, stop in ranges) else None


def carried(part: Rect, whole: Rect, place: Rect) -> Rect:
    """Where ``part`` of ``whole`` lies, if all of ``whole`` lies at ``place``.

    The place may have leading dimensions more (of one expert among several), which stay.
    """
    leading = len(place.ranges) - len(whole.ranges)
    moved = tuple(
        (start - origin + to, stop - origin + to)
        for (start, stop), (origin, _), (to, _) in zip(
            part.ranges, whole.ranges, place.ranges[leading:], strict=True
        )
    )
    return Rect((*place.ranges[:leading], *moved))
