"""The HTTP side with curl: answers, streams, connections, TLS, metrics, and the commands that are clients."""

import concurrent.futures
import fcntl
import json
import os
import pty
import re
import select
import shutil
import subprocess
import termios
import time

import pytest
from serving import (
    MODEL, NAME, STORIES, TENSORD, Server, chunks_of, curl, needs_chat, needs_model, needs_shared, tensord, wait_until,
)

pytest_plugins = ["serving"]
pytestmark = needs_model
PROMPT = "Once upon a time"


def body_of(**fields):
    return json.dumps({"model": NAME, "prompt": PROMPT, "max_tokens": 24, "temperature": 0, **fields})


def post(server, path, data, *args):
    return curl("-H", "Content-Type: application/json", "-d", data, *args, server.url + path)


def events_of(body):
    assert body.endswith(b"data: [DONE]\n\n"), body[-200:]
    lines = body.decode().split("\n")
    assert all(line == "" or line.startswith((":", "id: ", "data: ")) for line in lines), body
    return [json.loads(line[6:]) for line in lines if line.startswith("data: ") and line != "data: [DONE]"]


@needs_shared
def test_the_description_of_the_openai_api_is_there(schemas):
    assert schemas.registry is not None
    with pytest.raises(AssertionError):
        schemas.check("ListModelsResponse", {"object": "list"})
    with pytest.raises(AssertionError):
        schemas.check("CreateChatCompletionStreamResponse", {"id": 1, "choices": [{"delta": {"role": 7}}]})


def test_probes_are_green(server):
    assert curl(server.url + "/healthz")[0] == 200
    status, head, body = curl(server.url + "/readyz")
    assert status == 200 and "application/json" in head
    assert json.loads(body) == {"ready": True, "state": "ready", "ranks": 2, "ranks_ready": 2}


def test_models_are_listed(server, schemas):
    models = json.loads(curl(server.url + "/v1/models")[2])
    schemas.check("ListModelsResponse", models)
    assert [m["id"] for m in models["data"]] == [NAME]
    one = json.loads(curl(f"{server.url}/v1/models/{NAME}")[2])
    schemas.check("Model", one)
    assert one == models["data"][0]
    status, _, body = curl(server.url + "/v1/models/other")
    assert status == 404
    schemas.check("ErrorResponse", json.loads(body))


def test_a_completion_with_and_without_stream_is_the_same_text(server, schemas):
    status, head, body = post(server, "/v1/completions", body_of())
    assert status == 200 and "content-type: application/json" in head.lower()
    answer = json.loads(body)
    schemas.check("CreateCompletionResponse", answer)
    assert answer["model"] == NAME and answer["choices"][0]["finish_reason"] in ("length", "stop")
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert 1 <= usage["completion_tokens"] <= 24

    status, head, body = post(server, "/v1/completions", body_of(stream=True, stream_options={"include_usage": True}), "-N")
    assert status == 200 and "content-type: text/event-stream" in head.lower()
    chunks = events_of(body)
    for chunk in chunks:
        schemas.check_completion_chunk(chunk)
    assert "".join(c["text"] for chunk in chunks for c in chunk["choices"]) == answer["choices"][0]["text"]
    assert [c["finish_reason"] for chunk in chunks for c in chunk["choices"]][-1] == answer["choices"][0]["finish_reason"]
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"] == usage
    assert len({chunk["id"] for chunk in chunks}) == 1


@needs_chat
def test_a_chat_with_and_without_stream_is_the_same_text(server, schemas):
    fields = {"model": NAME, "messages": [{"role": "user", "content": "What is 2 plus 3?"}], "max_tokens": 24, "temperature": 0}
    status, _, body = post(server, "/v1/chat/completions", json.dumps(fields))
    answer = json.loads(body)
    assert status == 200, body
    schemas.check("CreateChatCompletionResponse", answer)
    assert answer["choices"][0]["message"]["role"] == "assistant"

    status, _, body = post(server, "/v1/chat/completions", json.dumps({**fields, "stream": True}), "-N")
    chunks = events_of(body)
    for chunk in chunks:
        schemas.check("CreateChatCompletionStreamResponse", chunk)
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    text = "".join(c["delta"].get("content") or "" for chunk in chunks for c in chunk["choices"])
    assert text == answer["choices"][0]["message"]["content"]
    assert chunks[-1]["choices"][0]["finish_reason"] == answer["choices"][0]["finish_reason"]


