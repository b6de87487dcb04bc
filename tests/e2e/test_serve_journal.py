"""Requests outlive their connection and their server: who comes back, here or after a restart, has the answer from where it left off."""

import concurrent.futures
import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import time
import uuid

import grpc
import openai
import pytest
from serving import MODEL, NAME, Server, channel_to, free_port, needs_chat, needs_model, tensord, wait_until
from test_serve_faults import MIXED, PROMPT, SLOW, SOME, told

pytest_plugins = ["serving"]
pytestmark = needs_model
CHAT = {"messages": [{"role": "user", "content": "Tell me a story about a dog."}], "max_tokens": 80, "temperature": 0.9, "seed": 3, "stream": True,
        "stream_options": {"include_usage": True}, "logprobs": True, "top_logprobs": 2, "ignore_eos": True}


class Events:
    """A stream as it lies on the wire: (id, data) of each event, until it ends or breaks."""

    def __init__(self, s, method, path, body=None, headers=None):
        self.c = s.connection()
        self.c.request(method, path, body and json.dumps(body), {"Content-Type": "application/json", **s.headers(), **(headers or {})})
        self.r = self.c.getresponse()
        self.status = self.r.status
        self.id = self.r.getheader("X-Request-Id")
        self.got = []

    def __iter__(self):
        event = {"id": None}
        try:
            for line in self.r:
                line = line.decode().rstrip("\n")
                if line == "" and "data" in event:
                    self.got.append((event["id"], event["data"]))
                    event = {"id": None}
                    yield self.got[-1]
                elif line and not line.startswith(":"):
                    name, value = line.split(": ", 1)
                    assert name not in ("data",) or "data" not in event
                    event[name] = value
        except (OSError, http.client.HTTPException):
            return

    def read(self, n=None):
        """The next n events, or all that come."""
        for i, _ in enumerate(iter(self), 1):
            if i == n:
                break
        return self.got

    def leave(self):
        with contextlib.suppress(OSError):
            self.c.sock and self.c.sock.shutdown(2)
        self.r.close()
        self.c.close()


def post(s, body, path="/v1/completions", **headers):
    return Events(s, "POST", path, body, {k.replace("_", "-"): v for k, v in headers.items()})


def come_back(s, request_id, after=None, how="Last-Event-ID"):
    if how == "Last-Event-ID":
        return Events(s, "GET", f"/v1/requests/{request_id}/stream", None, {how: after} if after else {})
    return Events(s, "GET", f"/v1/requests/{request_id}/stream" + (f"?starting_after={after}" if after else ""))


def data_of(got):
    return [d for _, d in got]


def answer_of(got):
    return told(data_of(got))


def chat_of(got):
    """A chat stream in one piece, with how often its role was told."""
    assert got[-1][1] == "[DONE]", got[-1:]
    out = {"text": "", "roles": 0, "finish": [], "logprobs": [], "usage": []}
    for d in map(json.loads, data_of(got)[:-1]):
        assert "error" not in d, d
        out["usage"] += [d["usage"]] if d.get("usage") else []
        for c in d["choices"]:
            out["text"] += c["delta"].get("content") or ""
            out["roles"] += "role" in c["delta"]
            out["finish"] += [c["finish_reason"]] if c["finish_reason"] else []
            out["logprobs"] += (c.get("logprobs") or {}).get("content") or []
    return out


def without_time(answer):
    return {k: v for k, v in answer.items() if k not in ("id", "created")}


@pytest.fixture(scope="module")
def slow():
    """Two ranks with plain kernels, so that an answer takes a while."""
    with Server("-n", 2, *SLOW) as s:
        s.wait_ready()
        s.golden = [answer_of(post(s, r).read()) for r in MIXED]
        yield s
        s.stop()


class Restarted:
    """A server by turns: each start has the port and the journal of the one before."""

    def __init__(self, folder, *args, key=None):
        self.model = MODEL
        self.port = free_port()
        self.args = ["-n", 2, *SLOW, "--journal", folder / "journal.db", *args]
        self.key = key
        self.s = None

    def start(self):
        self.s = Server(*self.args, port=self.port, key=self.key, model=self.model)
        return self.s.wait_ready()

    def kill(self):
        """SIGKILL to the coordinator alone; what it leaves behind ends by itself."""
        os.kill(self.s.p.pid, signal.SIGKILL)
        self.s.p.wait()
        wait_until(lambda: f"left: {self.s.processes()}", lambda: not self.s.processes(), 10)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.s:
            self.s.kill()


