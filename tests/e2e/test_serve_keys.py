"""Who may call what: every route and method without a key, names of keys, reload, operators; and what no log may hold."""

import re
import signal
import subprocess

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from serving import MODEL, NAME, Process, Server, TENSORD, channel_to, free_port, needs_model, tensord, wait_until

pytest_plugins = ["serving"]
pytestmark = needs_model
PROMPT = "Once upon a time"
COMPLETIONS = "/v1/completions"
SLOW = ("-n", 1, "--cpu-isa", "ref", "--threads", 1)
LONG = {"prompt": PROMPT, "max_tokens": 100, "ignore_eos": True, "temperature": 0, "stream": True}
CODE = grpc.StatusCode

# What everybody may call. Whoever adds a line here says why.
OPEN_ROUTES = {
    ("GET", "/"),  # name and version
    ("GET", "/healthz"),  # probes of whoever runs the process
    ("GET", "/readyz"),
}
OPEN_METHODS = {"/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"}  # probes as well
OPERATORS = {f"/tensord.v1.Cluster/{m}" for m in ("Plan", "LoadModel", "UnloadModel", "Drain", "CancelDrain", "Replace")}
WORKERS = {"/tensord.worker.v1.Worker/Attach"}  # the cluster's key


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    (folder / "keys").write_text("# clients\nalice:sk-alice-1\n\nbob:sk-bob\nsk-plain\n")
    (folder / "admin").write_text("root:sk-root\n")
    return folder


@pytest.fixture(scope="module")
def keyed(files):
    with Server("-n", 1, "--threads", 1, "--log-level", "debug", "--api-key-file", files / "keys", "--admin-key-file", files / "admin",
                key="sk-alice-1") as s:
        s.wait_ready()
        yield s
        s.stop()


def status_with(server, key, path="/v1/models"):
    before, server.key = server.key, key
    try:
        return server.get(path).status
    finally:
        server.key = before


def reload(server, words):
    n = len(server.log())
    server.p.send_signal(signal.SIGHUP)
    wait_until(lambda: f"'{words}' in {server.log()[n:]}", lambda: re.search(words, server.log()[n:]), 15)
    return server.log()[n:]


def code_of(run):
    with pytest.raises(grpc.RpcError) as e:
        run()
    return e.value.code()


def raw_call(channel, path, key=None, message=b""):
    """Any method as a stream of bytes in both directions: its code."""
    call = channel.stream_stream(path, lambda b: b, lambda b: b)
    metadata = [("authorization", f"Bearer {key}")] if key else None
    return code_of(lambda: list(call(iter([message]), timeout=10, metadata=metadata)))


# ---- every route and method ----


def test_every_route_refuses_without_a_key(keyed):
    """The list is the program's own, from its table of routes."""
    routes = set(re.findall(r"debug route method=(\S+) path=(\S+) for=(\S+)", keyed.log()))
    asked = {(m, p) for m, p, _ in routes}
    assert len(asked) >= 9 and {("POST", COMPLETIONS), ("GET", "/metrics"), ("GET", "/status")} | OPEN_ROUTES <= asked
    for method, path in sorted(asked):
        for key in (None, "wrong", "sk-alice-", "sk-alice-11", "alice:sk-alice-1", "alice"):
            keyed.key = key
            r = keyed.request(method, path.replace("*", NAME), b"{}" if method == "POST" else None)
            expected = (method, path) in OPEN_ROUTES
            assert (r.status == 401) != expected, (method, path, key, r.status)
        keyed.key = "sk-alice-1"
    assert {(m, p) for m, p, who in routes if who == "everybody"} == OPEN_ROUTES


def test_every_method_refuses_without_a_key(keyed):
    """The list is the program's own, from its table of methods; reflection must tell of the same public ones."""
    listed = dict(re.findall(r"debug rpc path=(\S+) for=(\S+)", keyed.log()))
    with channel_to(keyed) as channel:
        for path in sorted(listed):
            if path in OPEN_METHODS:
                continue
            for key in (None, "wrong", "sk-alice-11"):
                assert raw_call(channel, path, key) == CODE.UNAUTHENTICATED, (path, key)
    assert {p for p, who in listed.items() if who == "everybody"} == OPEN_METHODS
    assert {p for p, who in listed.items() if who == "operators"} == OPERATORS
    public = described_methods(keyed)
    assert public == set(listed) - WORKERS and len(public) >= 12, public ^ set(listed)


def described_methods(server):
    """Of the public services, by reflection with the server's key."""

    class WithKey(grpc.StreamStreamClientInterceptor):
        def intercept_stream_stream(self, go_on, details, requests):
            return go_on(details._replace(metadata=[("authorization", f"Bearer {server.key}")]), requests)

    with channel_to(server) as channel:
        database = ProtoReflectionDescriptorDatabase(grpc.intercept_channel(channel, WithKey()))
        found = set()
        for service in database.get_services():
            if service.startswith("tensord.worker"):
                continue
            file = descriptor_pb2.FileDescriptorProto.FromString(database.FindFileContainingSymbol(service).SerializeToString())
            for s in file.service:
                if f"{file.package}.{s.name}" == service:
                    found |= {f"/{service}/{m.name}" for m in s.method}
        return found


