"""The gRPC side with grpcio: generation, the operator's calls, health, reflection, keys and TLS."""

import collections
import concurrent.futures
import re

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from serving import MODEL, NAME, STORIES, Server, channel_to, needs_chat, needs_model, wait_until

pytest_plugins = ["serving"]
pytestmark = needs_model
PROMPT = b"Once upon a time"
STOP, LENGTH = 1, 2
READY, SERVING, NOT_SERVING = 3, health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


def code_of(run):
    with pytest.raises(grpc.RpcError) as e:
        run()
    return e.value.code(), e.value.details()


def generate(rpc, channel, text=PROMPT, sampling=None, **fields):
    fields = {"max_tokens": 16, **fields}
    s = rpc.message("Sampling", **(sampling or {"temperature": 0}))
    if text is not None:
        fields["text"] = text
    return rpc.call(channel, "Inference/Generate", rpc.message("GenerateRequest", model=NAME, sampling=s, **fields))


# ---- Inference ----


def test_generate_streams_the_text_that_http_gives(server, rpc, channel):
    events = list(generate(rpc, channel, echo_prompt_ids=True))
    choice = server.complete(PROMPT.decode(), max_tokens=16, temperature=0)
    assert b"".join(e.text for e in events).decode() == choice["text"]
    last = events[-1]
    assert last.finish_reason == {"stop": STOP, "length": LENGTH}[choice["finish_reason"]]
    assert all(e.finish_reason == 0 for e in events[:-1])
    ids = [e.token_id for e in events if e.WhichOneof("has_token")]
    assert last.usage.completion_tokens == len(ids) and last.usage.prompt_tokens == len(events[0].prompt_ids) > 0
    assert last.usage.total_ns >= last.usage.first_token_ns > last.usage.queue_ns > 0
    again = rpc.message("TokenIds", ids=events[0].prompt_ids)
    assert [e.token_id for e in generate(rpc, channel, None, token_ids=again) if e.WhichOneof("has_token")] == ids


def test_generate_tells_the_seed_it_drew(rpc, channel):
    text = lambda events: b"".join(e.text for e in events)
    first = list(generate(rpc, channel, sampling={"temperature": 1.0}))
    seed = first[-1].usage.seed
    assert text(generate(rpc, channel, sampling={"temperature": 1.0, "seed": seed})) == text(first)


def test_generate_gives_logprobs(rpc, channel):
    events = [e for e in generate(rpc, channel, sampling={"temperature": 0, "n_logprobs": 2}) if e.WhichOneof("has_token")]
    for e in events:
        assert e.logprob <= 0 and len(e.top_logprobs) == 2
        assert e.top_logprobs[0].id == e.token_id and e.top_logprobs[0].logprob == pytest.approx(e.logprob)
        assert e.top_logprobs[0].logprob >= e.top_logprobs[1].logprob


SEEDED = {"temperature": 1.2, "seed": 77}


def choices_of(events):
    """The text of each choice; every choice must have its tokens in order and one end, behind which nothing comes."""
    texts, n_events, ended = collections.defaultdict(bytes), collections.Counter(), {}
    for e in events:
        if e.prompt_logprobs:
            continue
        assert e.choice not in ended and e.index == n_events[e.choice]
        n_events[e.choice] += 1
        texts[e.choice] += e.text
        if e.finish_reason:
            ended[e.choice] = {STOP: "stop", LENGTH: "length"}[e.finish_reason]
    assert sorted(texts) == sorted(ended) == list(range(len(texts)))
    return [{"text": texts[i].decode(), "finish_reason": ended[i]} for i in range(len(texts))]


def same_by_http(server, **fields):
    r = server.post("/v1/completions", {"model": NAME, "prompt": PROMPT.decode(), "max_tokens": 16, **SEEDED, **fields})
    assert r.status == 200, r.body
    return [{"text": c["text"], "finish_reason": c["finish_reason"]} for c in r.json()["choices"]], r.json()


