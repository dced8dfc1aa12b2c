"""The fake that ships keeps the contract that every engine is held to, and a batch says what belongs to what."""

import numpy as np

from megrez.runtime.batch import Batch
from megrez.runtime.session import FakeSession
from tests.session_contract import Contract, check_session, one_hot_sum


def test_the_fake_session_keeps_the_contract() -> None:
    check_session(
        Contract(
            open=lambda slots: FakeSession(vocab_size=29, capacity=20, slots=slots),
            reference=one_hot_sum(29),
            tolerance=0,
            vocab_size=29,
            steps=40,
        )
    )


def test_a_batch_tells_the_sequence_and_place_of_every_token_that_is_wanted() -> None:
    batch = Batch.of(
        [[7, 8, 9], [1, 2, 3]], [4, 0, 2], [5, 0, 3, 3], slots=[2, 0, 1], counts=[1, 3, 2], max_slots=3, capacity=6
    )
    assert batch.tokens.tolist() == [7, 8, 9, 1, 2, 3] and batch.offsets.tolist() == [0, 1, 4]
    assert [batch.tokens_of(sequence).tolist() for sequence in range(3)] == [[7], [8, 9, 1], [2, 3]]
    assert batch.owners.tolist() == [2, 0, 1, 1] and batch.columns.tolist() == [1, 0, 2, 2]
    assert (batch.tokens.dtype, batch.starts.dtype) == (np.int64, np.int32)
