"""The running coordinator with allocations that fail, at places all over the way of a request: it answers with what it should or with
a refusal, or cuts a connection, and goes on. allocfault.c is preloaded into it and takes the orders."""

import http.client
import json
import mmap
import re
import struct

import pytest
from serving import BUILD, NAME, Server, needs_model, wait_until

pytest_plugins = ["serving"]
pytestmark = needs_model
PROMPT = "Once upon a time"
ORDER = struct.Struct("=qqqq")  # struct order of allocfault.c


class Faulty(Server):
    """A server whose allocator takes orders."""

    def __init__(self, folder, *args):
        path = folder / "order"
        path.write_bytes(bytes(4096))
        with open(path, "r+b") as f:
            self.order = mmap.mmap(f.fileno(), 4096)
        library = BUILD / "tests" / "allocfault.so"
        assert library.exists(), f"{library} was not built"
        super().__init__(*args, env={"LD_PRELOAD": str(library), "TD_ALLOC_FAULT_FILE": str(path)})

    def arm(self, k, n=1):
        """The k-th call from now on fails, and n - 1 behind it."""
        struct.pack_into("=q", self.order, 24, 0)
        struct.pack_into("=q", self.order, 8, n)
        struct.pack_into("=q", self.order, 0, k + n - 1)

    def disarm(self):
        """How many calls have failed."""
        struct.pack_into("=q", self.order, 0, 0)
        return ORDER.unpack_from(self.order)[3]

    def seen(self):
        return ORDER.unpack_from(self.order)[2]


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    with Faulty(tmp_path_factory.mktemp("nomem"), "-n", 1, "--threads", 1) as s:
        s.wait_ready()
        s.expected = s.complete(PROMPT, max_tokens=8, temperature=0)["text"]
        yield s
        s.stop()


def whole(s):
    r = s.post("/v1/completions", {"model": NAME, "prompt": PROMPT, "max_tokens": 8, "temperature": 0, "stop": ["zzz"]}, 20)
    return r.status, r.json()["choices"][0]["text"] == s.expected if r.status == 200 else True


def streamed(s):
    stream = s.stream("/v1/completions", {"model": NAME, "prompt": PROMPT, "max_tokens": 8, "temperature": 0, "stream": True,
                                          "logprobs": 2}, 20)
    try:
        if stream.status != 200:
            stream.response.read()
            return stream.status, True
        events = list(stream)
        told = [json.loads(e) for e in events if e != "[DONE]"]
        text = "".join(c["text"] for e in told if "choices" in e for c in e["choices"])
        ended_well = bool(events) and events[-1] == "[DONE]" and not any("error" in e for e in told)
        # A stream that says that it is whole is whole; any other holds a beginning.
        return 200, text == s.expected if ended_well else s.expected.startswith(text)
    finally:
        stream.close()


def looked_at(path):
    def ask(s):
        r = s.get(path, 20)
        return r.status, len(r.body) > 0

    ask.__name__ = path
    return ask


def ask(s, kind):
    """(status, whether what came was right); status 0: the connection was cut."""
    try:
        return kind(s)
    except (OSError, http.client.HTTPException):
        return 0, True


def answers(s):
    """Whether a request gets the answer that it must have."""
    try:
        r = s.post("/v1/completions", {"model": NAME, "prompt": PROMPT, "max_tokens": 8, "temperature": 0}, 20)
    except (OSError, http.client.HTTPException):
        return False
    assert r.status == 503 or r.json()["choices"][0]["text"] == s.expected
    return r.status == 200


KINDS = [whole, streamed, looked_at("/v1/models"), looked_at("/metrics"), looked_at("/status")]


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__.strip("/"))
@pytest.mark.parametrize("n", [1, 20], ids=["one", "twenty"])
def test_the_server_goes_on_when_an_allocation_fails(faulty, kind, n):
    s = faulty
    pid = s.p.pid
    before = s.seen()
    assert kind(s) == (200, True)
    total = s.seen() - before
    assert total > 5
    first, step = (13, max(1, total // 40)) if n == 1 else (1, 1 + total // 12)
    places = sorted({*range(1, first), *range(first, total + 10, step)})
    statuses = {}
    fired = 0
    for k in places:
        s.arm(k, n)
        status, right = ask(s, kind)
        fired += s.disarm() > 0
        assert s.p.poll() is None, f"allocation {k} of {total}: the server ended with {s.p.returncode}:\n{s.log()[-3000:]}"
        assert right, f"allocation {k} of {total}: {status} with a wrong answer"
        assert status in (0, 200, 429, 500, 503), f"allocation {k} of {total}: {status}"
        statuses[status] = statuses.get(status, 0) + 1
        # Where a message of the control stream is lost, so is the group, which comes back.
        if n > 1 or status != 200:
            wait_until(lambda: f"an answer; the log:\n{s.log()[-3000:]}", lambda: answers(s), 30, 0.1)
    assert fired >= len(places) // 2, statuses
    assert answers(s) and s.p.pid == pid and not re.search(r"Assertion|abort", s.log())
    wait_until("nothing is left open", lambda: s.group()["n_open"] == 0)
