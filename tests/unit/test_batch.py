"""shared/runtime/batch.py: which mails are handled together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from shared.amqp.broker import Delivery
from shared.runtime.batch import Batch


def batch_of(*messages: tuple[Sequence[int], bool], max_mails: int = 4) -> Batch:
    """A batch of messages: the mails of each, and whether it is redelivered."""
    batch = Batch(max_mails)
    for tag, (ids, redelivered) in enumerate(messages):
        batch.add(Delivery(b"", tag, redelivered, cast(Any, None)), ids)
    return batch


def parts_of(batch: Batch) -> list[list[int]]:
    parts = []
    while batch.part:
        parts.append(list(batch.part))
        batch.finish()
    return parts


def test_each_mail_is_in_one_part_in_the_order_of_the_messages() -> None:
    batch = batch_of(([5, 3, 4], False), ([9, 3, 1], False))
    batch.divide({})
    assert parts_of(batch) == [[5, 3, 4, 9], [1]]
    assert batch.passed == set()


def test_redelivered_mails_follow_the_others_in_parts_by_their_limit() -> None:
    batch = batch_of(([1, 2, 3, 6, 7], True), ([4, 5], False), ([2, 5], True))
    assert batch.redelivered == {1, 2, 3, 5, 6, 7}
    assert not batch.divided
    batch.divide({1: 1, 2: 2, 3: None, 5: 1, 6: 2, 7: 9})
    assert parts_of(batch) == [[4], [7], [2, 6], [1], [5]]
    assert batch.passed == {1, 2, 5, 6, 7}


def test_a_part_that_fails_is_halved_down_to_one_mail() -> None:
    batch = batch_of(([1, 2, 3, 4, 5], False), max_mails=5)
    batch.divide({})
    tried = []
    while batch.part:
        tried.append(list(batch.part))
        if 4 in batch.part and len(batch.part) > 1:
            batch.halve()
        else:
            batch.finish()
    assert tried == [[1, 2, 3, 4, 5], [1, 2, 3], [4, 5], [4], [5]]


def test_a_replayed_mail_that_is_isolated_has_not_passed() -> None:
    batch = batch_of(([1, 2, 3], True))
    batch.divide(dict.fromkeys([1, 2, 3], 1))
    batch.finish()
    batch.isolate()
    batch.finish()
    assert not batch.part
    assert batch.passed == {1, 3}
