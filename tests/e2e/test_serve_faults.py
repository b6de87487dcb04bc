"""What breaks while the server serves: ranks, clients, queues, workers that do not belong. It says so and goes on."""

import concurrent.futures
import json
import os
import re
import shutil
import signal
import subprocess
import time

import grpc
import pytest
from serving import MODEL, NAME, DialIn, Server, chunks_of, needs_model, tagged, tensord, wait_until

pytest_plugins = ["serving"]
pytestmark = needs_model
PROMPT = "Once upon a time"
LONG = {"prompt": PROMPT, "max_tokens": 480, "ignore_eos": True, "temperature": 0, "stream": True}
# Plain kernels, so that an answer of 480 tokens takes long enough to be disturbed.
SLOW = ("--cpu-isa", "ref", "--threads", 1)


# One request per kind of state that must be rebuilt when another group goes on with it.
SOME = {**LONG, "max_tokens": 48}
MIXED = [
    SOME,
    {**SOME, "temperature": 0.9, "seed": 7, "top_p": 0.95, "logprobs": 3},
    {**SOME, "temperature": 1.1, "seed": 8, "mirostat_mode": 2, "mirostat_tau": 4},
    {**SOME, "temperature": 0.8, "seed": 9, "dry_multiplier": 0.8, "repetition_penalty": 1.2, "frequency_penalty": 0.5},
    {**SOME, "temperature": 0.7, "seed": 10, "n": 2},
    {**SOME, "temperature": 1.2, "seed": 11, "stop": [" zebra crossing", "\n\n\n\n"], "min_tokens": 40},
    {**SOME, "prompt": PROMPT * 20, "echo": True},
    {**SOME, "prompt": [PROMPT, "The sky is", "A dog"], "temperature": 0.6, "seed": 12, "min_p": 0.05, "logit_bias": {"20": -3}},
]


def read_events(stream):
    """Events until the stream's end, whatever it is."""
    try:
        return list(stream)
    except (OSError, ValueError):
        return []


def told(events):
    """What a stream told, in one piece for each of its choices: nothing of it may depend on when it came."""
    assert events and events[-1] == "[DONE]", events[-1:]
    choices = {}
    for event in map(json.loads, events[:-1]):
        assert "error" not in event, event
        for c in event["choices"]:
            out = choices.setdefault(c["index"], {"text": "", "finish": [], "logprobs": []})
            out["text"] += c["text"]
            out["finish"] += [c["finish_reason"]] if c["finish_reason"] else []
            if c.get("logprobs"):
                out["logprobs"] += list(zip(c["logprobs"]["tokens"], c["logprobs"]["token_logprobs"], c["logprobs"]["top_logprobs"]))
    return choices


def ask_all(s):
    return [told(read_events(s.stream("/v1/completions", r))) for r in MIXED]


@pytest.fixture(scope="module")
def slow():
    """Two ranks whose group may be killed; every test leaves it ready."""
    with Server("-n", 2, *SLOW) as s:
        s.wait_ready()
        s.expected = s.complete(PROMPT, max_tokens=32, temperature=0)
        s.golden = ask_all(s)
        yield s
        s.stop()


@pytest.fixture(scope="module")
def stages():
    """A pipeline of three with a draft model and room for blocks in host memory. Its group may be killed; every test leaves it ready."""
    with Server("-n", 3, "--pipeline-parallel-size", 3, *SLOW, "--max-num-seqs", 8, "--max-model-len", 512, "--kv-offload-gib", 0.001,
                "--speculative-model", MODEL) as s:
        s.wait_ready()
        s.expected = s.complete(PROMPT, max_tokens=32, temperature=0)
        s.golden = ask_all(s)
        yield s
        s.stop()


