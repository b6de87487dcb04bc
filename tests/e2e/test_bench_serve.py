"""`tensord bench serve`: the load that it offers, what it counts, and how it tells of failures. No assertion of speed: figures
are held against one another and against what was asked."""
import http.server
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
import xml.etree.ElementTree as ElementTree

import pytest

import serving

pytest_plugins = ["serving"]

RATES = ("request_throughput", "input_throughput", "output_throughput", "total_token_throughput", "request_goodput")
LATENCIES = ("ttft_ms", "tpot_ms", "itl_ms", "e2el_ms")
KINDS = ["refused", "http_error", "no_connection", "broken_stream", "error", "empty_answer", "timeout"]


def bench(tensord, url, *args, status=0, **kwargs):
    p = tensord.run("bench", "serve", "--url", url, *args, **kwargs)
    assert p.returncode == status, f"{p.args} ended with {p.returncode}: {p.stderr[-2000:]}"
    return p


def bench_json(tensord, tmp_path, url, *args, **kwargs):
    """The whole result, with the records of all requests."""
    path = tmp_path / "bench.json"
    p = bench(tensord, url, *args, "--json-file", path, "--save-requests", **kwargs)
    return json.loads(path.read_text()), p


def check_point(point):
    """What must hold between the figures of any load."""
    records = point["requests"]
    done = [r for r in records if r["end"] == "ok"]
    assert [r["index"] for r in records] == list(range(len(records)))
    assert point["sent"] == len(records) and point["completed"] == len(done)
    assert point["sent"] == point["completed"] + point["failed"] + point["cancelled"]
    assert sum(e["count"] for e in point["errors"].values()) == point["failed"]
    assert list(point["errors"]) == KINDS
    assert point["total_output_tokens"] == sum(r["output_tokens"] for r in done)
    assert point["total_input_tokens"] == sum(r["input_tokens"] for r in done)
    assert point["total_events"] == sum(r["events"] for r in done)
    seconds = point["duration"]
    assert point["request_throughput"] == pytest.approx(len(done) / seconds)
    assert point["output_throughput"] == pytest.approx(point["total_output_tokens"] / seconds)
    assert point["total_token_throughput"] == pytest.approx(point["input_throughput"] + point["output_throughput"])
    assert point["ttft_ms"]["count"] == point["e2el_ms"]["count"] == len(done)
    assert point["itl_ms"]["count"] == sum(len(r["itl_ms"]) for r in done)
    assert 0 <= point["generator_busy"] <= 1
    for name in LATENCIES:
        t = point[name]
        assert 0 <= t["min"] <= t["p50"] <= t["p90"] <= t["p95"] <= t["p99"] <= t["max"], name
    for r in done:
        assert 0 < r["ttft_ms"] <= r["e2el_ms"]
        assert len(r["itl_ms"]) == r["events"] - 1
        assert r["ttft_ms"] + sum(r["itl_ms"]) <= r["e2el_ms"] + 0.01
        if r["output_tokens"] > 1:
            assert r["tpot_ms"] == pytest.approx((r["e2el_ms"] - r["ttft_ms"]) / (r["output_tokens"] - 1), abs=1e-5)
        assert r["due_s"] <= r["sent_s"] <= r["end_s"] <= seconds + 1e-6


# ---- against our own server ----


@serving.needs_model
@pytest.mark.parametrize("endpoint", ["completions", pytest.param("chat", marks=serving.needs_chat)])
def test_closed_loop_asks_what_was_said(tensord, server, tmp_path, endpoint):
    out, p = bench_json(tensord, tmp_path, server.url, "--concurrency", 3, "--num-requests", 14, "--input-len", "8:24",
                        "--output-len", "5:11", "--ignore-eos", "--endpoint", endpoint, "--warmup-requests", 2)
    point = out["points"][0]
    check_point(point)
    assert out["settings"]["model"] == serving.NAME and out["settings"]["seed"] == 0
    assert (point["load"], point["concurrency"]) == ("concurrency", 3)
    assert point["completed"] == 14 and point["failed"] == 0 and not point["interrupted"]
    assert 1 <= point["most_under_way"] <= 3
    for r in point["requests"]:
        assert 8 <= r["prompt_words"] <= 24 and 5 <= r["asked_output_tokens"] <= 11
        assert r["output_tokens"] == r["asked_output_tokens"] and r["has_usage"]
        assert r["input_tokens"] >= r["prompt_words"] and r["http_status"] == 200
    ends = sorted((r["sent_s"], r["end_s"]) for r in point["requests"])
    for sent, _ in ends:  # never more than three at a time
        assert sum(1 for s, e in ends if s <= sent < e) <= 3
    for words in ("3 at a time", "14 done, 0 failed", "TTFT", "ITL", "TPOT", "E2E"):
        assert words in p.stdout