# ---- operators ----


def test_operators_calls_are_not_for_clients(keyed, rpc):
    assert status_with(keyed, "sk-root") == 200, "an operator may what a client may"
    with channel_to(keyed) as channel:
        for path in OPERATORS:
            assert raw_call(channel, path, "sk-alice-1") == CODE.PERMISSION_DENIED, path
        secret = {"model_path": "/etc/shadow"}
        for method in ("Cluster/LoadModel", "Cluster/Plan"):
            with pytest.raises(grpc.RpcError) as e:
                rpc.call(channel, method, key="sk-bob", **secret)
            assert e.value.code() == CODE.PERMISSION_DENIED and "--admin-key-file" in e.value.details()
            assert "shadow" not in e.value.details()
        assert rpc.call(channel, "Cluster/Status", key="sk-alice-1").ready
        assert b"rank" in rpc.call(channel, "Cluster/Plan", key="sk-root", n_ranks=2).text


def test_without_an_operators_key_nobody_operates_a_server_with_keys(files, rpc):
    with Server("-n", 1, "--threads", 1, "--api-key-file", files / "keys", key="sk-alice-1") as s:
        s.wait_ready()
        with channel_to(s) as channel:
            for key in ("sk-alice-1", "sk-root"):
                code = code_of(lambda: rpc.call(channel, "Cluster/UnloadModel", key=key))
                assert code == (CODE.PERMISSION_DENIED if key == "sk-alice-1" else CODE.UNAUTHENTICATED)
        assert s.is_ready()
        s.stop()


def test_an_open_server_is_operated_from_its_own_host_only(rpc):
    """--insecure opens the API to the network, not the operator's calls. The other address is one of this host."""
    words = subprocess.run(["hostname", "-I"], capture_output=True, text=True).stdout.split()
    addresses = [a for a in words if ":" not in a]
    if not addresses:
        pytest.skip("this host has a loopback address only; root could give it another one")
    with Server("-n", 1, "--threads", 1, "--host", "0.0.0.0", "--insecure", "--control-host", "127.0.0.1") as s:
        s.wait_ready()
        with grpc.insecure_channel(f"{addresses[0]}:{s.port}", [("grpc.enable_http_proxy", 0)]) as channel:
            assert rpc.call(channel, "Cluster/Status").ready
            assert code_of(lambda: rpc.call(channel, "Cluster/Plan", n_ranks=1)) == CODE.PERMISSION_DENIED
        with channel_to(s) as channel:
            assert b"rank" in rpc.call(channel, "Cluster/Plan", n_ranks=1).text
        s.stop()


# ---- names, reload ----


def test_keys_are_known_by_name(keyed):
    keyed.complete(PROMPT, max_tokens=2)
    status_with(keyed, "sk-plain")
    text = keyed.get("/metrics").body.decode()
    count = {k: float(v) for k, v in re.findall(r'tensord_key_requests_total\{key="([^"]+)"\} (\S+)', text)}
    assert set(count) >= {"alice", "bob", "key-3", "root"} and count["alice"] > 0 and count["key-3"] > 0
    assert "path=/v1/completions key=alice" in keyed.log()
    for secret in ("sk-alice-1", "sk-bob", "sk-plain", "sk-root"):
        assert secret not in text + keyed.log() + keyed.out()


def test_a_removed_key_ends_for_new_requests_and_open_ones_go_on(tmp_path):
    """The limits of a key stay with its name when the key is another one."""
    keys = tmp_path / "keys"
    keys.write_text("alice:sk-alice-1\nbob:sk-bob\nsk-plain\n")
    with Server(*SLOW, "--max-num-seqs", 4, "--api-key-file", keys, "--max-concurrency-per-key", 2, key="sk-alice-1") as s:
        s.wait_ready()
        mine = [s.stream(COMPLETIONS, LONG) for _ in range(2)]
        s.key = "sk-bob"
        others = s.stream(COMPLETIONS, LONG)
        keys.write_text("# bob has gone, alice has another key\nsk-plain\nalice:sk-alice-2\ncarol:sk-carol\n")
        assert "clients=3" in reload(s, "keys reloaded")
        assert [status_with(s, k) for k in ("sk-alice-1", "sk-bob", "sk-alice-2", "sk-plain", "sk-carol")] == [401, 401, 200, 200, 200]
        s.key = "sk-alice-2"
        r = s.post(COMPLETIONS, {"prompt": PROMPT, "max_tokens": 1})
        assert r.status == 429 and "limit is 2" in r.json()["error"]["message"], (r.status, r.body)
        s.key = "sk-carol"
        assert s.post(COMPLETIONS, {"prompt": PROMPT, "max_tokens": 1}).status == 200, "bob's open request was counted as carol's"
        assert all(list(x)[-1] == "[DONE]" for x in [*mine, others])
        s.key = "sk-alice-2"
        assert s.post(COMPLETIONS, {"prompt": PROMPT, "max_tokens": 1}).status == 200
        for wrong, words in (("alice:x\nalice:y\n", "line 2.*'alice' has two keys"), ("a b:x\n", "line 1.*no name"), ("", "holds no key")):
            keys.write_text(wrong)
            log = reload(s, "keys not reloaded")
            assert re.search(words, log), log
            assert status_with(s, "sk-alice-2") == 200, "a wrong file has changed something"
        keys.unlink()
        assert str(keys) in reload(s, "keys not reloaded") and status_with(s, "sk-alice-2") == 200
        s.stop()