def break_group(s, how):
    """Breaks the group while answers of all kinds stream. Returns the seconds until /readyz was red, and what each stream told."""
    with concurrent.futures.ThreadPoolExecutor(len(MIXED)) as pool:
        streams = [s.stream("/v1/completions", r) for r in MIXED]
        iterators = [iter(x) for x in streams]
        first = [next(it) for it in iterators]
        how()
        began = time.monotonic()
        rest = [pool.submit(read_events, it) for it in iterators]
        wait_until("readiness is red", lambda: not s.is_ready(), 5, 0.005)
        red = time.monotonic() - began
        assert any(not r.done() for r in rest), "every stream had ended: the group was broken too late"
        answers = [told([f, *r.result(60)]) for f, r in zip(first, rest)]
    for x in streams:
        x.close()
    return red, answers


def check_broken(s, red, answers, before):
    assert red < 2.0
    for request, answer, golden in zip(MIXED, answers, s.golden):
        assert answer == golden, request
    s.wait_ready(20)
    after = s.group()
    assert after["generation"] == before["generation"] + 1 and after["n_restarts"] == before["n_restarts"] + 1, s.log()[-3000:]
    assert {r["pid"] for r in after["ranks"]}.isdisjoint({r["pid"] for r in before["ranks"]})
    assert after["last_error"] and s.wait_log("group lost")
    assert s.complete(PROMPT, max_tokens=32, temperature=0) == s.expected
    wait_until("the old ranks are gone", lambda: set(s.ranks()) == {r["pid"] for r in after["ranks"]}, 5)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_is_noticed_and_the_group_relaunched(slow, rank):
    before = slow.group()
    check_broken(slow, *break_group(slow, lambda: os.kill(before["ranks"][rank]["pid"], signal.SIGKILL)), before)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_killed_stage_of_a_pipeline_is_noticed_and_the_group_relaunched(stages, rank):
    """Steps are under way on every stage."""
    before = stages.group()
    check_broken(stages, *break_group(stages, lambda: os.kill(before["ranks"][rank]["pid"], signal.SIGKILL)), before)


def test_a_rank_that_hangs_is_noticed_and_the_group_relaunched(slow):
    before = slow.group()
    check_broken(slow, *break_group(slow, lambda: os.kill(before["ranks"][1]["pid"], signal.SIGSTOP)), before)


def test_a_killed_mpirun_is_noticed_and_the_group_relaunched(slow):
    before = slow.group()
    launcher = next(p for p, a in slow.processes().items() if a[0].endswith("mpirun"))
    check_broken(slow, *break_group(slow, lambda: os.kill(launcher, signal.SIGKILL)), before)


def test_a_whole_answer_outlives_its_group(slow):
    body = {**SOME, "stream": False, "prompt": [PROMPT] * 6}
    golden = slow.post("/v1/completions", body).json()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        answer = pool.submit(slow.post, "/v1/completions", body)
        wait_until("it runs", lambda: slow.group()["n_open"] > 0, 5, 0.001)
        os.kill(next(iter(slow.ranks())), signal.SIGKILL)
        r = answer.result(40)
    assert r.status == 200, (r.status, r.body[:200])
    assert r.json()["choices"] == golden["choices"] and r.json()["usage"]["completion_tokens"] == golden["usage"]["completion_tokens"]
    slow.wait_ready(20)


def test_what_is_asked_while_there_is_no_group_waits_for_the_next(slow):
    os.kill(next(iter(slow.ranks())), signal.SIGKILL)
    wait_until("readiness is red", lambda: not slow.is_ready(), 5, 0.001)
    assert slow.complete(PROMPT, max_tokens=32, temperature=0) == slow.expected
    assert slow.is_ready()