@needs_shared
def test_a_chat_without_a_template_is_refused_with_the_reason(schemas):
    with Server("-n", 1, "--threads", 1, model=STORIES) as s:
        s.wait_ready()
        status, _, body = post(s, "/v1/chat/completions", json.dumps({"messages": [{"role": "user", "content": "hi"}]}))
        assert status == 400
        schemas.check("ErrorResponse", json.loads(body))
        assert "template" in json.loads(body)["error"]["message"]
        p = tensord("chat", "--url", s.url, "--once", "hi")
        assert p.returncode == 1 and b"template" in p.stderr, p.stderr
        s.stop()


def test_a_connection_is_kept(server):
    out = subprocess.run(
        ["curl", "-sS", "--http1.1", "-m", "30", "-o", "/dev/null", "-o", "/dev/null", "-o", "/dev/null", "-w", "%{http_code} %{http_version} %{num_connects}\n",
         server.url + "/healthz", server.url + "/nothing", server.url + "/v1/models"],
        capture_output=True, check=True, text=True,
    ).stdout
    assert out.splitlines() == ["200 1.1 1", "404 1.1 0", "200 1.1 0"]


def test_methods_and_paths_that_are_not_there_say_so(server, schemas):
    status, head, body = curl("-X", "DELETE", server.url + "/v1/completions")
    assert status == 405 and "POST" in re.search(r"(?i)^allow: (.*)$", head, re.M).group(1)
    schemas.check("ErrorResponse", json.loads(body))
    status, _, body = curl(server.url + "/v1/embeddings/nothing")
    assert status == 404
    schemas.check("ErrorResponse", json.loads(body))
    status, head, body = curl("-I", server.url + "/healthz")
    assert status == 200 and body in (b"", head.encode())


def test_a_body_announced_with_expect_is_read(server, tmp_path):
    (tmp_path / "body").write_text(body_of(user="x" * 1_500_000))
    status, _, body = post(server, "/v1/completions", f"@{tmp_path / 'body'}", "-H", "Expect: 100-continue")
    assert status == 200, body


def test_a_body_over_the_cap_is_refused_and_the_server_goes_on(server, tmp_path):
    (tmp_path / "big").write_bytes(b'{"prompt":"' + b"a" * (40 << 20) + b'"}')
    status, _, body = post(server, "/v1/completions", f"@{tmp_path / 'big'}")
    assert status == 413, body[:300]
    assert curl(server.url + "/readyz")[0] == 200


def test_invalid_utf8_and_bad_json_are_refused(server, schemas, tmp_path):
    for data in (b'{"prompt":"\xff\xfe"}', b'{"prompt":', b"", b"[]", b'{"prompt":"a"} x', b"\x00"):
        (tmp_path / "body").write_bytes(data)
        status, _, body = curl("-H", "Content-Type: application/json", "--data-binary", f"@{tmp_path / 'body'}", server.url + "/v1/completions")
        assert status == 400, (data, body)
        schemas.check("ErrorResponse", json.loads(body))


def sample_value(text, name, **labels):
    """The sum of the samples of a metric that have these labels."""
    total = None
    for line in text.splitlines():
        m = re.fullmatch(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)", line)
        if m and m[1] == name and all(f'{k}="{v}"' in (m[2] or "") for k, v in labels.items()):
            total = (total or 0) + float(m[3])
    return total


def test_metrics_are_prometheus_text_and_count(server):
    before = curl(server.url + "/metrics")[2].decode()
    n = server.post("/v1/completions", json.loads(body_of())).json()["usage"]
    head, after = curl(server.url + "/metrics")[1:]
    after = after.decode()
    assert "text/plain; version=0.0.4" in head
    for line in after.splitlines():
        assert re.fullmatch(r"# (HELP|TYPE) tensord_\w+ .+|tensord_\w+(\{[^{}]*\})? [-+\w.]+", line), line
    if shutil.which("promtool"):
        check = subprocess.run(["promtool", "check", "metrics"], input=after.encode(), capture_output=True)
        assert check.returncode == 0, check.stderr.decode()
    grown = lambda name: sample_value(after, name) - (sample_value(before, name) or 0)
    assert grown("tensord_requests_total") == 1
    assert grown("tensord_request_prompt_tokens_total") == n["prompt_tokens"]
    assert grown("tensord_request_generated_tokens_total") == n["completion_tokens"]
    assert sample_value(after, "tensord_ready") == 1 and sample_value(after, "tensord_ranks_ready") == 2