@pytest.mark.parametrize("fields", [{"n": 1}, {"n": 4}, {"n": 2, "best_of": 6}, {"best_of": 3}, {"n": 3, "best_of": 3}])
def test_generate_gives_the_choices_that_http_gives(server, rpc, channel, fields):
    events = list(generate(rpc, channel, sampling=SEEDED, **fields))
    theirs, body = same_by_http(server, **fields)
    assert choices_of(events) == theirs and len(theirs) == fields.get("n", 1)
    usage = events[-1].usage
    assert [e.HasField("usage") for e in events] == [False] * (len(events) - 1) + [True]
    assert (usage.prompt_tokens, usage.completion_tokens) == (body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"])
    assert usage.seed == 77 and usage.total_ns >= usage.first_token_ns > 0
    if "best_of" in fields and fields["best_of"] > fields.get("n", 1):
        order = [e.choice for e in events]
        assert order == sorted(order)  # one after the other


def test_generate_mixes_the_tokens_of_its_choices(rpc, channel):
    order = [e.choice for e in generate(rpc, channel, sampling=SEEDED, n=3, max_tokens=100, ignore_eos=True)]
    assert len(order) == 300 and order != sorted(order)


@pytest.mark.parametrize("fields", [{}, {"n": 3}, {"n": 2, "best_of": 4}])
def test_generate_tells_the_prompt_that_http_tells(server, rpc, channel, fields):
    text = PROMPT + b" there was a dog that lived near the park and had a friend" * 2
    theirs, body = same_by_http(server, prompt=text.decode(), prompt_logprobs=3, **fields)
    events = list(generate(rpc, channel, text, SEEDED, prompt_logprobs=3, echo_prompt_ids=True, **fields))
    assert choices_of(events) == theirs
    is_prompt = [bool(e.prompt_logprobs) for e in events]
    assert is_prompt == sorted(is_prompt, reverse=True) and sum(is_prompt) > 1  # all before the first token
    assert not any(e.text or e.finish_reason or e.WhichOneof("has_token") for e in events if e.prompt_logprobs)
    told = [p for e in events for p in e.prompt_logprobs]
    assert [p.position for p in told] == list(range(len(told))) and [p.id for p in told] == list(events[0].prompt_ids)
    assert not told[0].WhichOneof("has_logprob") and not told[0].top_logprobs
    listed = body["choices"][0]["prompt_logprobs"]
    assert len(listed) == len(told) == events[-1].usage.prompt_tokens and all(c["prompt_logprobs"] == listed for c in body["choices"])
    for p, entry in zip(told[1:], listed[1:], strict=True):
        assert entry[str(p.id)]["rank"] == p.rank and entry[str(p.id)]["logprob"] == pytest.approx(p.logprob, abs=1e-6)
        assert {str(t.id) for t in p.top_logprobs} | {str(p.id)} == set(entry) and len(p.top_logprobs) == 3
        for rank, t in enumerate(p.top_logprobs, 1):
            assert entry[str(t.id)]["logprob"] == pytest.approx(t.logprob, abs=1e-6) and entry[str(t.id)]["rank"] == rank
    assert b"".join(p.text for p in told).decode().endswith("had a friend")


def test_generate_computes_the_prompt_once_for_all_choices(server, rpc, channel):
    """The first passes by the prefix cache; the others find the blocks that an earlier request left there."""
    text = b"The friend of the dog ran to the park and found a ball. " * 6
    list(generate(rpc, channel, text, SEEDED))
    before = server.group()["cached_tokens"]
    usage = list(generate(rpc, channel, text, SEEDED, n=4, prompt_logprobs=0))[-1].usage
    assert usage.cached_tokens == 0 and server.group()["cached_tokens"] - before >= 3 * (usage.prompt_tokens // 16 * 16 - 16) > 0


def test_all_choices_are_cancelled_with_their_call(server, rpc, channel):
    for fields in ({"n": 5}, {"n": 2, "best_of": 5, "prompt_logprobs": 0}):
        call = generate(rpc, channel, sampling=SEEDED, max_tokens=2000 if MODEL != STORIES else 480, ignore_eos=True, **fields)
        next(call)
        assert server.group()["n_open"] == 5
        call.cancel()
        wait_until("the sequences are freed", lambda: server.group()["n_open"] == server.group()["n_running"] == 0, 5)
    call = rpc.message("GenerateRequest", text=PROMPT, sampling=rpc.message("Sampling", **SEEDED), n=3, max_tokens=4000, ignore_eos=True)
    code, _ = code_of(lambda: list(rpc.call(channel, "Inference/Generate", call, timeout=0.2)))
    assert code == grpc.StatusCode.DEADLINE_EXCEEDED
    wait_until("the sequences are freed", lambda: server.group()["n_open"] == server.group()["n_running"] == 0, 5)


def test_generate_is_cancelled_by_its_client(server, rpc, channel):
    call = generate(rpc, channel, max_tokens=2000 if MODEL != STORIES else 480, ignore_eos=True)
    next(call)
    call.cancel()
    wait_until("the sequence is freed", lambda: server.group()["n_open"] == server.group()["n_running"] == 0, 5)


def test_many_calls_on_one_channel_do_not_mix(rpc, channel):
    prompts = [b"Once upon", b"The dog", b"A girl", b"In the park"]
    text = lambda p: b"".join(e.text for e in generate(rpc, channel, p, {"temperature": 0.8, "seed": len(p)}))
    alone = {p: text(p) for p in prompts}
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        assert list(pool.map(text, prompts * 3)) == [alone[p] for p in prompts * 3]


def test_generate_refuses_what_is_wrong(rpc, channel):
    S = grpc.StatusCode
    for fields, code, word in [
        ({"sampling": {"temperature": -1}}, S.INVALID_ARGUMENT, "temperature"),
        ({"text": b"\xff\xfe"}, S.INVALID_ARGUMENT, "UTF-8"),
        ({"text": None}, S.INVALID_ARGUMENT, "expected text"),
        ({"text": None, "token_ids": rpc.message("TokenIds", ids=[10**9])}, S.INVALID_ARGUMENT, "1000000000"),
        ({"text": b"once upon a time " * 3000}, None, "context"),
        ({"stop": [b""]}, S.INVALID_ARGUMENT, "stop"),
        ({"n": 0}, S.INVALID_ARGUMENT, "n is 0, expected 1 to 128"),
        ({"n": 129}, S.INVALID_ARGUMENT, "n is 129, expected 1 to 128"),
        ({"n": 3, "best_of": 2}, S.INVALID_ARGUMENT, "best_of is 2, expected n (3) to 128"),
        ({"best_of": 129}, S.INVALID_ARGUMENT, "best_of is 129, expected n (1) to 128"),
        ({"prompt_logprobs": 21}, S.INVALID_ARGUMENT, "prompt_logprobs is 21, expected 0 to 20"),
    ]:
        got = code_of(lambda: list(generate(rpc, channel, **fields)))
        assert got[0] in ([code] if code else [S.INVALID_ARGUMENT, S.OUT_OF_RANGE, S.RESOURCE_EXHAUSTED]), (fields.keys(), got)
        assert word.lower() in got[1].lower(), got
    other = rpc.message("GenerateRequest", model="other", text=b"x")
    code, details = code_of(lambda: list(rpc.call(channel, "Inference/Generate", other)))
    assert code == S.NOT_FOUND and "other" in details


@needs_chat
def test_a_chat_prompt_is_rendered(server, rpc, channel):
    messages = [rpc.message("ChatMessage", role=b"user", content=b"What is 2 plus 3?")]
    prompt = rpc.message("ChatPrompt", messages=messages)
    text = b"".join(e.text for e in generate(rpc, channel, None, chat=prompt)).decode()
    body = {"messages": [{"role": "user", "content": "What is 2 plus 3?"}], "temperature": 0, "max_tokens": 16}
    assert server.post("/v1/chat/completions", body).json()["choices"][0]["message"]["content"] == text


def test_tokenize_and_back(rpc, channel):
    there = rpc.call(channel, "Inference/Tokenize", model=NAME, text=PROMPT)
    assert len(there.ids) == len(there.pieces) > 0 and there.max_model_len > 0
    plain = rpc.call(channel, "Inference/Tokenize", text=PROMPT, no_special_tokens=True)
    assert list(there.ids)[-len(plain.ids):] == list(plain.ids)
    back = rpc.call(channel, "Inference/Tokenize", token_ids=rpc.message("TokenIds", ids=plain.ids))
    assert back.text.strip() == PROMPT
    code, details = code_of(lambda: rpc.call(channel, "Inference/Tokenize", text=b"\xc3"))
    assert code == grpc.StatusCode.INVALID_ARGUMENT and "UTF-8" in details


def test_model_info(rpc, channel):
    info = rpc.call(channel, "Inference/ModelInfo")
    assert info.model == NAME and info.n_layers > 0 and info.weight_bytes > 0 and len(info.model_hash) == 32
    assert info.n_heads * info.head_dim > 0 and info.n_vocab > 0 and 0 < info.max_model_len <= info.max_positions
    code, _ = code_of(lambda: rpc.call(channel, "Inference/ModelInfo", model="other"))
    assert code == grpc.StatusCode.NOT_FOUND


# ---- Cluster ----


def test_status_is_that_of_http(server, rpc, channel):
    status = rpc.call(channel, "Cluster/Status")
    group, seen = status.groups[0], server.group()
    assert status.ready and group.state == READY and group.model == NAME
    assert group.layout.tp == seen["layout"]["tp"] == 2 and group.model_hash == seen["model_hash"]
    assert {r.pid for r in group.ranks} == {r["pid"] for r in seen["ranks"]} == set(server.ranks())
    for mine, theirs in zip(group.ranks, seen["ranks"]):
        for name in ("rank", "host", "device", "memory_bytes", "weight_bytes", "kv_bytes", "stage", "tp_rank", "n_layers", "numerics_class"):
            assert getattr(mine, name) == theirs[name], name
        assert mine.state == 3 and theirs["state"] == "ready"


def test_plan_says_what_would_fit(rpc, channel):
    plan = rpc.call(channel, "Cluster/Plan", n_ranks=3)
    assert b"rank" in plan.text and plan.json.startswith(b"{")
    code, details = code_of(lambda: rpc.call(channel, "Cluster/Plan", n_ranks=2, pp=1000))
    assert code == grpc.StatusCode.INVALID_ARGUMENT, details
    code, details = code_of(lambda: rpc.call(channel, "Cluster/Plan", model_path="/nonexistent/model", n_ranks=2))
    assert code in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT) and "/nonexistent/model" in details


def test_plan_takes_every_type_of_keys_that_it_names(rpc, channel):
    code, details = code_of(lambda: rpc.call(channel, "Cluster/Plan", n_ranks=1, kv_dtype="fp4"))
    assert code == grpc.StatusCode.INVALID_ARGUMENT and "kv_dtype is 'fp4'" in details
    names = re.split(r", | or ", details.split("expected ")[1])
    assert "fp8" in names and len(names) == 7
    for name in names:
        assert rpc.call(channel, "Cluster/Plan", n_ranks=1, kv_dtype=name).json.startswith(b"{"), name


# ---- health and reflection ----


def test_health(channel):
    stub = health_pb2_grpc.HealthStub(channel)
    for service in ("", "tensord.v1.Inference"):
        assert stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10).status == SERVING
    assert code_of(lambda: stub.Check(health_pb2.HealthCheckRequest(service="no.such"), timeout=10))[0] == grpc.StatusCode.NOT_FOUND


