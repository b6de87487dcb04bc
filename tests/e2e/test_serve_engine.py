"""What the engine does for many requests: the prefix cache."""

import concurrent.futures

import pytest
from serving import NAME, Server, needs_model, wait_until

pytest_plugins = ["serving"]
pytestmark = needs_model
WORDS = "once there was a little dog who ran to the big red house and saw a cat in the tree with a bird".split()


def story(seed, n):
    return " ".join(WORDS[(seed * 7 + i * (seed + 3)) % len(WORDS)] for i in range(n))


def ask(server, prompt, **fields):
    r = server.post("/v1/completions", {"model": NAME, "prompt": prompt, "max_tokens": 12, "temperature": 0, **fields})
    assert r.status == 200, r.body
    usage = r.json()["usage"]
    return r.json()["choices"][0]["text"], usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]


def metric(server, name):
    lines = server.get("/metrics").body.decode().splitlines()
    return float(next(line.split()[-1] for line in lines if line.startswith(name + " ")))


def test_a_prompt_with_a_known_beginning_computes_its_end_only(server):
    before = metric(server, "tensord_cached_tokens_total")
    text, n, cached = ask(server, story(1, 120))
    again = ask(server, story(1, 120))
    assert cached == 0 and again == (text, n, (n - 1) // 16 * 16)
    longer, n_longer, cached = ask(server, story(1, 120) + " " + story(2, 30))
    assert n_longer > n and cached >= n // 16 * 16 - 16
    assert metric(server, "tensord_cached_tokens_total") == before + again[2] + cached
    wait_until(lambda: "a heartbeat tells of idle blocks", lambda: metric(server, "tensord_kv_blocks_idle") >= n // 16, 5)
    with Server("-n", 1, "--threads", 1, "--no-prefix-cache") as plain:
        plain.wait_ready()
        for prompt in (story(1, 120), story(1, 120), story(1, 120) + " " + story(2, 30)):
            assert ask(plain, prompt) == ((text, n, 0) if prompt == story(1, 120) else (longer, n_longer, 0))
        assert metric(plain, "tensord_kv_blocks_idle") == 0


def test_an_answer_goes_on_as_a_prompt(server):
    first = server.post("/v1/completions", {"model": NAME, "prompt": story(3, 40), "max_tokens": 60, "temperature": 0,
                                            "ignore_eos": True}).json()
    n = first["usage"]["total_tokens"]
    _, _, cached = ask(server, story(3, 40) + first["choices"][0]["text"] + " The")
    assert cached >= first["usage"]["prompt_tokens"] // 16 * 16 and cached <= n


def test_keys_do_not_see_each_others_prompts(certificate, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("first-key\nsecond-key\n")
    with Server("-n", 1, "--threads", 1, "--api-key-file", keys, key="first-key") as s:
        s.wait_ready()
        text, n, cached = ask(s, story(5, 100))
        assert cached == 0 and ask(s, story(5, 100))[2] > 0
        s.key = "second-key"
        assert ask(s, story(5, 100)) == (text, n, 0)
        assert ask(s, story(5, 100))[2] > 0


@pytest.mark.parametrize("seqs", [2, 8])
def test_many_at_once_with_one_beginning_get_what_each_gets_alone(server, seqs):
    """On a cache of at most 64 blocks, where some five of them fit: they wait, share, evict and are preempted."""
    prompts = [story(9, 90) + f" {i} " + story(i, 3 * i) for i in range(24)]
    alone = [ask(server, p, max_tokens=20)[0] for p in prompts]
    with Server("-n", 2, "--threads", 1, "--max-num-seqs", seqs, "--max-model-len", 400,
                "--kv-cache-memory-bytes", "1MiB") as s:
        s.wait_ready()
        assert s.group()["kv_blocks"] <= 64
        with concurrent.futures.ThreadPoolExecutor(24) as pool:
            got = list(pool.map(lambda p: ask(s, p, max_tokens=20), prompts))
        assert [g[0] for g in got] == alone
        assert sum(g[2] for g in got) > 23 * 64