def test_clients_read_named_keys_too(keyed, tmp_path):
    p = tensord("status", "--url", keyed.url, "--api-key-file", tmp_path / "keys")
    assert p.returncode != 0
    (tmp_path / "keys").write_text("bob:sk-bob\n")
    p = tensord("status", "--url", keyed.url, "--api-key-file", tmp_path / "keys")
    assert p.returncode == 0 and b"state       ready" in p.stdout, p.stderr


@pytest.mark.parametrize("text, words", [
    ("alice:sk-one\nbob:sk-one\n", "line 2"), ("key-1:sk-one\n", "line 1"), ("a b\n", "line 1"), ("x" * 65 + ":sk-one\n", "line 1"),
    ("alice:" + "x" * 1025 + "\n", "line 1"), ("# none\n", "no key"),
])
def test_a_wrong_key_file_is_refused_with_its_line_and_without_its_text(tmp_path, text, words):
    (tmp_path / "keys").write_text(text)
    for option in ("--api-key-file", "--admin-key-file"):
        with Process([TENSORD, "serve", "--model", MODEL, "--port", free_port(), option, tmp_path / "keys"]) as p:
            assert p.wait_exit(10) in (1, 2), p.log()
            assert words in p.log() and option in p.log() and "sk-one" not in p.log() and "xxxx" not in p.log().replace("x" * 65, ""), p.log()


# ---- what no log may hold ----


def test_no_log_holds_a_prompt_an_answer_or_a_key(tmp_path, rpc):
    """At the highest level of detail, of every process, and whatever fails."""
    word, key, admin, cluster = "Zyxwvutsr", "sk-qponmlkj", "sk-ihgfedcb", "ck-asdfghjk"
    (tmp_path / "keys").write_text(f"alice:{key}\n")
    (tmp_path / "admin").write_text(f"{admin}\n")
    (tmp_path / "cluster").write_text(f"{cluster}\n")
    args = ["-n", 2, "--threads", 1, "--log-level", "debug", "--verbose", "--api-key-file", tmp_path / "keys", "--admin-key-file",
            tmp_path / "admin", "--cluster-key-file", tmp_path / "cluster"]
    with Server(*args, key=key, env={"TENSORD_LOG_LEVEL": "debug", "TENSORD_VERBOSE": "true"}) as s:  # the ranks' too
        s.wait_ready()
        answer = s.complete(f"{word} once upon a time there was a", max_tokens=40, temperature=0, stop=[f"{word}x"], user=word)["text"]
        words = [w for w in re.findall(r"\w+", answer) if len(w) > 4]
        assert len(words) > 3
        for body in ({"prompt": word, "temperature": word}, {"prompt": word * 20000}, {"prompt": [word], "logit_bias": {word: 1}},
                     {"model": NAME, "messages": [{"role": "user", "content": word}]}, {"prompt": word, "stop": [word] * 200}):
            for path in (COMPLETIONS, "/v1/chat/completions"):
                s.post(path, body)
        s.post(COMPLETIONS, f'{{"prompt": "{word}'.encode())
        status_with(s, f"{key}x")
        with channel_to(s) as channel:
            list(rpc.call(channel, "Inference/Generate", rpc.message("GenerateRequest", text=word.encode(), max_tokens=4), key=key))
            rpc.call(channel, "Inference/Tokenize", text=word.encode(), key=key)
            rpc.call(channel, "Cluster/Plan", n_ranks=1, key=admin)
            code_of(lambda: rpc.call(channel, "Inference/Tokenize", text=word.encode() + b"\xff", key=key))
        s.p.send_signal(signal.SIGHUP)
        s.wait_log("keys reloaded")
        ranks = s.ranks()
        lines = b" ".join(a.encode() for argv in s.processes().values() for a in argv)
        environment = b" ".join(open(f"/proc/{pid}/environ", "rb").read() for pid in s.processes())
        s.p.send_signal(signal.SIGTERM)
        assert s.wait_exit(15) == 0
        written = s.out() + s.log()
    assert len(ranks) == 2 and "debug" in written and "rank output" in written
    for secret in (word, key, admin, cluster):
        assert secret not in written and secret.lower() not in written.lower(), secret
        assert secret.encode() not in lines + environment, secret
    assert not any(re.search(rf"\b{a} {b}\b", written) for a, b in zip(words, words[1:])), "the answer is in a log"
