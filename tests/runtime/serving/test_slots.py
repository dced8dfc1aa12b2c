"""Which slot a prompt gets, and what is reused of it."""

from megrez.runtime.serving.slots import Assignment, SlotPool, common_prefix


def test_common_prefix_stops_at_the_first_difference_and_at_the_bound() -> None:
    assert common_prefix([1, 2, 3], [1, 2, 4], 3) == 2
    assert common_prefix([1, 2, 3], [1, 2, 3, 4], 2) == 2
    assert common_prefix([], [1], 1) == 0
    assert common_prefix([7], [1], 1) == 0


def test_the_second_turn_of_a_chat_continues_in_its_slot() -> None:
    pool = SlotPool(2)
    first = pool.assign(list(range(30)))
    assert first == Assignment(slot=0, length=0, source=None)
    pool.extend(0, list(range(40)))
    pool.release(0)
    assert pool.assign(list(range(45))) == Assignment(slot=0, length=40, source=None)


def test_at_least_the_last_token_of_a_prompt_is_computed() -> None:
    pool = SlotPool(1)
    pool.assign([1, 2, 3])
    pool.extend(0, [1, 2, 3])
    pool.release(0)
    assert pool.assign([1, 2, 3]).length == 2


def test_alternating_chats_keep_both_their_caches() -> None:
    pool = SlotPool(2)
    system = list(range(20))
    a, b = [*system, *range(100, 160)], [*system, *range(200, 260)]
    assert pool.assign(a) == Assignment(slot=0, length=0, source=None)
    pool.extend(0, a)
    pool.release(0)
    # b shares only the system prompt with slot 0: it is copied, and a's cache stays whole.
    assert pool.assign(b) == Assignment(slot=1, length=20, source=0)
    pool.extend(1, b[20:])
    pool.release(1)
    for _ in range(3):
        for slot, chat in ((0, a), (1, b)):
            chat += [7, 8]
            assert pool.assign(chat) == Assignment(slot=slot, length=len(chat) - 2, source=None)
            pool.extend(slot, chat[-2:])
            pool.release(slot)


def test_a_busy_slot_serves_its_prefix_by_a_copy() -> None:
    pool = SlotPool(2)
    prompt = list(range(50))
    pool.assign(prompt)
    pool.extend(0, prompt)
    assert pool.assign(prompt) == Assignment(slot=1, length=49, source=0)
    assert pool.tokens[1] == prompt[:49]
    assert pool.free == 0


def test_a_short_prefix_is_not_worth_a_copy() -> None:
    pool = SlotPool(2)
    pool.assign(list(range(15)))
    pool.extend(0, list(range(15)))
    assert pool.assign([*range(10), 99]) == Assignment(slot=1, length=0, source=None)


def test_without_reuse_nothing_is_taken_from_the_cache() -> None:
    pool = SlotPool(1)
    pool.assign(list(range(30)))
    pool.extend(0, list(range(30)))
    pool.release(0)
    assert pool.assign(list(range(40)), reuse=False) == Assignment(slot=0, length=0, source=None)


def test_empty_slots_are_taken_first_then_the_least_recently_used() -> None:
    pool = SlotPool(3)
    for start in (0, 100, 200):
        slot = pool.assign([start + at for at in range(5)]).slot
        pool.extend(slot, [start + at for at in range(5)])
    for slot in (1, 0, 2):
        pool.release(slot)
    assert [pool.assign([900 + at]).slot for at in range(3)] == [1, 0, 2]


def test_forgotten_contents_are_not_reused() -> None:
    pool = SlotPool(1)
    pool.assign(list(range(30)))
    pool.extend(0, list(range(30)))
    pool.release(0)
    pool.forget(0)
    assert pool.assign(list(range(40))).length == 0