# ---- exactness ----


def sampled(server, seed):
    return server.complete(f"{PROMPT} number {seed % 5}", max_tokens=20 + seed % 7, temperature=0.8, seed=seed)


def test_requests_side_by_side_have_the_texts_that_they_have_alone(server):
    seeds = range(100, 124)
    alone = [sampled(server, seed) for seed in seeds]
    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        together = list(pool.map(lambda seed: sampled(server, seed), seeds))
    assert together == alone
    assert len({c["text"] for c in alone}) > 12, "the seeds make no difference"


def test_the_greedy_text_is_that_of_generate(server):
    p = tensord("generate", "--model", MODEL, "--prompt", PROMPT, "--max-tokens", 48, "--json")
    assert p.returncode == 0, p.stderr
    alone = json.loads(p.stdout)
    assert server.complete(PROMPT, max_tokens=48, temperature=0)["text"] == alone["text"]
    ids = server.complete(alone["prompt_ids"], max_tokens=48, temperature=0)
    assert ids["text"] == alone["text"] and ids["finish_reason"] == alone["finish_reason"]




# ---- the commands that are clients ----


def test_status_shows_the_group(server):
    p = tensord("status", "--url", server.url)
    assert p.returncode == 0, p.stderr
    text = p.stdout.decode()
    for word in ("ready       yes", "state       ready", NAME, "tensor parallel 2", "KV cache", "weights"):
        assert word in text, text
    p = tensord("status", "--url", server.url, "--json")
    status = json.loads(p.stdout)
    ranks = status["groups"][0]["ranks"]
    assert {r["pid"] for r in ranks} == set(server.ranks())
    assert all(r["state"] == "ready" and r["weight_bytes"] > 0 and r["kv_bytes"] > 0 for r in ranks)
    assert status["groups"][0]["layout"]["tp"] == 2 and status["ready"] is True
    assert all(r["n_steps"] > 0 and r["exchanged_bytes"] > 0 for r in ranks)


def test_status_without_a_server_says_so():
    p = tensord("status", "--url", "http://127.0.0.1:1")
    assert p.returncode == 1 and b"no server answers at http://127.0.0.1:1" in p.stderr
    p = tensord("status", "--url", "ftp://x")
    assert p.returncode == 1 and b"ftp://x" in p.stderr


@needs_chat
def test_chat_once_and_from_a_pipe(server):
    question = {"role": "user", "content": "What is 2 plus 3?"}
    ask = lambda messages: server.post("/v1/chat/completions", {"messages": messages, "temperature": 0, "max_tokens": 16}).json()["choices"][0]["message"]
    first = ask([question])
    p = tensord("chat", "--url", server.url, "--max-tokens", 16, "--once", question["content"])
    assert p.returncode == 0, p.stderr
    assert p.stdout.decode() == first["content"] + "\n"
    again = ask([question, first, {"role": "user", "content": "And 4 plus 4?"}])
    p = tensord("chat", "--url", server.url, "--max-tokens", 16, input=b"What is 2 plus 3?\n\nAnd 4 plus 4?\n")
    assert p.returncode == 0, p.stderr
    assert p.stdout.decode() == first["content"] + "\n" + again["content"] + "\n"


@needs_chat
def test_chat_tells_the_servers_error(server):
    p = tensord("chat", "--url", server.url, "--temperature", 3, "--once", "hi")
    assert p.returncode == 1 and b"400" in p.stderr and b"temperature" in p.stderr, p.stderr


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, *argv):
        self.master, slave = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", "LC_ALL": "C.UTF-8"}
        take_terminal = lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        self.p = subprocess.Popen(argv, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True, preexec_fn=take_terminal)
        os.close(slave)

    def read_until(self, end, limit_s=20):
        seen, stop = b"", time.monotonic() + limit_s
        while not seen.endswith(end):
            ready = select.select([self.master], [], [], max(0, stop - time.monotonic()))[0]
            assert ready, f"{end} did not come: {seen}"
            seen += os.read(self.master, 65536)
        return seen.replace(b"\r\n", b"\n").decode()

    def type(self, text):
        os.write(self.master, text.encode())

    def close(self):
        self.p.kill()
        self.p.wait()
        os.close(self.master)


