"""Bad input: each is named and refused, and the server goes on."""

import json
import random
import socket

import pytest
from serving import HAS_CHAT, MODEL, NAME, SHARED, Process, TENSORD, free_port, needs_model, needs_shared, tensord

pytest_plugins = ["serving"]
pytestmark = needs_model

CHAT = {"messages": [{"role": "user", "content": "hi"}]}
WRONG = [
    ({"prompt": 7}, "prompt"),
    ({"prompt": {"a": 1}}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [1, "a"]}, "prompt"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": [10**12]}, "prompt"),
    ({"prompt": [2**31 - 1]}, "2147483647"),
    ({}, "prompt"),
    ({"prompt": "a", "model": 3}, "model"),
    ({"prompt": "a", "max_tokens": "5"}, "max_tokens"),
    ({"prompt": "a", "max_tokens": 1.5}, "max_tokens"),
    ({"prompt": "a", "max_tokens": -3}, "max_tokens"),
    ({"prompt": "a", "max_tokens": 10**30}, "JSON|read|max_tokens"),
    ({"prompt": "a", "temperature": "hot"}, "temperature"),
    ({"prompt": "a", "temperature": 2.5}, "temperature"),
    ({"prompt": "a", "top_p": 0}, "top_p"),
    ({"prompt": "a", "top_k": -2}, "top_k"),
    ({"prompt": "a", "min_p": 1.5}, "min_p"),
    ({"prompt": "a", "repetition_penalty": 0}, "repetition_penalty"),
    ({"prompt": "a", "typical_p": 0}, "typical_p"),
    ({"prompt": "a", "mirostat": 3}, "mirostat"),
    ({"prompt": "a", "mirostat": 2, "xtc_probability": 1}, "xtc_probability"),
    ({"prompt": "a", "dry_base": 0.5}, "dry_base"),
    ({"prompt": "a", "dry_sequence_breakers": "x"}, "dry_sequence_breakers"),
    ({"prompt": "a", "frequency_penalty": 3}, "frequency_penalty"),
    ({"prompt": "a", "logprobs": -1}, "logprobs"),
    ({"prompt": "a", "seed": "x"}, "seed"),
    ({"prompt": "a", "stop": ["x"] * 50}, "stop"),
    ({"prompt": "a", "stop": [""]}, "stop"),
    ({"prompt": "a", "stop": 5}, "stop"),
    ({"prompt": "a", "stream": "yes"}, "stream"),
    ({"prompt": "a", "stream_options": {"include_usage": True}}, "stream_options"),
    ({"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias"),
    ({"prompt": "a", "logit_bias": {"1": 1000}}, "logit_bias"),
    ({"prompt": "a", "n": 0}, "n"),
    ({"prompt": "a", "n": 3, "best_of": 2}, "best_of"),
    ({"prompt": "a", "best_of": 2, "stream": True}, "best_of"),
    ({"prompt": "a", "echo": "yes"}, "echo"),
    ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
    ({"prompt": "a", "prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
    ({"prompt": "a", "priority": 2000}, "priority"),
    ({"prompt": "a", "timeout": 0}, "timeout"),
    ({"prompt": "a", "cache_salt": ""}, "cache_salt"),
]
WRONG_CHAT = [
    ({}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": [{"content": "hi"}]}, "role"),
    ({"messages": [{"role": "robot", "content": "hi"}]}, "role"),
    ({"messages": [{"role": "user"}]}, "content"),
    ({"messages": [{"role": "user", "content": 5}]}, "content"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "image_url"),
    ({**CHAT, "response_format": {"type": "json_object"}}, "response_format"),
    ({**CHAT, "tools": [{"type": "function"}]}, "tools"),
    ({**CHAT, "top_logprobs": 3}, "top_logprobs"),
    ({**CHAT, "logprobs": 3}, "logprobs"),
    ({**CHAT, "max_completion_tokens": 0}, "max_completion_tokens"),
]


def refused(server, schemas, path, body, words):
    r = server.post(path, body)
    assert r.status == 400, (body, r.status, r.body[:300])
    schemas.check("ErrorResponse", r.json())
    error = r.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert any(w in error["message"] or w in (error["param"] or "") for w in words.split("|")), (body, error)


@pytest.mark.parametrize("body, words", WRONG, ids=lambda v: None if isinstance(v, dict) else v)
def test_a_wrong_completion_is_refused_by_name(server, schemas, body, words):
    refused(server, schemas, "/v1/completions", body, words)


@pytest.mark.parametrize("body, words", WRONG_CHAT, ids=lambda v: None if isinstance(v, dict) else v)
def test_a_wrong_chat_is_refused_by_name(server, schemas, body, words):
    refused(server, schemas, "/v1/chat/completions", body, words)


@needs_shared
def test_every_text_of_the_json_suite_is_answered(server):
    """As bodies: what is no JSON is refused as such; what is, has no prompt. jansson refuses one text that is JSON."""
    files = sorted((SHARED / "data" / "json-parsing").rglob("*.json"))
    assert len(files) > 200
    known = {"y_object_escaped_null_in_key.json"}
    for file in files:
        r = server.post("/v1/completions", file.read_bytes())
        assert r.status == 400, (file.name, r.status)
        unreadable = "cannot be read" in r.json()["error"]["message"]
        if file.name.startswith("n_"):
            assert unreadable, (file.name, r.body)
        elif file.name.startswith("y_") and file.name not in known:
            assert not unreadable, (file.name, r.body)


def test_a_prompt_longer_than_the_context_is_refused(server, schemas):
    refused(server, schemas, "/v1/completions", {"prompt": "once upon a time " * 3000}, "context")
    if HAS_CHAT:
        refused(server, schemas, "/v1/chat/completions", {"messages": [{"role": "user", "content": "word " * 5000}]}, "context")


def test_nested_and_wide_bodies_do_not_hurt(server):
    deep = b'{"prompt":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    assert server.post("/v1/completions", deep).status == 400
    wide = b'{"prompt":"a","x":[' + b"{}," * 3_000_000 + b"{}]}"
    assert server.post("/v1/completions", wide).status in (400, 413)
    assert server.is_ready()


def raw(server, data, close=False):
    with socket.create_connection(("127.0.0.1", server.port), timeout=15) as s:
        s.sendall(data)
        if close:
            s.shutdown(socket.SHUT_WR)
        got = b""
        while part := s.recv(65536):
            got += part
        return got


def test_what_is_not_http_is_answered_or_closed(server):
    assert raw(server, b"NONSENSE\r\n\r\n").startswith(b"HTTP/1.1 400")
    assert raw(server, b"GET / HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 400"), "no Host"
    smuggled = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    assert raw(server, smuggled).startswith(b"HTTP/1.1 400")
    assert raw(server, b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n").startswith((b"HTTP/1.1 431", b"HTTP/1.1 414"))
    seed = random.randrange(1 << 32)
    print("seed", seed)
    source = random.Random(seed)
    for _ in range(40):
        raw(server, source.randbytes(source.randrange(1, 400)), close=True)
        raw(server, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + source.randbytes(source.randrange(1, 200)), close=True)
    assert server.is_ready()


# ---- what is wrong before anything is served ----


def fails(*args, status=1, timeout=30, env=None):
    with Process([TENSORD, "serve", *args], env=env) as p:
        got = p.wait_exit(timeout)
        assert got == status, (got, p.log())
        assert not p.processes(), "something is left running"
        return p.log()


def test_a_model_that_is_not_there_is_named():
    assert "/nonexistent/model" in fails("--model", "/nonexistent/model", "--port", free_port())


def damaged(tmp_path, change):
    for file in MODEL.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    change(tmp_path)
    return tmp_path


def test_a_truncated_checkpoint_is_named(tmp_path):
    def cut(folder):
        weights = next(folder.glob("*.safetensors"))
        weights.write_bytes(weights.read_bytes()[:-1000])

    log = fails("--model", damaged(tmp_path, cut), "--port", free_port())
    assert ".safetensors" in log or "tensor" in log, log


def test_an_unknown_architecture_is_named(tmp_path):
    def rename(folder):
        config = json.loads((folder / "config.json").read_text())
        config["architectures"] = ["GiraffeForCausalLM"]
        config["model_type"] = "giraffe"
        (folder / "config.json").write_text(json.dumps(config))

    assert "giraffe" in fails("--model", damaged(tmp_path, rename), "--port", free_port()).lower()


def test_a_context_that_does_not_fit_is_refused():
    log = fails("--model", MODEL, "--port", free_port(), "-n", 1, "--max-model-len", 10_000_000, timeout=60)
    assert "10000000" in log, log


def test_too_little_memory_is_told():
    log = fails("--model", MODEL, "--port", free_port(), "-n", 1, "--memory-bytes", "200KiB", timeout=60)
    assert "memory" in log or "fit" in log, log


def test_a_layout_that_is_none_is_refused():
    p = tensord("serve", "--model", MODEL, "--port", free_port(), "-n", 3, "-tp", 2)
    assert p.returncode in (1, 2) and b"3" in p.stderr, p.stderr


def test_a_port_in_use_is_named(server):
    log = fails("--model", MODEL, "--port", server.port, "-n", 1)
    assert str(server.port) in log and "in use" in log, log


def test_mpirun_that_is_missing_is_told(tmp_path):
    log = fails("--model", MODEL, "--port", free_port(), "-n", 2, env={"PATH": str(tmp_path)})
    assert "mpirun" in log, log


def test_a_wide_bind_without_a_key_is_refused():
    p = tensord("serve", "--model", MODEL, "--host", "0.0.0.0", "--port", free_port())
    assert p.returncode != 0 and b"api-key" in p.stderr, p.stderr


def test_a_key_that_is_half_given_is_refused(certificate):
    p = tensord("serve", "--model", MODEL, "--port", free_port(), "--ssl-certfile", certificate[0])
    assert p.returncode != 0 and b"ssl-keyfile" in p.stderr, p.stderr
    p = tensord("serve", "--model", MODEL, "--port", free_port(), "--ssl-certfile", certificate[1], "--ssl-keyfile", certificate[0])
    assert p.returncode != 0 and str(certificate[0]).encode() in p.stderr or str(certificate[1]).encode() in p.stderr, p.stderr


def test_the_server_still_answers(server):
    assert server.complete("Once", max_tokens=4, temperature=0)["text"]
    assert server.post("/v1/completions", {"model": NAME, "prompt": "a\u0000b", "max_tokens": 2}).status == 200