@serving.needs_model
def test_open_loop_sends_at_its_times_whatever_the_server_does(tensord, server, tmp_path):
    args = ("--request-rate", "20,200,inf", "--num-requests", 20, "--input-len", 6, "--output-len", 4, "--ignore-eos",
            "--seed", 7, "--slo", "ttft:1000000,itl:1000000,tpot:1000000,e2e:1000000", "--svg", tmp_path / "a.svg")
    out, p = bench_json(tensord, tmp_path, server.url, *args)
    slow, fast, at_once = out["points"]
    for point in out["points"]:
        check_point(point)
        assert point["completed"] == 20 and point["request_goodput"] == pytest.approx(point["request_throughput"])
        assert point["load"] == "request_rate"
    assert [point["request_rate"] for point in out["points"]] == [20, 200, "inf"]
    due = [r["due_s"] for r in slow["requests"]]
    assert due == sorted(due) and due[-1] > 0.3
    # The same pattern ten times as fast, and all at the start.
    assert [r["due_s"] * 10 for r in fast["requests"]] == pytest.approx(due, abs=1e-6)
    assert all(r["due_s"] < 1e-6 for r in at_once["requests"])
    root = ElementTree.parse(tmp_path / "a.svg").getroot()
    text = " ".join(e.text or "" for e in root.iter("{http://www.w3.org/2000/svg}text"))
    for words in ("requests/s", "TTFT", "ITL", "tokens/s", "p50", "p99", "all at once", serving.NAME):
        assert words in text
    assert re.search(r"^load +req/s", p.stdout, re.M)
    again, _ = bench_json(tensord, tmp_path, server.url, *args)
    for a, b in zip(out["points"], again["points"]):
        assert a["total_input_tokens"] == b["total_input_tokens"]
        assert [r["due_s"] for r in a["requests"]] == pytest.approx([r["due_s"] for r in b["requests"]], abs=1e-6)


@serving.needs_model
def test_a_duration_ends_the_load_and_a_shared_prefix_is_shared(tensord, server, tmp_path):
    out, _ = bench_json(tensord, tmp_path, server.url, "--concurrency", 2, "--duration", 0.5, "--input-len", 10,
                        "--shared-prefix-share", 0.8, "--output-len", 2, "--ignore-eos")
    point = out["points"][0]
    check_point(point)
    assert point["completed"] >= 2 and point["failed"] == 0
    assert all(r["due_s"] <= 0.5 for r in point["requests"])


@serving.needs_model
def test_a_trace_is_played_back(tensord, server, tmp_path):
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"timestamp": 1000, "input_length": 5, "output_length": 3}\n'
                     '{"timestamp": 1040, "prompt": "the dog", "output_length": 2}\n'
                     '{"timestamp": 1100.5, "input_length": 600, "output_length": 1, "hash_ids": [1, 9]}\n')
    out, _ = bench_json(tensord, tmp_path, server.url, "--trace", trace, "--ignore-eos", "--endpoint", "completions")
    point = out["points"][0]
    check_point(point)
    assert point["load"] == "trace" and point["failed"] == 0
    assert [r["due_s"] for r in point["requests"]] == pytest.approx([0, 0.04, 0.1005], abs=1e-6)
    assert [r["output_tokens"] for r in point["requests"]] == [3, 2, 1]
    assert [r["prompt_words"] for r in point["requests"]] == [5, 0, 600]
    out, _ = bench_json(tensord, tmp_path, server.url, "--trace", trace, "--concurrency", 3, "--num-requests", 2)
    assert out["points"][0]["load"] == "concurrency" and out["points"][0]["sent"] == 2


@serving.needs_model
def test_json_alone_on_stdout(tensord, server):
    out = json.loads(bench(tensord, server.url, "--num-requests", 3, "--output-len", 2, "--json").stdout)
    assert out["points"][0]["completed"] == 3 and "requests" not in out["points"][0]


