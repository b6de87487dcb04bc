"""What a server allows: requests and tokens per key, the queue, deadlines, priorities, salts; and absurd wishes.

Who is over a limit is told which one and when to come again; everyone already in finishes.
"""

import concurrent.futures
import json
import re
import threading

import grpc
import pytest
from serving import NAME, Process, Server, TENSORD, MODEL, channel_to, free_port, needs_model, wait_until

pytest_plugins = ["serving"]
pytestmark = needs_model
PROMPT = "Once upon a time"
# Plain kernels, so that a long answer is still running when others are refused.
SLOW = ("-n", 1, "--cpu-isa", "ref", "--threads", 1)
LONG = {"prompt": PROMPT, "max_tokens": 150, "ignore_eos": True, "temperature": 0, "stream": True}
BEHIND = {**LONG, "max_tokens": 40}  # waits behind a long one, and need not be long itself
SHORT = {"prompt": PROMPT, "max_tokens": 3, "temperature": 0}
COMPLETIONS = "/v1/completions"


def metric(server, name):
    lines = server.get("/metrics").body.decode().splitlines()
    return float(next(line.split()[-1] for line in lines if line.startswith(name + " ")))


def refusals(server, reason):
    return metric(server, f'tensord_requests_refused_total{{reason="{reason}"}}')


def is_over(r, schemas, *words, low=1, high=60):
    """A 429 in OpenAI's form with those words; how long to wait."""
    assert r.status == 429, (r.status, r.body)
    schemas.check("ErrorResponse", r.json())
    error = r.json()["error"]
    assert error["type"] == "rate_limit_error" and all(w in error["message"] for w in words), error
    assert re.fullmatch(r"\d+", r.headers["retry-after"])
    assert low <= int(r.headers["retry-after"]) <= high, r.headers
    return int(r.headers["retry-after"])


def text_of(events):
    assert events[-1] == "[DONE]", events[-2:]
    chunks = [json.loads(e) for e in events[:-1]]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    return "".join(c["choices"][0]["text"] for c in chunks)


def is_empty(server):
    return not any(server.group()[k] for k in ("n_open", "n_running", "n_waiting", "kv_blocks_used"))


def all_read(streams):
    """The text of each, read side by side."""
    with concurrent.futures.ThreadPoolExecutor(len(streams)) as pool:
        return list(pool.map(lambda s: text_of(list(s)), streams))


# ---- requests of a key ----


