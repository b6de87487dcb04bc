"""The three forms of DESIGN's processes: supervised, dialled in, one job. Each answers, idles, and ends without a trace."""

import json
import os
import signal
import time

import pytest
from serving import (
    MODEL, NAME, DialIn, Server, cpu_ns, needs_model, read_proc, tensord, wait_until,
)

pytest_plugins = ["serving"]
pytestmark = needs_model
PROMPT = "Once upon a time"
IDLE_S = 3.0


@pytest.fixture(scope="module")
def answer():
    """What one process without a service says."""
    p = tensord("generate", "--model", MODEL, "--prompt", PROMPT, "--max-tokens", 24, "--json")
    assert p.returncode == 0, p.stderr
    return json.loads(p.stdout)["text"]


def check_answers(server, answer):
    assert server.complete(PROMPT, max_tokens=24, temperature=0)["text"] == answer
    assert server.group()["layout"]["tp"] == 2


def check_idle(processes):
    """Less than one percent of a core each, threads together."""
    time.sleep(0.3)
    before = {pid: cpu_ns(pid) for pid in processes}
    time.sleep(IDLE_S)
    used = {pid: (cpu_ns(pid) - ns) / 1e9 / IDLE_S for pid, ns in before.items()}
    busy = {" ".join(processes[pid])[:120]: round(share, 4) for pid, share in used.items() if share >= 0.01}
    assert not busy, f"busy while idle: {busy}"
    assert len(used) >= 2


def test_supervised(answer):
    with Server("-n", 2, "--threads", 1) as s:
        s.wait_ready()
        assert len(s.ranks()) == 2
        check_answers(s, answer)
        check_idle(s.processes())
        assert f"serving {NAME} at http://{s.address}" in s.out()
        s.stop()


def test_dialled_in(key_file, answer):
    with DialIn(key_file) as s:
        r = s.get("/readyz")
        assert r.status == 503 and r.json()["ranks_ready"] == 0, r.body
        assert s.post("/v1/completions", {"prompt": PROMPT}).status == 503
        group = s.dial()
        s.wait_ready()
        check_answers(s, answer)
        check_idle({**s.processes(), **group.processes()})
        s.stop()


def test_a_group_that_dialled_in_may_leave_and_another_come(key_file, answer):
    with DialIn(key_file) as s:
        first = s.dial()
        s.wait_ready()
        os.kill(next(iter(first.ranks())), signal.SIGKILL)
        wait_until("red", lambda: not s.is_ready(), 2)
        wait_until(lambda: f"the broken group ends: {first.processes()}\n{first.log()}", lambda: not first.processes(), 15)
        s.dial()
        s.wait_ready()
        check_answers(s, answer)
        s.stop()


def rank_zero(server):
    return next(p for p in server.processes() if b"OMPI_COMM_WORLD_RANK=0" in read_proc(p, "environ").split(b"\0"))


def test_one_job(answer):
    with Server("--threads", 1, prefix=["mpirun", "-n", 2]) as s:
        s.wait_ready()
        check_answers(s, answer)
        check_idle({p: a for p, a in s.processes().items() if a[0].endswith("tensord")})
        s.stop(pid=rank_zero(s))


def test_one_job_ends_with_its_mpirun():
    """mpirun that was told to end says 1, whatever its ranks say."""
    with Server("--threads", 1, prefix=["mpirun", "-n", 2]) as s:
        s.wait_ready()
        s.stop(expected=None)


def test_one_job_of_one_process(answer):
    with Server("--threads", 1, prefix=["mpirun", "-n", 1]) as s:
        s.wait_ready()
        assert s.complete(PROMPT, max_tokens=24, temperature=0)["text"] == answer
        assert len([a for a in s.processes().values() if a[0].endswith("tensord")]) == 1
        s.stop(pid=rank_zero(s))


@pytest.mark.parametrize("layout", [("-tp", 2, "-pp", 2), ("-tp", 3), ("-pp", 2), ("-n", 3, "--shares", "3:1:1")], ids=lambda v: "".join(map(str, v)))
def test_every_layout_answers_the_same(layout, answer):
    with Server(*layout, "--threads", 1) as s:
        s.wait_ready()
        assert s.complete(PROMPT, max_tokens=24, temperature=0)["text"] == answer
        s.stop()


def test_sigint_ends_it_as_well():
    with Server("-n", 2, "--threads", 1) as s:
        s.wait_ready()
        s.p.send_signal(signal.SIGINT)
        assert s.wait_exit(10) == 0
        wait_until(lambda: f"left: {s.processes()}", lambda: not s.processes(), 5)


def test_a_request_under_way_ends_with_an_error_when_the_server_stops():
    with Server("-n", 2, "--threads", 1) as s:
        s.wait_ready()
        stream = s.stream("/v1/completions", {"prompt": PROMPT, "max_tokens": 480, "ignore_eos": True, "stream": True})
        events = iter(stream)
        next(events)
        s.p.send_signal(signal.SIGTERM)
        rest = list(events)
        assert rest[-1] == "[DONE]" or '"error"' in rest[-1] or '"error"' in rest[-2], rest[-2:]
        stream.close()
        assert s.wait_exit(10) == 0
        wait_until(lambda: f"left: {s.processes()}", lambda: not s.processes(), 5)