def test_reflection_describes_the_services(rpc, channel):
    database = ProtoReflectionDescriptorDatabase(channel)
    services = set(database.get_services())
    assert {"tensord.v1.Inference", "tensord.v1.Cluster", "grpc.health.v1.Health"} <= services
    ours = {f.name: f for f in rpc.files.file}
    for name in ("proto/inference.proto", "proto/cluster.proto"):
        got = descriptor_pb2.FileDescriptorProto.FromString(database.FindFileByName(name).SerializeToString())
        assert [m.name for m in got.message_type] == [m.name for m in ours[name].message_type]
        assert got.service == ours[name].service
    assert database.FindFileContainingSymbol("tensord.v1.GenerateRequest").name == "proto/inference.proto"


def test_reflection_has_the_newer_name_too(channel):
    ask = channel.stream_stream(
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        reflection_pb2.ServerReflectionRequest.SerializeToString, reflection_pb2.ServerReflectionResponse.FromString,
    )
    answers = list(ask(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=10))
    assert "tensord.v1.Inference" in {s.name for s in answers[0].list_services_response.service}
    assert reflection_pb2_grpc.ServerReflectionStub(channel)


def test_an_unknown_method_is_unimplemented(channel):
    call = channel.unary_unary("/tensord.v1.Inference/Nothing", bytes, bytes)
    assert code_of(lambda: call(b"", timeout=10))[0] == grpc.StatusCode.UNIMPLEMENTED


