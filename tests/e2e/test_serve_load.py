"""Hundreds of streams at once on a small cache: every answer is what the request gets alone, and nothing is left behind."""

import concurrent.futures
import json
import random

import pytest
from serving import NAME, Server, needs_model, wait_until

pytest_plugins = ["serving"]
pytestmark = needs_model
WORDS = "once there was a little dog who ran to the big red house and saw a cat in the tree with a bird".split()
STREAMS = 300


def make_requests(seed):
    """Beginnings that many share, lengths, temperatures, priorities and ends of all kinds; who leaves when."""
    rng = random.Random(seed)
    print(f"seed {seed}")
    beginnings = [" ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 90))) for _ in range(12)]
    requests = []
    for i in range(STREAMS):
        prompt = rng.choice(beginnings) + " " + " ".join(rng.choice(WORDS) for _ in range(rng.randint(0, 20)))
        body = {"model": NAME, "prompt": prompt, "max_tokens": rng.randint(1, 40), "temperature": rng.choice([0, 0, 0.5, 1.1]),
                "seed": i, "stream": True, "stream_options": {"include_usage": True}, "ignore_eos": rng.random() < 0.7}
        if rng.random() < 0.3:
            body["top_k"] = rng.randint(1, 50)
        if rng.random() < 0.2:
            body["repetition_penalty"] = 1.2
        if rng.random() < 0.2:
            body["stop"] = [rng.choice(WORDS)]
        if rng.random() < 0.2:
            body["logprobs"] = 2
        requests.append((body, rng.randint(0, 8) if rng.random() < 0.15 else None))
    return requests


def run(server, body, leave_after):
    """(text so far, finish reason); leaves after so many events."""
    stream, text, finish, n = server.stream("/v1/completions", body, timeout=300), "", None, 0
    try:
        assert stream.status == 200, stream.response.read()
        for data in stream:
            if data == "[DONE]":
                break
            if leave_after is not None and n >= leave_after:
                return text, None
            n += 1
            for choice in json.loads(data)["choices"]:
                text += choice["text"]
                finish = choice["finish_reason"] or finish
    finally:
        stream.close()
    return text, finish


@pytest.mark.parametrize("ranks", [1, 2])
def test_hundreds_of_streams_get_what_each_gets_alone(server, ranks):
    requests = make_requests(20261122 + ranks)
    args = ["-n", ranks, "--threads", 1, "--max-num-seqs", 24, "--max-model-len", 256, "--kv-cache-memory-bytes",
            f"{4 // ranks}MiB", "--max-queue", 400, "--speculative-tokens", 3]
    with Server(*args) as s:
        s.wait_ready()
        with concurrent.futures.ThreadPoolExecutor(STREAMS) as pool:
            got = list(pool.map(lambda r: run(s, *r), requests))
        wait_until(lambda: f"idle: {s.group()}", lambda: s.group()["n_open"] == 0 and s.group()["kv_blocks_used"] == 0
                   and s.group()["n_running"] == s.group()["n_waiting"] == 0, 10)
        assert s.group()["cached_tokens"] > 1000
    n_left = 0
    for (body, leave_after), (text, finish) in zip(requests, got, strict=True):
        whole, end = run(server, body, None)
        if leave_after is None:
            assert (text, finish) == (whole, end), body
        else:
            assert whole.startswith(text), body
            n_left += finish is None
    assert n_left > 10