def test_a_key_has_so_many_requests_at_once_and_others_are_not_held_up(rpc, schemas, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("first-key\nsecond-key\n")
    with Server(*SLOW, "--max-num-seqs", 4, "--api-key-file", keys, "--max-concurrency-per-key", 3, key="first-key") as s:
        s.wait_ready()
        assert s.group()["max_concurrency_per_key"] == 3 and s.group()["max_tokens_per_minute_per_key"] == 0
        side_by_side = {**LONG, "max_tokens": 100}  # steps of four rows are slow
        streams = [s.stream(COMPLETIONS, side_by_side) for _ in range(3)]
        assert all(x.status == 200 for x in streams)
        assert [x.response.getheader("x-ratelimit-remaining-requests") for x in streams] == ["2", "1", "0"]
        r = s.post(COMPLETIONS, SHORT)
        is_over(r, schemas, "API key", "3 requests", "the limit is 3 at a time", "--max-concurrency-per-key")
        assert r.headers["x-ratelimit-limit-requests"] == "3" and r.headers["x-ratelimit-remaining-requests"] == "0"
        assert re.fullmatch(r"\d+\.\d{3}s", r.headers["x-ratelimit-reset-requests"])
        assert "x-ratelimit-limit-tokens" not in r.headers
        with channel_to(s) as channel, pytest.raises(grpc.RpcError) as e:
            list(rpc.call(channel, "Inference/Generate", rpc.message("GenerateRequest", text=b"a", max_tokens=2), key=s.key))
        assert e.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED and "the limit is 3 at a time" in e.value.details()
        s.key = "second-key"
        assert s.complete(PROMPT, max_tokens=3)["text"]
        streams.append(s.stream(COMPLETIONS, side_by_side))
        is_over(s.post(COMPLETIONS, {**SHORT, "prompt": ["a"] * 3}), schemas, "1 requests", "3 more")
        r = s.post(COMPLETIONS, {**SHORT, "prompt": ["a"] * 4})  # it never could
        assert r.status == 400 and "at most 3" in r.json()["error"]["message"], r.body
        s.key = "first-key"
        assert len(set(all_read(streams))) == 1
        assert s.post(COMPLETIONS, {**SHORT, "prompt": ["a", "b", "c"]}).status == 200
        assert refusals(s, "concurrency") == 3 and refusals(s, "queue") == 0
        wait_until("all is freed", lambda: is_empty(s), 30)
        s.stop()


# ---- tokens of a key ----


def test_a_key_has_so_many_tokens_a_minute(schemas):
    """Twenty a second. What was asked for and not generated comes back at the end."""
    with Server(*SLOW, "--max-tokens-per-minute-per-key", 1200) as s:
        s.wait_ready()
        left = lambda r: int(r.headers["x-ratelimit-remaining-tokens"])
        r = s.post(COMPLETIONS, {**SHORT, "max_tokens": 500})
        n_prompt, n_used = r.json()["usage"]["prompt_tokens"], r.json()["usage"]["total_tokens"]
        assert left(r) == 1200 - n_prompt - 500 and n_used < 500
        assert r.headers["x-ratelimit-limit-tokens"] == "1200"
        r = s.post(COMPLETIONS, {**SHORT, "max_tokens": 1})
        assert left(r) >= 1200 - n_used - n_prompt - 1
        # More than a bucket holds begins when it is full, and leaves a debt of some 300 tokens, which is 15 seconds.
        whole = {"prompt": PROMPT, "max_tokens": 1500, "ignore_eos": True, "stream": True}
        running = wait_until("the bucket is full", lambda: (x := s.stream(COMPLETIONS, whole)).status == 200 and x, 30, 0.5)
        r = s.post(COMPLETIONS, SHORT)
        is_over(r, schemas, "all clients together", "1200 tokens per minute", "0 are left", f"counts as {n_prompt + 3} tokens",
                low=10, high=16)
        assert left(r) == 0 and 70 < float(r.headers["x-ratelimit-reset-tokens"][:-1]) < 76
        assert refusals(s, "tokens") >= 1
        running.close()  # what it has not generated comes back
        r = wait_until("its turn", lambda: (r := s.post(COMPLETIONS, SHORT)).status == 200 and r, 15, 0.1)
        assert left(r) <= 1200
        s.stop()


# ---- the queue ----


def test_a_full_queue_says_when_to_come_again_and_everyone_in_it_finishes(schemas):
    with Server(*SLOW, "--max-num-seqs", 1, "--max-queue", 3) as s:
        s.wait_ready()
        bodies = [LONG, BEHIND, BEHIND, BEHIND]
        alone = [text_of(list(s.stream(COMPLETIONS, b))) for b in bodies[:2]]
        streams = [s.stream(COMPLETIONS, b) for b in bodies]
        assert [x.status for x in streams] == [200] * 4
        for body in (SHORT, {**SHORT, "stream": True}, {**SHORT, "priority": -1000}):
            is_over(s.post(COMPLETIONS, body), schemas, "4 requests are open")
        r = s.post(COMPLETIONS, {**SHORT, "prompt": ["a"] * 5})  # it never could
        assert r.status == 400 and "at most 4" in r.json()["error"]["message"], r.body
        assert s.post(COMPLETIONS, {**SHORT, "prompt": "word " * 5000}).status == 400  # and no waiting makes this fit
        assert all_read(streams) == [alone[0], *[alone[1]] * 3]
        assert s.complete(**SHORT)["text"]
        assert refusals(s, "queue") == 3 and metric(s, 'tensord_requests_total{endpoint="/v1/completions",outcome="busy"}') == 3
        s.stop()


def test_all_prompts_of_a_request_are_taken_or_none(schemas):
    with Server(*SLOW, "--max-num-seqs", 1, "--max-queue", 2) as s:
        s.wait_ready()
        running = s.stream(COMPLETIONS, LONG)
        is_over(s.post(COMPLETIONS, {**SHORT, "prompt": ["a", "b", "c"]}), schemas, "1 requests are open")
        assert s.group()["n_open"] == 1
        r = s.post(COMPLETIONS, {**SHORT, "prompt": ["a", "b"]})
        assert r.status == 200 and len(r.json()["choices"]) == 2
        all_read([running])
        s.stop()


def test_while_it_drains_it_says_so(rpc):
    with Server(*SLOW) as s, channel_to(s) as channel, concurrent.futures.ThreadPoolExecutor(1) as pool:
        s.wait_ready()
        running = s.stream(COMPLETIONS, LONG)
        drained = pool.submit(rpc.call, channel, "Cluster/Drain", timeout_ns=60 * 10**9)
        wait_until("it drains", lambda: not s.is_ready(), 5)
        r = s.post(COMPLETIONS, SHORT)
        assert r.status == 503 and r.headers["retry-after"] == "1" and b"draining" in r.body, (r.headers, r.body)
        all_read([running])
        assert drained.result(20).n_cancelled == 0 and refusals(s, "draining") == 1


# ---- who waits and goes ----


@pytest.fixture(scope="module")
def one():
    """A server that runs one request at a time; every test leaves it empty."""
    with Server(*SLOW, "--max-num-seqs", 1, "--no-prefix-cache") as s:
        s.wait_ready()
        yield s
        wait_until(lambda: f"all is freed: {s.group()}", lambda: is_empty(s), 30)
        s.stop()


@pytest.mark.parametrize("way", ["the client leaves", "the deadline passes"])
def test_who_waits_and_goes_never_runs(one, way):
    before = one.group()
    bodies = [LONG, BEHIND, BEHIND]
    running = [one.stream(COMPLETIONS, b) for b in bodies]
    if way == "the client leaves":
        waiting = [one.stream(COMPLETIONS, {**LONG, "prompt": "It waits"}) for _ in range(2)]
        wait_until("they wait", lambda: one.group()["n_waiting"] == 4, 5)
        for w in waiting:
            w.close()
    else:
        late = metric(one, "tensord_deadlines_passed_total")
        r = one.post(COMPLETIONS, {**SHORT, "timeout": 0.1})
        assert r.status == 504, r.body
        error = r.json()["error"]
        assert error["type"] == "timeout_error" and error["code"] == "timeout" and "with 0 tokens" in error["message"], error
        assert metric(one, "tensord_deadlines_passed_total") == late + 1
    wait_until(lambda: f"they are gone: {one.group()}", lambda: one.group()["n_open"] <= 3 and one.group()["n_waiting"] <= 2, 5)
    all_read(running)
    wait_until("all is freed", lambda: is_empty(one), 5)
    after = one.group()
    assert after["generated_tokens"] - before["generated_tokens"] == sum(b["max_tokens"] for b in bodies), "one that had gone was run"
    n = one.post(COMPLETIONS, SHORT).json()["usage"]["prompt_tokens"]
    assert after["prompt_tokens"] - before["prompt_tokens"] == n * len(bodies)


def test_a_deadline_ends_what_runs_and_keeps_what_was_sent(one, schemas):
    whole = text_of(list(one.stream(COMPLETIONS, LONG)))
    stream = one.stream(COMPLETIONS, {**LONG, "max_tokens": 1900, "timeout": 0.6})
    assert stream.status == 200
    events = [json.loads(e) for e in stream]
    schemas.check("ErrorResponse", events[-1])
    assert events[-1]["error"]["type"] == "timeout_error"
    text = "".join(e["choices"][0]["text"] for e in events[:-1])
    assert text and (whole.startswith(text) or text.startswith(whole))
    wait_until(lambda: f"its sequence is freed: {one.group()}", lambda: is_empty(one), 5)
    r = one.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1900, "timeout": 0.3,
                                          "min_tokens": 1900})
    assert r.status in (504, 400), r.body  # 400: a model without a chat template
    assert one.complete(**SHORT, timeout=60)["text"]