# ---- keys and TLS ----


def test_tls_and_keys(secure, rpc):
    with channel_to(secure) as channel:
        for method in ("Inference/ModelInfo", "Inference/Tokenize", "Cluster/Status", "Cluster/Plan", "Cluster/Drain", "Cluster/UnloadModel"):
            for key in (None, "wrong"):
                assert code_of(lambda: rpc.call(channel, method, key=key))[0] == grpc.StatusCode.UNAUTHENTICATED, method
        assert code_of(lambda: list(rpc.call(channel, "Inference/Generate", key="wrong")))[0] == grpc.StatusCode.UNAUTHENTICATED
        assert rpc.call(channel, "Cluster/Status", key=secure.key).ready
        request = rpc.message("GenerateRequest", text=PROMPT, max_tokens=4)
        events = list(rpc.call(channel, "Inference/Generate", request, key=secure.key))
        assert events[-1].usage.completion_tokens > 0
        health = health_pb2_grpc.HealthStub(channel)
        assert health.Check(health_pb2.HealthCheckRequest(), timeout=10).status == SERVING
    with grpc.insecure_channel(secure.address) as channel:
        assert code_of(lambda: rpc.call(channel, "Cluster/Status", key=secure.key, timeout=5))[0] == grpc.StatusCode.UNAVAILABLE