@needs_chat
def test_chat_on_a_terminal(server):
    t = Terminal(TENSORD, "chat", "--url", server.url, "--max-tokens", "300")
    try:
        assert NAME in t.read_until(b"> ")
        t.type("What is 2 plus 3?\n")
        answer = lambda: t.read_until(b"\n> ").split("What is 2 plus 3?\n")[-1]
        first = answer()
        assert len(first) > len("\n> ")
        t.type("half a l\u00efne")
        t.read_until("half a l\u00efne".encode())
        t.type("\x03")
        assert "^C" in t.read_until(b"\n> ")
        t.type("/new\n")
        t.read_until(b"\n> ")
        t.type("What is 2 plus 3?\n")
        assert answer() == first, "/new did not forget, or the line that was given up was sent"
        t.type("\x04")
        assert t.p.wait(10) == 0
    finally:
        t.close()


@needs_chat
def test_ctrl_c_stops_an_answer(server):
    t = Terminal(TENSORD, "chat", "--url", server.url, "--max-tokens", "1500", "--temperature", "1.9", "--seed", "3")
    try:
        t.read_until(b"> ")
        for _ in range(5):  # an answer may end by itself before the key is there
            t.type("Tell me a story.\n")
            t.read_until(b"story.\r\n")
            t.type("\x03")
            if "(stopped)" in t.read_until(b"\n> "):
                break
        else:
            pytest.fail("no answer was stopped")
        wait_until("the sequence is freed", lambda: server.group()["n_open"] == 0, 5)
        t.type("\x04")
        assert t.p.wait(10) == 0
    finally:
        t.close()


# ---- TLS and keys ----


def test_tls_and_keys_with_curl(secure, schemas):
    trust = ["--cacert", secure.tls]
    key = ["-H", f"Authorization: Bearer {secure.key}"]
    assert curl(*trust, secure.url + "/readyz")[0] == 200
    for headers in ([], ["-H", "Authorization: Bearer wrong"], ["-H", "Authorization: Basic a2V5"]):
        for path in ("/v1/models", "/v1/completions", "/v1/chat/completions", "/status"):
            status, head, body = curl(*trust, *headers, *(["-d", "{}"] if path.endswith("completions") else []), secure.url + path)
            assert status == 401, (path, status)
            schemas.check("ErrorResponse", json.loads(body))
            assert secure.key.encode() not in body
    assert curl(*trust, *key, secure.url + "/v1/models")[0] == 200
    status, _, body = curl(*trust, *key, "-d", body_of(), secure.url + "/v1/completions")
    assert status == 200, body
    assert curl(*trust, "-H", f"X-Api-Key: {secure.key}", secure.url + "/v1/models")[0] == 200
    assert secure.key not in secure.log()


def test_tls_is_needed_where_it_is_on(secure):
    p = subprocess.run(["curl", "-sS", "-m", "20", secure.url + "/healthz"], capture_output=True)
    assert p.returncode == 60, "a certificate that nobody trusts was taken"
    status, _, body = curl(secure.url.replace("https", "http") + "/healthz")
    assert status == 400 and b"TLS" in body or b"https" in body.lower()


def test_status_over_tls(secure):
    base = ["status", "--url", secure.url]
    p = tensord(*base, "--ssl-certfile", secure.tls, "--api-key", secure.key)
    assert p.returncode == 0 and b"state       ready" in p.stdout, p.stderr
    p = tensord(*base, "--ssl-certfile", secure.tls)
    assert p.returncode == 1 and b"401" in p.stderr
    p = tensord(*base, "--api-key", secure.key)
    assert p.returncode == 1 and b"not trusted" in p.stderr
    p = tensord("status", "--url", secure.url.replace("127.0.0.1", "localhost"), "--ssl-certfile", secure.tls, "--api-key", secure.key)
    assert p.returncode == 0, p.stderr


def test_the_stream_is_paced_by_tokens(server):
    """Text arrives while it is made, not at the end: some answer is still running after its first event was read.

    An answer takes a few hundredths of a second, a busy machine may keep this test away for longer: hence more than one.
    """
    fields = {"prompt": PROMPT, "max_tokens": 400, "temperature": 0, "ignore_eos": True, "stream": True}
    for _ in range(50):
        events = iter(server.stream("/v1/completions", fields))
        next(events)
        running = server.group()["n_open"] >= 1
        assert len(chunks_of(events)) > 50
        if running:
            return
    pytest.fail("of 50 answers none was running after its first event was read")