def test_the_server_bounds_every_request():
    with Server(*SLOW, "--request-timeout", 0.4) as s:
        s.wait_ready()
        assert s.group()["request_timeout_ns"] == 400_000_000
        r = s.post(COMPLETIONS, {**LONG, "stream": False, "max_tokens": 1900, "timeout": 3600})
        assert r.status == 504 and r.json()["error"]["code"] == "timeout", r.body
        assert s.complete(PROMPT, max_tokens=3)["text"]
        wait_until("it is freed", lambda: is_empty(s), 5)
        s.stop()


def test_the_deadline_of_a_grpc_call_frees_its_sequence(one, rpc):
    request = rpc.message("GenerateRequest", text=PROMPT.encode(), max_tokens=1900, ignore_eos=True)
    with channel_to(one) as channel:
        waiting = None
        for _ in range(2):  # it runs; another waits behind it
            seen = []
            with pytest.raises(grpc.RpcError) as e:
                if waiting is None:
                    waiting = rpc.call(channel, "Inference/Generate", request, timeout=0.4)
                for event in rpc.call(channel, "Inference/Generate", request, timeout=0.4):
                    seen.append(event)
            assert e.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            wait_until(lambda: f"its sequence is freed: {one.group()}", lambda: is_empty(one), 5)
    assert one.complete(**SHORT)["text"]


# ---- who goes first, who shares ----