# ---- load, unload, drain: on a server of their own ----


@pytest.fixture(scope="module")
def own():
    with Server("-n", 1, "--threads", 1) as s:
        s.wait_ready()
        yield s
        s.stop()


def test_unload_load_and_drain_are_seen_by_watchers(own, rpc):
    seen = collections.deque()
    with channel_to(own) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
        with concurrent.futures.ThreadPoolExecutor(2) as pool:

            def follow():
                try:
                    for answer in watch:
                        seen.append(answer.status)
                except grpc.RpcError:
                    pass

            pool.submit(follow)
            try:
                wait_until("first health", lambda: list(seen) == [SERVING], 10)
                before = own.complete(PROMPT.decode(), max_tokens=8, temperature=0)

                code, details = code_of(lambda: rpc.call(channel, "Cluster/LoadModel", model_path=str(MODEL)))
                assert code != grpc.StatusCode.OK and NAME in details
                rpc.call(channel, "Cluster/UnloadModel", model=NAME)
                wait_until("not serving", lambda: list(seen) == [SERVING, NOT_SERVING], 10)
                assert own.get("/readyz").status == 503 and own.get("/v1/models").json()["data"] == []
                refused = own.post("/v1/completions", {"prompt": "x"})
                assert refused.status == 503, refused.body

                code, details = code_of(lambda: rpc.call(channel, "Cluster/LoadModel", model_path="/nonexistent/model"))
                assert "/nonexistent/model" in details, (code, details)
                code, details = code_of(lambda: rpc.call(channel, "Cluster/LoadModel", model_path=str(MODEL), max_model_len=10**8))
                assert "100000000" in details, (code, details)
                code, details = code_of(lambda: rpc.call(channel, "Cluster/LoadModel", model_path=str(MODEL), tp=7))
                assert code == grpc.StatusCode.INVALID_ARGUMENT and "7" in details, (code, details)
                loaded = rpc.call(channel, "Cluster/LoadModel", model_path=str(MODEL), served_name="again", timeout=60)
                assert loaded.model == "again" and loaded.load_ns > 0
                wait_until("serving again", lambda: list(seen) == [SERVING, NOT_SERVING, SERVING], 10)
                r = own.post("/v1/completions", {"model": "again", "prompt": PROMPT.decode(), "max_tokens": 8, "temperature": 0})
                assert r.json()["choices"][0] == before

                running = own.stream("/v1/completions", {"prompt": PROMPT.decode(), "max_tokens": 200, "ignore_eos": True, "stream": True})
                events = iter(running)
                next(events)
                drained = pool.submit(rpc.call, channel, "Cluster/Drain", timeout_ns=20 * 10**9)
                rest = list(events)
                running.close()
                assert rest[-1] == "[DONE]", rest[-2:]
                assert drained.result(20).n_cancelled == 0
                assert list(seen)[3:] == [NOT_SERVING]
                assert own.get("/readyz").status == 503
                refused = own.post("/v1/completions", {"prompt": "x"})
                assert refused.status == 503 and b"draining" in refused.body, refused.body

                rpc.call(channel, "Cluster/UnloadModel")
                rpc.call(channel, "Cluster/LoadModel", model_path=str(MODEL), speculative_model=str(MODEL), timeout=60)
                own.wait_ready(10)
                assert own.complete(PROMPT.decode(), max_tokens=8, temperature=0) == before
                wait_until("drafts", lambda: own.group()["right_drafts"] == own.group()["draft_tokens"] > 0, 5)
            finally:
                watch.cancel()