# ---- coming back ----


@pytest.mark.parametrize("i", range(len(MIXED)))
def test_an_ended_answer_is_told_again_from_every_event(slow, i):
    first = post(slow, MIXED[i])
    whole = first.read()
    assert answer_of(whole) == slow.golden[i]
    assert answer_of(come_back(slow, first.id).read()) == slow.golden[i]
    places = [k for k in range(len(whole)) if whole[k][0]]
    for k in places[:: max(1, len(places) // 12)] + places[-3:]:
        rest = come_back(slow, first.id, whole[k][0], "Last-Event-ID" if k % 2 else "starting_after").read()
        assert answer_of(whole[: k + 1] + rest) == slow.golden[i], whole[k]


@needs_chat
def test_a_chat_is_told_again_from_every_event(slow):
    first = post(slow, CHAT, "/v1/chat/completions")
    whole = first.read()
    golden = chat_of(whole)
    assert golden["roles"] == 1 and len(golden["usage"]) == 1 and golden["finish"] == ["length"] and len(golden["logprobs"]) == 80
    for k in range(len(whole)):
        if whole[k][0] and (k < 3 or k % 9 == 0 or k > len(whole) - 5):
            assert chat_of(whole[: k + 1] + come_back(slow, first.id, whole[k][0]).read()) == golden, whole[k]


@pytest.mark.parametrize("n", [1, 20])
def test_a_client_takes_a_running_answer_over(slow, n):
    """As after a connection that broke without a word: the one before is told, and the rest comes here."""
    first = post(slow, {**MIXED[1], "max_tokens": 200}, Idempotency_Key=uuid.uuid4().hex)
    got = list(first.read(n))
    second = come_back(slow, first.id, got[-1][0])
    rest = second.read()
    whole = answer_of(post(slow, {**MIXED[1], "max_tokens": 200}).read())
    assert answer_of(got + rest) == whole
    assert "another connection took this request over" in first.read()[-1][1]


def test_an_answer_with_a_key_goes_on_without_its_client(slow):
    body = {**SOME, "max_tokens": 120}
    key = uuid.uuid4().hex
    whole = answer_of(post(slow, body).read())
    first = post(slow, body, Idempotency_Key=key)
    got = list(first.read(3))
    first.leave()
    wait_until("it ends by itself", lambda: slow.group()["n_open"] == 0, 20)
    assert answer_of(got + come_back(slow, first.id, got[-1][0]).read()) == whole
    again = post(slow, body, Idempotency_Key=key)
    assert again.id == first.id and again.r.getheader("Idempotent-Replayed") == "true"
    assert answer_of(again.read()) == whole
    third = post(slow, body, Idempotency_Key=key, Last_Event_ID=got[-1][0])
    assert answer_of(got + third.read()) == whole


def test_an_answer_without_a_key_ends_with_its_client(slow):
    first = post(slow, {**SOME, "max_tokens": 400})
    got = list(first.read(2))
    first.leave()
    wait_until("it is cancelled", lambda: slow.group()["n_open"] == 0, 5)
    wait_until("it is forgotten", lambda: come_back(slow, first.id, got[-1][0]).status == 404, 5)


def test_a_repeated_request_is_the_same_request(slow):
    body = {"prompt": PROMPT, "max_tokens": 40, "temperature": 1.0, "n": 2, "best_of": 4, "logprobs": 1}  # no seed: it is drawn
    key = uuid.uuid4().hex
    ask = lambda b: Events(slow, "POST", "/v1/completions", b, {"Idempotency-Key": key})
    first = ask(body)
    answer = json.loads(first.r.read())
    again = ask(body)
    assert json.loads(again.r.read()) == answer and again.r.getheader("Idempotent-Replayed") == "true"
    other = ask({**body, "max_tokens": 41})
    error = json.loads(other.r.read())["error"]
    assert other.status == 409 and error["code"] == "idempotency_conflict", error
    assert without_time(json.loads(Events(slow, "POST", "/v1/completions", body).r.read())) != without_time(answer)


def test_a_key_without_sense_is_refused(slow):
    r = Events(slow, "POST", "/v1/completions", {"prompt": PROMPT}, {"Idempotency-Key": "k" * 257})
    assert r.status == 400 and json.loads(r.r.read())["error"]["param"] == "Idempotency-Key"


def test_an_id_of_no_event_is_refused_and_disturbs_nobody(slow):
    first = post(slow, SOME, Idempotency_Key=uuid.uuid4().hex)
    first.read(2)
    for after in ("x", "1.2", "f", "-f", "99999999999", "1.u.u", "3x"):
        r = come_back(slow, first.id, after)
        error = json.loads(r.r.read())["error"]
        assert r.status == 400 and "no id of an event of this request" in error["message"], error
    assert answer_of(first.read()) == slow.golden[0]


def test_more_than_there_is_ends_the_stream(slow):
    first = post(slow, SOME)
    first.read()
    assert data_of(come_back(slow, first.id, "1000000").read())[-1] == "[DONE]"


def test_unknown_requests_and_paths(slow):
    for path, code in (("/v1/requests/cmpl-none/stream", "request_not_found"), ("/v1/requests/cmpl-none", "not_found"),
                       ("/v1/requests//stream", "not_found")):
        r = slow.get(path)
        assert r.status == 404 and r.json()["error"]["code"] == code, (path, r.body)


def test_requests_belong_to_their_key(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("ann:secret-a\nben:secret-b\n")
    with Server("-n", 1, "--threads", 1, "--api-key-file", keys, key="secret-a") as s:
        s.wait_ready()
        first = post(s, SOME, Idempotency_Key="one")
        golden = answer_of(first.read())
        s.key = "secret-b"
        assert come_back(s, first.id).status == 404
        other = post(s, SOME, Idempotency_Key="one")
        assert other.id != first.id and other.r.getheader("Idempotent-Replayed") is None and answer_of(other.read()) == golden
        s.key = "secret-a"
        assert answer_of(come_back(s, first.id).read()) == golden
        raw = (s.dir / "state" / "tensord" / f"journal-{s.port}.db").read_bytes()
        assert b"secret" not in raw
        s.stop()


def test_no_journal_is_kept_where_none_is_wanted():
    with Server("-n", 1, "--threads", 1, "--no-journal") as s:
        s.wait_ready()
        first = post(s, SOME, Idempotency_Key="one")
        assert all(i is None for i, _ in first.read())
        r = come_back(s, first.id)
        assert r.status == 404 and json.loads(r.r.read())["error"]["code"] == "no_journal"
        assert not list(s.dir.rglob("*.db"))
        s.stop()


def test_ended_answers_are_forgotten_after_the_retention():
    with Server("-n", 1, "--threads", 1, "--journal-retention", 1) as s:
        s.wait_ready()
        first = post(s, SOME)
        first.read()
        assert come_back(s, first.id).status == 200
        wait_until("it is forgotten", lambda: come_back(s, first.id).status == 404, 10, 0.2)
        s.stop()


# ---- the coordinator is killed ----


def read_until_killed(server, streams, n):
    """Each stream has had n events; then the coordinator is killed, and all that came before is read."""
    with concurrent.futures.ThreadPoolExecutor(len(streams)) as pool:
        list(pool.map(lambda x: x.read(n), streams))
        server.kill()
        list(pool.map(lambda x: x.read(), streams))
    for x in streams:
        assert data_of(x.got)[-1] != "[DONE]", "it had ended before the kill"


@pytest.mark.parametrize("n", [1, 12])
def test_every_stream_goes_on_after_the_coordinator_was_killed(slow, tmp_path, n):
    with Restarted(tmp_path) as server:
        s = server.start()
        streams = [post(s, r) for r in MIXED]
        read_until_killed(server, streams, n)
        s = server.start()
        with concurrent.futures.ThreadPoolExecutor(len(MIXED)) as pool:
            rests = list(pool.map(lambda x: come_back(s, x.id, x.got[-1][0]).read(), streams))
        for request, x, rest, golden in zip(MIXED, streams, rests, slow.golden):
            assert answer_of(x.got + rest) == golden, request
        assert len(re.findall(r"request goes on id=", s.log())) == len(MIXED)
        wait_until("nothing is open", lambda: s.group()["n_open"] == 0, 10)
        for x, golden in zip(streams, slow.golden):  # and once more, from the beginning
            assert answer_of(come_back(s, x.id).read()) == golden
        s.stop()


@needs_chat
def test_a_chat_goes_on_after_two_kills_and_nobody_came_back_between(slow, tmp_path):
    with Restarted(tmp_path) as server:
        golden = chat_of(post(slow, {**CHAT, "max_tokens": 400}, "/v1/chat/completions").read())
        x = post(server.start(), {**CHAT, "max_tokens": 400}, "/v1/chat/completions")
        read_until_killed(server, [x], 30)
        s = server.start()
        wait_until("it goes on", lambda: s.group()["n_running"] == 1, 10)
        time.sleep(0.2)
        server.kill()
        s = server.start()
        assert chat_of(x.got + come_back(s, x.id, x.got[-1][0]).read()) == golden
        s.stop()


def test_a_whole_answer_is_had_by_asking_again(slow, tmp_path):
    body = {**MIXED[1], "stream": False, "prompt": [PROMPT, "A dog"], "max_tokens": 200}
    golden = slow.post("/v1/completions", body).json()
    ask = lambda s: Events(s, "POST", "/v1/completions", body, {"Idempotency-Key": "once"})
    with Restarted(tmp_path) as server, concurrent.futures.ThreadPoolExecutor(1) as pool:
        s = server.start()
        first = pool.submit(ask, s)
        wait_until("it runs", lambda: s.group()["n_running"] == 2, 10)
        time.sleep(0.1)
        server.kill()
        assert isinstance(first.exception(10), (OSError, http.client.HTTPException))
        s = server.start()
        again = ask(s)
        assert again.status == 200 and again.r.getheader("Idempotent-Replayed") == "true"
        assert without_time(json.loads(again.r.read())) == without_time(golden)
        s.stop()


def test_the_official_client_asks_again_and_has_its_answer(slow, tmp_path):
    """It repeats a POST whose connection broke; with an idempotency key of its caller's that is one request."""
    golden = slow.complete(PROMPT, max_tokens=300, temperature=0, ignore_eos=True)["text"]
    with Restarted(tmp_path) as server, concurrent.futures.ThreadPoolExecutor(1) as pool:
        s = server.start()
        with openai.OpenAI(base_url=s.url + "/v1", api_key="none", max_retries=8, timeout=60) as client:
            answer = pool.submit(lambda: client.completions.create(
                model=NAME, prompt=PROMPT, max_tokens=300, temperature=0, extra_body={"ignore_eos": True},
                extra_headers={"Idempotency-Key": "story"}))
            wait_until("it runs", lambda: s.group()["n_running"] == 1, 10)
            server.kill()
            s = server.start()
            assert answer.result(60).choices[0].text == golden
        assert "tensord_journal_repeated_total 1" in s.get("/metrics").body.decode() or s.group()["n_open"] == 0
        s.stop()


def test_what_a_stop_cuts_off_goes_on_after_the_next_start(slow, tmp_path):
    with Restarted(tmp_path, "--drain-timeout", 0.2) as server:
        whole = answer_of(post(slow, {**SOME, "max_tokens": 480}).read())
        s = server.start()
        x = post(s, {**SOME, "max_tokens": 480})
        x.read(5)
        s.p.send_signal(signal.SIGTERM)
        x.read()
        assert s.wait_exit(10) == 0
        assert "the server is stopping" in x.got[-1][1], x.got[-1]
        s = server.start()
        assert answer_of(x.got[:-1] + come_back(s, x.id, x.got[-2][0]).read()) == whole
        s.stop()


def test_requests_of_another_model_end_with_an_error(tmp_path):
    other = tmp_path / "other.gguf"
    assert tensord("quantize", MODEL, other, "--type", "q8_0").returncode == 0
    with Restarted(tmp_path) as server:
        x = post(server.start(), {**SOME, "max_tokens": 400})
        read_until_killed(server, [x], 3)
        server.model = other
        s = server.start()
        assert "request cannot go on" in s.log() and s.group()["n_open"] == 0
        r = come_back(s, x.id)
        assert r.status == 503 and "is of another model" in json.loads(r.r.read())["error"]["message"]
        s.stop()


def test_requests_of_a_removed_key_do_not_go_on(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("ann:secret-a\nben:secret-b\n")
    with Restarted(tmp_path, "--api-key-file", keys, key="secret-a") as server:
        x = post(server.start(), {**SOME, "max_tokens": 400})
        read_until_killed(server, [x], 3)
        keys.write_text("ben:secret-b\n")
        server.key = "secret-b"
        s = server.start()
        assert "request of a key that was removed is dropped" in s.log() and s.group()["n_open"] == 0
        assert come_back(s, x.id).status == 404
        s.stop()


def test_a_new_key_under_the_old_name_has_the_old_requests(slow, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("ann:secret-a\n")
    with Restarted(tmp_path, "--api-key-file", keys, key="secret-a") as server:
        x = post(server.start(), MIXED[0])
        read_until_killed(server, [x], 3)
        keys.write_text("ben:secret-b\nann:secret-c\n")
        server.key = "secret-c"
        s = server.start()
        assert answer_of(x.got + come_back(s, x.id, x.got[-1][0]).read()) == slow.golden[0]
        s.stop()


# ---- gRPC ----


GENERATE = [
    {"sampling": {"temperature": 0.9, "n_logprobs": 2}},  # the server draws the seed
    {"sampling": {"temperature": 0.8, "seed": 5}, "n": 3},
    {"sampling": {"temperature": 1.0, "seed": 6}, "n": 2, "best_of": 4},
    {"sampling": {"temperature": 0.0}, "prompt_logprobs": 2, "echo_prompt_ids": True, "keep_special_tokens": True},
]


class Generation:
    """What a Generate told, over all calls that it took: tokens by choice and index, each once."""

    def __init__(self, rpc):
        self.rpc, self.id, self.choices, self.prompt, self.prompt_ids, self.usage = rpc, "", {}, [], [], None

    def request(self, fields):
        fields = {"model": NAME, "text": PROMPT.encode(), "max_tokens": 120, "ignore_eos": True, **fields}
        return self.rpc.message("GenerateRequest", **{**fields, "sampling": self.rpc.message("Sampling", **fields["sampling"])})

    def read(self, call, n=None):
        """n events, or all. False: the call broke."""
        try:
            for i, e in enumerate(call, 1):
                self.take(e)
                if i == n:
                    return True
        except grpc.RpcError:
            return False
        return True

    def take(self, e):
        self.id = self.id or e.id
        self.prompt_ids += e.prompt_ids
        if e.prompt_logprobs:
            self.prompt += [(p.position, p.id, p.logprob) for p in e.prompt_logprobs]
            return
        assert self.usage is None
        tokens = self.choices.setdefault(e.choice, [])
        if e.index == len(tokens) - 1:  # the last one of a choice comes again
            assert tokens.pop()[-1] == e.finish_reason != 0
        assert e.index == len(tokens), (e.choice, e.index, len(tokens))
        tokens.append((e.token_id, e.text, e.logprob, [(t.id, t.logprob) for t in e.top_logprobs], e.finish_reason))
        if e.HasField("usage"):
            self.usage = (e.usage.prompt_tokens, e.usage.completion_tokens, e.usage.seed)

    def n_known(self):
        return [len(self.choices.get(c, [])) for c in range(max(self.choices, default=-1) + 1)]

    def resume(self, channel):
        return self.rpc.call(channel, "Inference/Resume", self.rpc.message("ResumeRequest", id=self.id, n_known=self.n_known()), timeout=60)

    def told(self):
        return self.choices, self.prompt, self.prompt_ids, self.usage


def whole_of(rpc, channel, fields):
    g = Generation(rpc)
    assert g.read(rpc.call(channel, "Inference/Generate", g.request(fields), timeout=60))
    return g


def test_calls_go_on_after_the_coordinator_was_killed(slow, rpc, tmp_path):
    with Restarted(tmp_path) as server:
        s = server.start()
        with channel_to(s) as channel:
            all_of = [Generation(rpc) for _ in GENERATE]
            calls = [rpc.call(channel, "Inference/Generate", g.request(f), timeout=60) for g, f in zip(all_of, GENERATE)]
            for g, c, f in zip(all_of, calls, GENERATE):
                assert "best_of" in f or g.read(c, 12)
            wait_until("all run", lambda: s.group()["n_open"] == 9, 5)
            server.kill()
            assert not any([g.read(c) for g, c in zip(all_of, calls)])
        s = server.start()
        with channel_to(s) as channel, channel_to(slow) as quiet:
            for g, f in zip(all_of, GENERATE):
                if not g.id:  # told with the first event, which for the best of several comes at the end
                    assert "best_of" in f
                    continue
                assert g.read(g.resume(channel))
                seeded = {**f, "sampling": {**f["sampling"], "seed": g.usage[2]}}
                assert g.told() == whole_of(rpc, quiet, seeded).told(), f
        wait_until("nothing is open", lambda: s.group()["n_open"] == 0, 20)
        s.stop()


@pytest.mark.parametrize("i", range(len(GENERATE)))
def test_a_call_is_told_again_from_every_event(slow, rpc, i):
    with channel_to(slow) as channel:
        request = {**GENERATE[i], "max_tokens": 20}
        first = Generation(rpc)
        events = list(rpc.call(channel, "Inference/Generate", first.request(request), timeout=60))
        for e in events:
            first.take(e)
        for k in range(0, len(events), 3):
            g = Generation(rpc)
            for e in events[:k]:
                g.take(e)
            if not g.n_known():  # nothing of a token came: then all comes again
                g = Generation(rpc)
            g.id = first.id
            assert g.read(g.resume(channel))
            assert g.told() == first.told(), k


def test_a_call_with_a_key_is_one_call(slow, rpc):
    with channel_to(slow) as channel:
        key = uuid.uuid4().bytes
        fields = {**GENERATE[0], "idempotency_key": key, "max_tokens": 60}
        g = Generation(rpc)
        call = rpc.call(channel, "Inference/Generate", g.request(fields), timeout=60)
        assert g.read(call, 3)
        call.cancel()
        again = whole_of(rpc, channel, fields)
        assert again.id == g.id and again.choices[0][:3] == g.choices[0]
        wait_until("nothing is open", lambda: slow.group()["n_open"] == 0, 5)
        assert whole_of(rpc, channel, fields).told() == again.told()
        other = Generation(rpc)
        call = rpc.call(channel, "Inference/Generate", other.request({**fields, "max_tokens": 61}), timeout=60)
        with pytest.raises(grpc.RpcError) as e:
            next(iter(call))
        assert e.value.code() == grpc.StatusCode.INVALID_ARGUMENT and "idempotency_key was used before" in e.value.details()


def test_a_repeated_request_is_not_a_new_one_to_a_draining_server(rpc):
    fields = {**GENERATE[0], "max_tokens": 200}
    with Server("-n", 1, *SLOW) as s, channel_to(s) as channel:
        s.wait_ready()
        golden = answer_of(post(s, SOME).read())
        first = post(s, SOME, Idempotency_Key="one")
        got = list(first.read(2))
        g = Generation(rpc)
        call = rpc.call(channel, "Inference/Generate", g.request({**fields, "idempotency_key": b"two"}), timeout=60)
        assert g.read(call, 3)
        assert s.post("/drain", {"timeout": 60}).status == 200
        for key in ({}, {"Idempotency_Key": "three"}):
            assert post(s, SOME, **key).status == 503
        again = post(s, SOME, Idempotency_Key="one", Last_Event_ID=got[-1][0])
        assert again.r.getheader("Idempotent-Replayed") == "true" and answer_of(got + again.read()) == golden
        for key in ({}, {"idempotency_key": b"four"}):
            with pytest.raises(grpc.RpcError) as e:
                list(rpc.call(channel, "Inference/Generate", g.request({**fields, **key}), timeout=60))
            assert e.value.code() == grpc.StatusCode.UNAVAILABLE
        again = whole_of(rpc, channel, {**fields, "idempotency_key": b"two"})
        assert again.id == g.id and again.choices[0][:3] == g.choices[0] and len(again.choices[0]) == 200


def test_a_call_is_taken_over(slow, rpc):
    with channel_to(slow) as channel:
        fields = {**GENERATE[1], "max_tokens": 150, "idempotency_key": uuid.uuid4().bytes}
        g = Generation(rpc)
        call = rpc.call(channel, "Inference/Generate", g.request(fields), timeout=60)
        assert g.read(call, 10)
        assert g.read(g.resume(channel))
        assert g.told() == whole_of(rpc, channel, {k: v for k, v in fields.items() if k != "idempotency_key"}).told()
        with pytest.raises(grpc.RpcError) as e:
            list(call)
        assert e.value.code() == grpc.StatusCode.CANCELLED and "took this request over" in e.value.details()


def test_calls_that_are_not_there(slow, rpc):
    with channel_to(slow) as channel:
        first = post(slow, SOME)
        first.read()
        for request_id, code in ((first.id, "NOT_FOUND"), ("gen-none", "NOT_FOUND"), ("", "NOT_FOUND")):
            with pytest.raises(grpc.RpcError) as e:
                list(rpc.call(channel, "Inference/Resume", rpc.message("ResumeRequest", id=request_id), timeout=10))
            assert e.value.code().name == code, (request_id, e.value)
        g = Generation(rpc)
        call = rpc.call(channel, "Inference/Generate", g.request({**GENERATE[0], "max_tokens": 400}), timeout=60)
        assert g.read(call, 2)
        call.cancel()
        wait_until("it is cancelled", lambda: slow.group()["n_open"] == 0, 5)
        with pytest.raises(grpc.RpcError) as e:
            list(g.resume(channel))
        assert e.value.code() == grpc.StatusCode.NOT_FOUND


# ---- the disk ----


def test_a_damaged_tail_costs_nothing(slow, tmp_path):
    """The end of the log is garbage, as after a loss of power: what it held is computed again."""
    with Restarted(tmp_path) as server:
        s = server.start()
        streams = [post(s, r) for r in MIXED[:4]]
        read_until_killed(server, streams, 12)
        log = tmp_path / "journal.db-wal"
        n = log.stat().st_size
        with open(log, "r+b") as f:
            f.seek(n - min(4096, n // 4))
            f.write(os.urandom(2048))
        s = server.start()
        for x, golden in zip(streams, slow.golden):
            assert answer_of(x.got + come_back(s, x.id, x.got[-1][0]).read()) == golden
        s.stop()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    p = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True)
    if p.returncode:
        pytest.skip(f"root: nothing can be mounted here: {p.stderr.decode()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def metric(s, name):
    return float(re.search(rf"^{name} (\S+)$", s.get("/metrics").body.decode(), re.M)[1])


def test_a_full_disk_costs_the_journal_and_no_request(slow, small_disk):
    with Server("-n", 2, *SLOW, "--journal", small_disk / "journal.db") as s:
        s.wait_ready()
        assert metric(s, "tensord_journal_up") == 1
        filler = small_disk / "filler"
        with contextlib.suppress(OSError), open(filler, "wb", 0) as f:
            while True:
                f.write(b"x" * 4096)
        for r, golden in zip(MIXED, slow.golden):
            x = post(s, r)
            assert answer_of(x.read()) == golden
        assert metric(s, "tensord_journal_up") == 0 and "journal down" in s.log()
        assert x.got[0][0] is None and come_back(s, x.id).status in (404, 503)
        filler.unlink()
        wait_until("it is back", lambda: metric(s, "tensord_journal_up") == 1, 15)
        x = post(s, MIXED[0])
        assert answer_of(x.read()) == slow.golden[0] == answer_of(come_back(s, x.id).read())
        s.stop()
