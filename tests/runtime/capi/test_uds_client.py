"""The example for programs that talk to `megrez serve --uds` instead, against a server in this process."""

import json
import subprocess
import threading

from megrez.runtime.chat import ChatTemplate
from megrez.runtime.serving.http.app import Limits
from megrez.runtime.serving.http.served import Served
from megrez.runtime.serving.http.server import Server, listening
from tests.runtime.capi.conftest import ROOT, STRICT
from tests.runtime.capi.sums import alone, encode, spoken
from tests.runtime.conftest import MEGREZ_TEMPLATE, byte_level_tokenizer
from tests.runtime.serving.http.servers import fake_llm

HANG_S = 60


def test_it_prints_the_servers_answer(compiler, bundles, tmp_path):
    program, file = tmp_path / "client", tmp_path / "s"
    source = ROOT / "examples" / "embedding" / "uds_client.c"
    subprocess.run([compiler, "-std=c99", *STRICT, "-Wpedantic", source, "-o", program], check=True)
    question = 'say "hi",\n then 你好'
    ready = threading.Event()
    with fake_llm(bundles["fake"]) as llm, listening("127.0.0.1", 0, file) as (listener, _):
        server = Server(Served.of(llm, "tiny", queue_limit=8), Limits(), drain_s=0, on_ready=ready.set)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            assert ready.wait(HANG_S)
            done = subprocess.run([program, file, question], capture_output=True, text=True, timeout=HANG_S)
        finally:
            server.should_exit = True
            thread.join(HANG_S)
    assert done.returncode == 0, done
    prompt = ChatTemplate(MEGREZ_TEMPLATE).render([{"role": "user", "content": question}])
    ids = alone(encode(byte_level_tokenizer(), prompt), 128)
    assert json.loads(done.stdout)["choices"][0]["message"]["content"] == spoken(byte_level_tokenizer(), ids)