@serving.needs_model
def test_a_server_with_a_key(tensord, secure, tmp_path):
    p = bench(tensord, secure.url, status=2)
    assert "https" in p.stderr and "expected http://" in p.stderr


# ---- against servers that misbehave ----

CHUNK = b'data: {"choices":[{"text":"a"}]}\n\n'
END = b'data: {"choices":[{"text":"","finish_reason":"length"}]}\n\n'
DONE = b"data: [DONE]\n\n"


class Odd(http.server.BaseHTTPRequestHandler):
    """Answers as the server's list of answers says, one after the other, the last one for ever."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        body = json.dumps({"data": [{"id": "odd"}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.seen.append((self.client_address, dict(self.headers), body))
            answers = self.server.answers
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
        answer(self)

    def stream(self, *pieces, end=True, kind="text/event-stream", pause=0.0):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in pieces:
            time.sleep(pause)
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.flush()
        if end:
            self.wfile.write(b"0\r\n\r\n")
        else:
            self.close_connection = True

    def refuse(self, status, message):
        body = json.dumps({"error": {"message": message}}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class OddServer(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *answers):
        super().__init__(("127.0.0.1", 0), Odd)
        self.answers = list(answers)
        self.seen = []
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request, client_address):
        pass  # a client that goes away is meant to

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *args):
        self.shutdown()
        self.server_close()


def good(h):
    h.stream(CHUNK, CHUNK, END, DONE)


def run_odd(tensord, tmp_path, answers, *args, **kwargs):
    with OddServer(*answers) as s:
        out, p = bench_json(tensord, tmp_path, s.url, "--warmup-requests", 0, *args, **kwargs)
    check_point(out["points"][0])
    return out["points"][0], p, s.seen


def test_every_failure_is_counted_by_its_kind(tensord, tmp_path):
    def reset(h):
        h.stream(CHUNK, end=False)

    answers = [
        good,
        lambda h: h.refuse(429, "the queue is full"),
        lambda h: h.refuse(503, "not ready"),
        lambda h: h.refuse(500, "a fault"),
        reset,
        lambda h: h.stream(CHUNK, b'data: {"error":{"message":"group lost"}}\n\n'),
        lambda h: h.stream(CHUNK, b"data: no json\n\n", DONE),
        lambda h: h.stream(CHUNK),  # ends in order, but before its last event
        lambda h: h.stream(END, DONE),  # no token
        lambda h: h.stream(b"{}", kind="application/json"),
        good,
    ]
    point, p, _ = run_odd(tensord, tmp_path, answers, "--concurrency", 1, "--num-requests", 12, "--slo", "e2e:100000")
    counts = {k: e["count"] for k, e in point["errors"].items()}
    assert counts == {"refused": 2, "http_error": 1, "no_connection": 0, "broken_stream": 4, "error": 1,
                      "empty_answer": 1, "timeout": 0}
    assert point["errors"]["refused"]["first"] == "429: the queue is full"
    assert point["errors"]["error"]["first"] == "group lost"
    assert point["completed"] == 3 and point["failed"] == 9 and point["good"] == 3
    assert [r["end"] for r in point["requests"]][:6] == ["ok", "refused", "refused", "http_error", "broken_stream", "error"]
    assert [r["http_status"] for r in point["requests"]][:5] == [200, 429, 503, 500, 200]
    assert "3 done, 9 failed" in p.stdout
    for words in (r"refused +2 \(the first: 429: the queue is full\)", r"http_error +1 \(the first: 500: a fault\)"):
        assert re.search(words, p.stdout), p.stdout
    assert "25.0 % of those sent" in p.stdout


def test_tokens_are_counted_as_events_where_the_server_counts_none(tensord, tmp_path):
    point, p, seen = run_odd(tensord, tmp_path, [good], "--num-requests", 2, "--input-len", 9)
    assert point["without_usage"] == 2
    assert point["total_output_tokens"] == 4 and point["total_input_tokens"] == 18
    assert "not by the server's count" in p.stdout and "no usage" in p.stderr
    assert seen[0][2]["model"] == "odd" and seen[0][2]["stream_options"] == {"include_usage": True}


def test_times_are_no_shorter_than_the_server_took(tensord, tmp_path):
    point, _, _ = run_odd(tensord, tmp_path, [lambda h: h.stream(CHUNK, CHUNK, END, DONE, pause=0.05)], "--num-requests", 3)
    for r in point["requests"]:
        assert r["events"] == 2 and r["ttft_ms"] >= 50
        assert r["ttft_ms"] + r["itl_ms"][0] >= 100 and r["e2el_ms"] >= 150
        assert r["end_s"] - r["sent_s"] >= 0.2


def test_an_answer_that_takes_too_long_is_a_timeout(tensord, tmp_path):
    def hang(h):
        h.stream(CHUNK, end=False)
        h.server.hung.wait(20)

    OddServer.hung = threading.Event()
    point, _, _ = run_odd(tensord, tmp_path, [hang, good], "--num-requests", 2, "--request-timeout", 2)
    OddServer.hung.set()
    assert point["errors"]["timeout"]["count"] == 1 and point["completed"] == 1


def test_nothing_done_is_a_failure(tensord, tmp_path):
    point, p, _ = run_odd(tensord, tmp_path, [lambda h: h.refuse(429, "full")], "--num-requests", 3, status=1)
    assert point["completed"] == 0 and point["errors"]["refused"]["count"] == 3
    assert "no request was answered in full" in p.stderr


def test_a_request_carries_what_was_asked(tensord, tmp_path):
    key = "a-key-of-the-tests"
    point, p, seen = run_odd(tensord, tmp_path, [good], "--num-requests", 3, "--endpoint", "chat", "--model", "m x",
                             "--api-key", key, "--temperature", 0.5, "--ignore-eos", "--extra-body",
                             '{"top_k": 3, "stream_options": {"include_usage": false}}', "--input-len", 4)
    assert key not in p.stdout + p.stderr
    for _, headers, body in seen:
        assert headers["Authorization"] == f"Bearer {key}"
        assert body["model"] == "m x" and body["temperature"] == 0.5 and body["ignore_eos"] is True
        assert body["top_k"] == 3 and body["stream"] is True and body["max_tokens"] == 64
        assert body["stream_options"] == {"include_usage": False}
        assert len(body["messages"][0]["content"].split()) == 4 and body["messages"][0]["role"] == "user"
    assert len({body["messages"][0]["content"] for _, _, body in seen}) == 3


def test_equal_seeds_send_equal_texts(tensord, tmp_path):
    def texts(*args):
        _, _, seen = run_odd(tensord, tmp_path, [good], "--num-requests", 4, "--input-len", "5:30", *args)
        return [(body["prompt"], body["max_tokens"]) for _, _, body in seen]

    assert texts("--seed", 3) == texts("--seed", 3) != texts("--seed", 4)
    with OddServer(good) as s:
        bench(tensord, s.url, "--num-requests", 3, "--warmup-requests", 1, "--concurrency", "1,2", "--shared-prefix-share", 1)
        prompts = [body["prompt"] for _, _, body in s.seen]
    # A warm-up and each load of a sweep have words of their own; within a load the prefix is shared.
    assert len(prompts) == 7 and len(set(prompts)) == 3
    assert len(set(prompts[1:4])) == 1 and len(set(prompts[4:])) == 1


def test_connections_are_kept_and_one_that_died_is_replaced(tensord, tmp_path):
    _, _, seen = run_odd(tensord, tmp_path, [good], "--num-requests", 6)
    assert len({address for address, _, _ in seen}) == 1

    def close(h):  # without a word about it
        good(h)
        h.close_connection = True

    point, _, seen = run_odd(tensord, tmp_path, [close], "--num-requests", 6)
    assert point["completed"] == 6
    assert len({address for address, _, _ in seen}) == 6


def test_hundreds_of_streams_at_a_time(tensord, tmp_path):
    point, _, seen = run_odd(tensord, tmp_path, [lambda h: h.stream(CHUNK, CHUNK, END, DONE, pause=0.2)],
                             "--request-rate", "inf", "--num-requests", 200)
    assert point["completed"] == 200 and point["most_under_way"] > 50
    assert len({address for address, _, _ in seen}) == point["most_under_way"]


def test_an_interrupt_prints_what_there_is(tensord, tmp_path):
    path = tmp_path / "out.json"

    def hang(h):
        h.stream(CHUNK, end=False)
        h.server.hung.wait(20)

    OddServer.hung = threading.Event()
    with OddServer(good, good, hang) as s:
        p = subprocess.Popen([tensord.binary, "bench", "serve", "--url", s.url, "--concurrency", "1,2", "--num-requests", "5",
                              "--warmup-requests", "0", "--json-file", str(path)], stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True, env=tensord.env)
        serving.wait_until("the third request", lambda: len(s.seen) >= 3)
        p.send_signal(signal.SIGINT)
        stdout, stderr = p.communicate(timeout=20)
        OddServer.hung.set()
    assert p.returncode == 1 and "stopped by a signal" in stderr
    assert "(interrupted)" in stdout and "2 done, 0 failed, 1 broken off by us" in stdout
    out = json.loads(path.read_text())
    assert len(out["points"]) == 1
    assert out["points"][0]["interrupted"] and out["points"][0]["cancelled"] == 1 and out["points"][0]["completed"] == 2


# ---- what cannot be ----


def test_no_server_is_one_clear_error(tensord):
    p = bench(tensord, f"http://127.0.0.1:{serving.free_port()}", status=1)
    assert p.stderr.count("\n") == 1 and "no server answers at 127.0.0.1 port" in p.stderr


def test_a_server_that_names_no_model(tensord):
    with OddServer(good) as s:
        p = bench(tensord, s.url + "/prefix", "--num-requests", 1)
        assert "/v1/completions" in p.stdout
        p = bench(tensord, s.url + "/v1", "--num-requests", 1)
    silent = socket.create_server(("127.0.0.1", 0))

    def close_all():
        while True:
            try:
                silent.accept()[0].close()
            except OSError:
                return

    threading.Thread(target=close_all, daemon=True).start()
    p = bench(tensord, f"http://127.0.0.1:{silent.getsockname()[1]}", status=1)
    silent.close()
    assert p.stderr.count("\n") == 1


@pytest.mark.parametrize("args,words", [
    (("--concurrency", 0), ["--concurrency", "'0'", "1 to 65536"]),
    (("--concurrency", "1,x"), ["--concurrency", "'x'"]),
    (("--concurrency", "1.5"), ["--concurrency", "'1.5'", "whole"]),
    (("--request-rate", "0"), ["--request-rate", "'0'", "above 0", "inf"]),
    (("--request-rate", "1,fast"), ["--request-rate", "'fast'"]),
    (("--request-rate", "2", "--concurrency", "1"), ["--request-rate", "--concurrency", "one of them"]),
    (("--request-rate", "inf", "--duration", "3"), ["inf", "--num-requests"]),
    (("--input-len", "9:5"), ["--input-len", "'9:5'", "normal:MEAN:SD"]),
    (("--output-len", "gamma:3:1"), ["--output-len", "'gamma:3:1'"]),
    (("--shared-prefix-share", 1.5), ["--shared-prefix-share", "'1.5'", "from 0 to 1"]),
    (("--slo", "ttft:5,foo:3"), ["--slo", "'foo:3'", "ttft:MS"]),
    (("--extra-body", "{"), ["--extra-body", "'{'", "JSON object"]),
    (("--extra-body", '{"stream": false}'), ["--extra-body", "stream"]),
    (("--trace", "/nonexistent.jsonl"), ["/nonexistent.jsonl", "No such file"]),
    (("--save-requests",), ["--save-requests", "--json-file"]),
    (("--json-file", "/nonexistent/a.json"), ["--json-file", "/nonexistent/a.json"]),
    (("--svg", "/nonexistent/a.svg"), ["--svg", "/nonexistent/a.svg"]),
    (("--url", "https://127.0.0.1:1"), ["https", "expected http://"]),
    (("--url", "ftp://x"), ["ftp://x", "http://"]),
    (("--cases", "decode"), ["--cases", "'bench serve'"]),
    (("--endpoint", "grpc"), ["--endpoint", "'grpc'", "completions, chat"]),
    (("m", "n"), ["'bench serve'", "'n'"]),
])
def test_bad_options_are_named(tensord, args, words):
    p = tensord.run("bench", "serve", *args)
    assert p.returncode == 2, p.stderr
    for word in words:
        assert word in p.stderr, p.stderr


def test_help_of_a_command_of_two_words(tensord):
    p = tensord.run("bench", "serve", "--help")
    assert p.returncode == 0 and p.stdout.startswith("tensord bench serve: ") and "--request-rate" in p.stdout
    assert tensord.run("help", "bench", "serve").stdout == p.stdout
    assert "--request-rate" not in tensord.run("bench", "--help").stdout
    assert "bench serve" in tensord.run("--help").stdout