def test_a_request_that_takes_its_group_along_is_given_up_and_the_others_go_on():
    """The group dies whenever the oldest request is computed: twice among others, three times alone. Its prompt is long enough to be hit in."""
    sentence = "The little dog ran to the big tree and sat down. "
    ours, its = sentence * 10, sentence * 40
    ask = {"temperature": 0, "max_tokens": 24, "ignore_eos": True}
    with Server("-n", 2, *SLOW, "--max-num-batched-tokens", 32) as s, concurrent.futures.ThreadPoolExecutor(4) as pool:
        s.wait_ready()
        golden = [s.complete(f"{i} {ours}", **ask) for i in range(3)]
        poison = pool.submit(s.post, "/v1/completions", {"prompt": "x " + its, **ask, "max_tokens": 400})
        wait_until("it is open", lambda: s.group()["n_open"] == 1, 5, 0.001)
        others = [pool.submit(s.post, "/v1/completions", {"prompt": f"{i} {ours}", **ask}) for i in range(3)]
        wait_until("all are open", lambda: s.group()["n_open"] == 4, 5, 0.001)
        for death in range(5):
            wait_until("it is computed", lambda: s.group()["state"] == "ready" and s.group()["n_running"] > 0, 20, 0.001)
            os.kill(next(iter(s.ranks())), signal.SIGKILL)
            wait_until("the group is lost", lambda: not s.is_ready(), 5, 0.001)
            assert death == 4 or not poison.done()
        r = poison.result(10)
        assert r.json()["error"]["code"] == "request_crashes_engine"
        assert r.status == 500 and "5 times while it ran this request, 3 of them with nothing else" in r.json()["error"]["message"], r.body
        for o, g in zip(others, golden):
            assert o.result(60).json()["choices"] == [g]
        s.stop()


def test_clients_that_leave_free_their_sequences(slow):
    before = slow.status()["groups"][0]["generated_tokens"]
    streams = [slow.stream("/v1/completions", LONG) for _ in range(8)]
    for s in streams:
        next(iter(s))
    assert slow.group()["n_open"] > 0
    for s in streams:
        s.close()
    wait_until(lambda: f"all is freed: {slow.group()}", lambda: not any(slow.group()[k] for k in ("n_open", "n_running", "n_waiting", "kv_blocks_used")), 3)
    assert slow.group()["generated_tokens"] - before < 8 * 480, "they were generated to the end"
    # One that waits for a whole answer leaves too.
    p = subprocess.Popen(["curl", "-s", "-d", json.dumps({**LONG, "stream": False}), slow.url + "/v1/completions"], stdout=subprocess.DEVNULL)
    wait_until("it runs", lambda: slow.group()["n_open"] == 1, 5, 0.001)
    p.kill()
    p.wait()
    wait_until("it is freed", lambda: slow.group()["n_open"] == 0, 3)
    assert slow.complete(PROMPT, max_tokens=32, temperature=0) == slow.expected


def test_a_full_queue_is_a_429():
    with Server("-n", 1, *SLOW, "--max-num-seqs", 1, "--max-queue", 2) as s:
        s.wait_ready()
        with concurrent.futures.ThreadPoolExecutor(10) as pool:
            body = {**LONG, "stream": False, "max_tokens": 60}
            answers = list(pool.map(lambda _: s.post("/v1/completions", body), range(10)))
        refused = [a for a in answers if a.status == 429]
        assert {a.status for a in answers} == {200, 429} and len(answers) - len(refused) >= 3, [a.status for a in answers]
        for a in refused:
            assert a.headers["retry-after"] and a.json()["error"]["type"] == "rate_limit_error", a.body
        assert len({json.dumps(a.json()["choices"]) for a in answers if a.status == 200}) == 1
        assert s.complete(PROMPT, max_tokens=2)["text"]
        s.stop()


def test_the_ranks_end_when_the_coordinator_is_killed():
    with Server("-n", 2, "--threads", 1) as s:
        s.wait_ready()
        s.note_shm()
        s.p.kill()
        s.p.wait()
        wait_until(lambda: f"left: {tagged(s.tag)}", lambda: not tagged(s.tag), 10)
        assert not [f for f in s.seen_shm if os.path.exists(f)]


# ---- workers that do not belong ----


@pytest.fixture(scope="module")
def standing(key_file):
    """A coordinator and the group that dialled in; every test leaves it ready."""
    with DialIn(key_file) as s:
        s.dial()
        s.wait_ready()
        yield s
        s.stop()


