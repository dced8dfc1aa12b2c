from megrez.runtime.bench.figures import Record
from megrez.runtime.bench.live import Live, Ticker


def test_the_line_has_requests_and_tokens_per_second_since_the_last_one():
    live, shown, now = Live(), [], iter([10.0, 12.0, 14.0])
    ticker = Ticker(live, 8, shown.append, every_s=60, clock=lambda: next(now))
    live.tokens = 50
    live.note(Record(sent=0, done=1))
    live.note(Record(sent=0, done=1, error="no"))
    assert ticker.line() == "2 of 8 requests, 1 failed, 25.0 tokens/s"
    live.tokens = 60
    ticker.close()
    assert shown == ["\r2 of 8 requests, 1 failed, 5.0 tokens/s", "\n"]


def test_it_is_shown_again_and_again_and_a_shorter_line_covers_a_longer_one():
    live, shown = Live(tokens=1), []
    ticker = Ticker(live, None, shown.append, what="cells", every_s=0.001)
    while len(shown) < 3:
        pass
    ticker.close()
    assert all(line.startswith("\r0 cells, ") for line in shown[:-1]) and shown[-1] == "\n"
    ticker._width = 40
    ticker._write("short")
    assert shown[-1] == "\r" + "short".ljust(40)