def test_a_lower_priority_value_goes_first(one, rpc):
    ended, lock = [], threading.Lock()

    def ask(name, **fields):
        r = one.post(COMPLETIONS, {**LONG, "stream": False, "max_tokens": 150, **fields}, timeout=120)
        with lock:
            ended.append(name)
        return r.json()["choices"][0]["text"]

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        asked = []
        for i, (name, priority) in enumerate([("runs", 0), ("later", 5), ("equal", 0), ("first", -5)]):
            asked.append(pool.submit(ask, name, priority=priority))
            wait_until("it is accepted", lambda: one.group()["n_open"] > i or ended, 5, 0.001)
        texts = {a.result(120) for a in asked}
    assert ended == ["first", "runs", "equal", "later"] and len(texts) == 1


def test_salts_share_no_prompt(server, rpc):
    def cached(**fields):
        r = server.post(COMPLETIONS, {"prompt": "a dog and a cat went to the lake. " * 12, "max_tokens": 2, **fields})
        assert r.status == 200, r.body
        return r.json()["usage"]["prompt_tokens_details"]["cached_tokens"]

    assert cached(cache_salt="x") == 0 and cached(cache_salt="x") > 0
    assert cached(cache_salt="y") == 0 and cached(cache_salt="y") > 0
    assert cached(cache_salt="x") > 0
    text = ("a dog and a cat went to the lake. " * 12).encode()
    with channel_to(server) as channel:
        def usage(**fields):
            return list(rpc.call(channel, "Inference/Generate", rpc.message("GenerateRequest", text=text, max_tokens=2, **fields)))[-1].usage

        assert usage(cache_salt=b"z", priority=-3).cached_tokens == 0
        assert usage(cache_salt=b"z").cached_tokens > 0 and usage(cache_salt=b"x").cached_tokens > 0
        for fields, words in (({"priority": -1001}, "priority is -1001"), ({"cache_salt": b"s" * 257}, "cache_salt has 257 bytes")):
            with pytest.raises(grpc.RpcError) as e:
                usage(**fields)
            assert e.value.code() == grpc.StatusCode.INVALID_ARGUMENT and words in e.value.details()


# ---- absurd wishes ----

ABSURD = [
    ("priority", -1001, "-1000 to 1000"), ("priority", 1001, "-1000 to 1000"), ("priority", 0.5, "an integer"),
    ("priority", "high", "an integer"), ("priority", 10**18, "-1000 to 1000"),
    ("timeout", 0, "86400"), ("timeout", -1, "86400"), ("timeout", 86401, "86400"), ("timeout", 1e300, "86400"),
    ("timeout", "1s", "a number"), ("timeout", [], "a number"),
    ("cache_salt", "", "1 to 256"), ("cache_salt", "s" * 257, "1 to 256"), ("cache_salt", 5, "a string"),
    ("max_tokens", 0, "max_tokens"), ("max_tokens", -1, "max_tokens"), ("max_tokens", 2**32, "max_tokens"),
    ("min_tokens", -1, "min_tokens"), ("n", 0, "n"), ("n", -1, "n"), ("n", 10**6, "n"),
]


@pytest.mark.parametrize("field, value, words", ABSURD, ids=lambda v: str(v)[:12])
def test_an_absurd_wish_is_a_clear_400(server, schemas, field, value, words):
    for path, rest in ((COMPLETIONS, {"prompt": "a"}), ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]})):
        r = server.post(path, {**rest, field: value})
        assert r.status == 400, (r.status, r.body)
        schemas.check("ErrorResponse", r.json())
        error = r.json()["error"]
        assert error["type"] == "invalid_request_error" and error["param"] == field and words in error["message"], error


@pytest.mark.parametrize("option, value", [
    ("--max-concurrency-per-key", "-1"), ("--max-concurrency-per-key", "many"), ("--max-tokens-per-minute-per-key", "-5"),
    ("--max-tokens-per-minute-per-key", "1e3"), ("--request-timeout", "-1"), ("--request-timeout", "90000"),
    ("--request-timeout", "nan"), ("--max-queue", "-1"),
])
def test_an_absurd_limit_of_the_server_is_refused_by_name(option, value):
    with Process([TENSORD, "serve", "--model", MODEL, "--port", free_port(), option, value]) as p:
        assert p.wait_exit(10) == 2, p.log()
        assert option in p.log() and value in p.log(), p.log()


def test_the_server_still_answers(server):
    assert server.post(COMPLETIONS, {"model": NAME, "prompt": "a", "max_tokens": 2, "timeout": 60, "priority": 1000,
                                     "cache_salt": "s" * 256}).status == 200