def refused(standing, ranks=2, key_file=None):
    """The log of a group that must be refused, and what the coordinator logged meanwhile."""
    seen = len(standing.log())
    group = standing.dial(ranks, key_file)
    try:
        assert group.wait_exit(20) != 0
        wait_until(lambda: f"left: {group.processes()}", lambda: not group.processes(), 5)
        assert standing.is_ready() and standing.complete(PROMPT, max_tokens=4)["text"]
        return group.log(), standing.log()[seen:]
    finally:
        standing.groups.remove(group)
        group.kill()


def test_a_wrong_cluster_key_is_refused(standing, tmp_path):
    (tmp_path / "key").write_text("some-other-key\n")
    group, log = refused(standing, 2, tmp_path / "key")
    assert "key" in group, group
    assert "/tensord.worker.v1.Worker/Attach" in log and "a wrong one" in log, f"the coordinator logged: {log!r}"
    assert "some-other-key" not in group + log


def test_a_second_group_is_refused(standing):
    group, log = refused(standing)
    assert "already here" in group and "already here" in log, (group, log)


def test_a_group_of_another_size_is_refused(standing):
    group, log = refused(standing, 3)
    assert "3 ranks" in group and "expected 2" in log, (group, log)


class FakeWorker:
    """A control stream by hand. Messages are encoded by the project's own .proto, as text through protoc."""

    def __init__(self, server, key):
        self.channel = grpc.insecure_channel(server.address)
        self.key = key

    def attach(self, *messages):
        def encode(m):
            return m if isinstance(m, bytes) else subprocess.run(
                ["protoc", "--encode=tensord.worker.v1.WorkerMessage", "proto/worker.proto"], input=m.encode(), capture_output=True, check=True,
                cwd=os.path.join(os.path.dirname(__file__), "..", ".."),
            ).stdout

        metadata = [("authorization", f"Bearer {self.key}")] if self.key else None
        call = self.channel.stream_stream("/tensord.worker.v1.Worker/Attach", lambda b: b, lambda b: b)
        with pytest.raises(grpc.RpcError) as e:
            list(call(iter([encode(m) for m in messages]), timeout=10, metadata=metadata))
        return e.value.code(), e.value.details()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.channel.close()


def test_messages_that_no_worker_sends_are_refused(standing, key_file):
    key = key_file.read_text().strip()
    register = 'cookie: 5 register { version: "%s" world_rank: %d world_size: %d host: "h" pid: 1 }'
    with FakeWorker(standing, key) as w:
        assert "0.0.7" in w.attach(register % ("0.0.7", 0, 2))[1]
        assert "rank 9 of 2" in w.attach(register % (version(), 9, 2))[1]
        assert "already here" in w.attach(register % (version(), 1, 2))[1]
        assert w.attach("cookie: 5 heartbeat { }")[0] != grpc.StatusCode.OK
        assert w.attach(b"\xff\xff\xff\xff")[0] != grpc.StatusCode.OK
        assert w.attach(b"\x82\x01\x05\x0a\xff\xff\xff\xff")[0] != grpc.StatusCode.OK
    for wrong in (None, "wrong"):
        with FakeWorker(standing, wrong) as w:
            assert w.attach(register % (version(), 0, 2))[0] == grpc.StatusCode.UNAUTHENTICATED
    assert "0.0.7" in standing.log()
    assert standing.is_ready() and standing.complete(PROMPT, max_tokens=4)["text"]


def version():
    return re.match(r"tensord ([\w.-]+)", tensord("--version").stdout.decode())[1]


def test_another_model_on_the_ranks_is_refused(key_file, tmp_path):
    """The files change between the coordinator's look at them and the ranks'."""
    model = tmp_path / NAME
    shutil.copytree(MODEL, model)
    config = (model / "config.json").read_text()
    with DialIn(key_file, model=model) as s:
        (model / "config.json").write_text(config + "\n")
        first = s.dial()
        s.wait_log("hash", 15)
        wait_until(lambda: f"the group ends: {first.log()}", lambda: not first.processes(), 15)
        assert s.get("/readyz").status == 503 and s.p.poll() is None
        (model / "config.json").write_text(config)
        s.dial()
        s.wait_ready()
        assert chunks_of(s.stream("/v1/completions", {**LONG, "max_tokens": 4}))
        s.stop()
