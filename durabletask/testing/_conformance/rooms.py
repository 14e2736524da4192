"""Conformance: a claim takes no more of a name than there is room for, and tells of no more."""

from datetime import timedelta
from functools import partial

from durabletask.testing._conformance.base import ConformanceBase
from durabletask.testing._conformance.world import World, event

NAMES = ("a", "b", "c")


async def three_of_each(w: World) -> None:
    """Create "a1" to "a3", then "b1" to "b3", then "c1" to "c3", each later than the one before."""
    for name in NAMES:
        for number in range(1, 4):
            await w.add(f"{name}{number}", name=name)
            w.clock.advance(1)


class RoomConformance(ConformanceBase):
    """Claims for a host that has limits for some names."""

    async def test_no_more_of_a_name_is_taken_than_there_is_room_for(self) -> None:
        """S1.15: of each limited name its oldest, of the others all; the rest waits for room."""
        async with self.world() as w:
            lease = await w.host()
            await three_of_each(w)
            rooms = {"a": 1, "b": 2, "other": 1}
            taken = await w.take(lease, names=NAMES, rooms=rooms)
            assert list(taken) == ["a1", "b1", "b2", "c1", "c2", "c3"]
            assert await w.take(lease, names=NAMES, rooms={"a": 0, "b": 0}) == {}
            assert list(await w.take(lease, names=NAMES, rooms={"a": 1})) == ["a2", "b3"]
            assert list(await w.take(lease, names=NAMES)) == ["a3"]

    async def test_others_are_taken_in_place_of_what_has_no_room(self) -> None:
        """G12: a full name in front holds nobody up: `count_max` is reached by younger ones."""
        async with self.world() as w:
            lease = await w.host()
            await three_of_each(w)
            taken = await w.take(lease, names=NAMES, rooms={"a": 1, "b": 1}, count_max=3)
            assert list(taken) == ["a1", "b1", "c1"]
            taken = await w.take(lease, names=NAMES, rooms={"a": 0, "b": 9}, count_max=3)
            assert list(taken) == ["b2", "b3", "c2"]

    async def test_there_is_no_more_of_a_name_without_room(self) -> None:
        """G13: `more` and `next_at` are of the others, or a full host would ask all the time."""
        async with self.world() as w:
            lease = await w.host()
            await three_of_each(w)
            start = w.clock.now()
            await w.add("a4", name="a", start_at=start + timedelta(hours=1))
            await w.add("b4", name="b", start_at=start + timedelta(hours=2))
            found = []
            asked: list[tuple[dict[str, int], int]] = [
                ({"a": 1, "b": 1}, 4),  # "c2" and "c3" are left
                ({"a": 0, "b": 1}, 0),
                ({"a": 1, "b": 1, "c": 2}, 4),  # "b3" and "a3" are left, and room for neither
                ({"a": 0, "b": 0}, 100),
                ({"b": 2}, 0),  # "a3" is left
                ({"a": 0, "b": 2}, 100),
                ({"a": 2}, 100),
            ]
            for rooms, count_max in asked:
                claims = await w.claim(lease, names=NAMES, rooms=rooms, count_max=count_max)
                ids = [each.row.process_id for each in claims.claimed]
                in_h = claims.next_at and (claims.next_at - start) / timedelta(hours=1)
                found.append((ids, claims.more, in_h))
            assert found == [
                (["a1", "b1", "c1", "c2"], True, None),
                ([], True, None),
                (["a2", "b2", "c3"], False, None),
                ([], False, None),
                ([], True, None),
                (["b3"], False, 2.0),
                (["a3"], False, 1.0),
            ]

    async def test_a_repeated_claim_has_the_room_that_it_had(self) -> None:
        """After a lost answer it brings the same, and tells the same of what is left."""
        async with self.world() as w:
            lease = await w.host()
            await three_of_each(w)
            rooms = {"a": 2, "b": 1, "c": 3}
            claim = partial(w.claim, lease, names=NAMES, rooms=rooms, claim_id="once")
            first = await claim()
            assert (len(first.claimed), first.more) == (6, False)
            assert await claim() == first
            await w.add("c4", name="c")
            assert not (await claim()).more
            assert list(await w.take(lease, names=NAMES, rooms={"a": 0, "b": 0})) == ["c4"]

    async def test_news_needs_no_room(self) -> None:
        """G8: a host that is full of a name hears of the events for those that it has."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            await w.sent(event("p", "e1"))
            (told,) = (await w.claim(lease, rooms={row.name: 0})).claimed
            assert [each.event_id for each in told.events] == ["e1"]
