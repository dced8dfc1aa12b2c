import pytest

from megrez.runtime.bench.sweep import Grid, run_sweep, sweep_rows, sweep_table
from megrez.runtime.errors import EngineError, UsageError

GRID = Grid(batches=(1, 4), prompts=(16, 32), contexts=(64, 128))


def measured(point, stopped=None):
    return {
        "view": "latency",
        "prefill_tokens_per_s": 100.0 * point.batch,
        "decode_tokens_per_s": 10.0 * point.batch,
        "ttft_s": 0.25,
        "spread": {"decode_tokens_per_s": 0.01 * point.batch},
        "stopped": stopped,
        "environment": {"cpu": "x"},
    }


def test_every_combination_is_measured_once_and_kept():
    noted = []
    found = run_sweep(GRID, measured, lambda point, result: noted.append(point))
    asked = [(one["context"], one["prompt"], one["batch"]) for one in found["points"]]
    assert asked == [(c, p, b) for c in (64, 128) for p in (16, 32) for b in (1, 4)]
    assert len(noted) == 8 and found["stopped"] is None and found["of"] == "latency"
    assert found["spread"] == {"decode_tokens_per_s": 0.04}
    header, rows = sweep_rows(found)
    assert rows[1] == ["4", "16", "64", "400.0", "40.0", "250.0", "4.0%"]
    assert len(sweep_table(found).splitlines()) == 9 and len(header) == len(rows[0])


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (EngineError("the GPU has\n3 MiB free"), "batch 1, prompt 32, context 64: the GPU has 3 MiB free"),
        (MemoryError(), "batch 1, prompt 32, context 64: the machine has too little memory"),
        (KeyboardInterrupt(), "interrupted by Ctrl-C"),
    ],
)
def test_a_point_that_cannot_be_measured_ends_the_sweep_and_the_others_are_kept(error, said):
    def measure(point):
        if point.prompt_tokens == 32:
            raise error
        return measured(point)

    found = run_sweep(GRID, measure, lambda point, result: None)
    assert len(found["points"]) == 2 and found["stopped"] == said


def test_where_the_first_point_fails_there_is_nothing_to_keep():
    def measure(point):
        raise EngineError("too large")

    with pytest.raises(EngineError, match="too large"):
        run_sweep(GRID, measure, lambda point, result: None)


def test_a_point_that_ends_early_is_kept_and_ends_the_sweep():
    found = run_sweep(GRID, lambda point: measured(point, "the server stopped"), lambda point, result: None)
    assert len(found["points"]) == 1 and found["stopped"] == "the server stopped"


def test_lengths_that_do_not_fit_are_refused_before_anything_is_measured():
    GRID.check(33, 128)
    with pytest.raises(UsageError, match="32 prompt and 34 output tokens do not fit the context of 64"):
        GRID.check(34, 128)
    with pytest.raises(UsageError, match="context of 40"):
        Grid(batches=(1,), prompts=(32,), contexts=(None,)).check(10, 40)
    Grid(batches=(1,), prompts=(32,), contexts=(None,)).check(10, None)
