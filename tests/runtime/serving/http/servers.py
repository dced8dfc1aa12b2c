"""A server in a thread of this process over a session whose next token is the sum of the context; not a test."""

import contextlib
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megrez.runtime.batch import Batch
from megrez.runtime.bundle import open_bundle
from megrez.runtime.chat import ChatTemplate
from megrez.runtime.serving.drafting.speculation import Speculation
from megrez.runtime.serving.http.app import Limits
from megrez.runtime.serving.http.served import Served
from megrez.runtime.serving.http.server import Server, listening
from megrez.runtime.serving.llm import LLM
from megrez.runtime.session import FakeSession
from megrez.runtime.text import Text

VOCAB, STOPS = 267, (264, 261)
ROLE_END, TURN_END = 263, 264
HANG_S = 60


class Gated(FakeSession):
    """Each step waits for leave: one `allow()` for one step, `open()` for all that follow."""

    def __init__(self, **shape: int) -> None:
        super().__init__(**shape)
        self._leave = threading.Semaphore(0)
        self._open = False
        self.entered = self.done = 0

    def step(self, *batch: Any, **named: Any) -> Any:
        self.entered += 1
        if not self._open:
            assert self._leave.acquire(timeout=HANG_S)
        self.done += 1
        return super().step(*batch, **named)

    def allow(self, count: int = 1) -> None:
        for _ in range(count):
            self._leave.release()

    def open(self) -> None:
        self._open = True
        self._leave.release()


class Echo(FakeSession):
    """Prefers to answer with what the last message before the answer says, special tokens included, and to end there.

    A grammar may hold it to something else: then it prefers what ends JSON, and of the rest the lowest ids.
    """

    def step(self, *batch: Any, **named: Any) -> Any:
        logits = super().step(*batch, **named)
        read = Batch.of(*batch, named["slots"], named["counts"], max_slots=self.slots, capacity=self.capacity)
        logits[:] = 0
        logits[:, [ord(one) - ord("!") for one in '"}]']] = 1  # ids of the byte-level alphabet
        for row, (sequence, column) in enumerate(zip(read.owners, read.columns, strict=True)):
            context = self.cache[read.slots[sequence], : read.starts[sequence] + column + 1].tolist()
            logits[row, echoed(context)] = 9
        return logits


def echoed(context: Sequence[int]) -> int:
    """The next token: of the text between the last two role ends, as far as its message goes."""
    ends = [at for at, token in enumerate(context) if token == ROLE_END]
    if len(ends) < 2:
        return TURN_END
    wanted = context[ends[-2] + 1 : ends[-1]]
    said = len(context) - ends[-1] - 1
    return wanted[said] if said < len(wanted) else TURN_END


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    port: int
    llm: LLM

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, dict[str, Any]]:
        """body: an object, or the raw bytes."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=HANG_S)) as connection:
            return send(connection, path, body, **headers)

    def get(self, path: str, **headers: str) -> tuple[int, str]:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=HANG_S)) as connection:
            connection.request("GET", path, headers=headers)
            found = connection.getresponse()
            return found.status, found.read().decode()

    def get_stream(self, path: str, body: Any) -> str:
        """All events of the answer to a POST."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=HANG_S)) as connection:
            connection.request("POST", path, json.dumps(body).encode())
            return connection.getresponse().read().decode()

    def metric(self, start: str) -> float:
        """The sum of the samples whose lines begin with `start`."""
        lines = self.get("/metrics")[1].splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(start))


def send(connection: http.client.HTTPConnection, path: str, body: Any, **headers: str) -> tuple[int, dict[str, Any]]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request("POST", path, raw, headers)
    found = connection.getresponse()
    return found.status, json.loads(found.read())


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + HANG_S
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


@contextlib.contextmanager
def serving(llm: LLM, *, queue_limit: int = 256, limits: Limits | None = None, name: str = "tiny") -> Iterator[Running]:
    ready = threading.Event()
    served = Served.of(llm, name, queue_limit=queue_limit)
    with listening("127.0.0.1", 0, None) as (listener, address), llm:
        server = Server(served, limits or Limits(), drain_s=0, on_ready=ready.set)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            assert ready.wait(HANG_S)
            yield Running(port=int(address.rpartition(":")[2]), llm=llm)
        finally:
            if isinstance(llm.session, Gated):
                llm.session.open()
            server.should_exit = True
            thread.join(HANG_S)
            assert not thread.is_alive()


def fake_llm(
    folder: Path,
    session: type[FakeSession] = FakeSession,
    *,
    slots: int = 2,
    capacity: int = 400,
    queue: int = 256,
    speculation: Speculation | None = None,
) -> LLM:
    bundle = open_bundle(folder)
    text = Text.open(bundle)
    opened = session(vocab_size=VOCAB, capacity=capacity, slots=slots)
    template = ChatTemplate.open(bundle, text)
    return LLM.over(bundle, opened, text, template, queue_limit=queue, speculation=speculation)


def alone(prompt: Sequence[int], count: int, stops: Sequence[int] = STOPS) -> list[int]:
    """The sum rule, worked out without a session: up to `count` tokens, a stop token included."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(sum(ids) % VOCAB)
        if ids[-1] in stops:
            break
    return ids[len(prompt) :]


def says(text: str) -> list[dict[str, str]]:
    """The messages to which an Echo answers with `text`."""
    return [{"role": "user", "content": text}]


def spoken(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of an answer: without its stop token."""
    return str(tokenizer.decode([one for one in ids if one not in STOPS], skip_special_tokens=False))
