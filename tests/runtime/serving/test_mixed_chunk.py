"""The length follows the cost of a step: against one that is known."""

import pytest

from megrez.runtime.serving.mixed_chunk import PATIENCE, SLOWDOWN, MixedChunk


def steps(chunk: MixedChunk, count: int, decode_s: float, per_token_s: float) -> list[int]:
    """The lengths of `count` steps with prompt tokens, after one without."""
    chunk.note_step(0, decode_s)
    lengths = []
    for _ in range(count):
        lengths.append(chunk.length)
        chunk.note_step(chunk.length, decode_s + chunk.length * per_token_s)
    return lengths


@pytest.mark.parametrize(
    ("per_token_s", "expected"),
    [
        (0.0, [32, 64, 128, 256, 512, 512]),
        (1 / 1024, [32, 64, 128, 256, 512, 512]),
        (1 / 128, [32, 64, 128, 128, 128, 128]),
        (1 / 100, [32, 64, 64, 64, 64, 64]),
        (1.0, [32, 32, 32, 32, 32, 32]),
    ],
)
def test_it_is_the_longest_that_sequences_bear(per_token_s: float, expected: list[int]) -> None:
    found = steps(MixedChunk(32, 512), 6, decode_s=1, per_token_s=per_token_s)
    assert found == expected
    assert found[-1] == 32 or 1 + found[-1] * per_token_s <= SLOWDOWN


def test_it_shrinks_as_soon_as_a_step_takes_longer_and_waits_before_it_grows() -> None:
    chunk = MixedChunk(32, 512)
    assert steps(chunk, 4, decode_s=1, per_token_s=0)[-1] == 256
    assert steps(chunk, 3, decode_s=1, per_token_s=1 / 32) == [512, 256, 128]
    assert steps(chunk, PATIENCE + 2, decode_s=1, per_token_s=0) == [64] + [64] * PATIENCE + [128]


def test_without_a_step_to_compare_with_it_stays() -> None:
    chunk = MixedChunk(32, 512)
    chunk.note_step(32, 0.001)
    assert chunk.length == 32


def test_the_end_of_a_prompt_says_nothing_if_it_is_fast() -> None:
    chunk = MixedChunk(32, 512)
    chunk.note_step(0, 1.0)
    chunk.note_step(5, 1.0)
    assert chunk.length == 32


def test_prompts_that_are_shorter_than_the_chunk_shorten_it_if_they_are_slow() -> None:
    chunk = MixedChunk(32, 512)
    assert steps(chunk, 6, decode_s=1, per_token_s=0)[-1] == 512
    chunk.note_step(300, 2.5)
    assert chunk.length == 150
