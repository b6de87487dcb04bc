"""What the engine does for many requests: prefix cache, slow readers, choices, speculation."""

import concurrent.futures
import json
import re
import socket
import time

import pytest
from serving import MODEL, NAME, STORIES, Server, needs_model, needs_shared, tensord, wait_until

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


OFFLOADED = [("-n", 1, "--kv-offload-gib", 0.01), ("-n", 2, "--tensor-parallel-size", 2, "--kv-offload-gib", 0.0005),
             ("-n", 2, "--pipeline-parallel-size", 2), ("-n", 3, "--kv-offload-gib", 0.0003)]


@pytest.mark.parametrize("layout", OFFLOADED, ids=["memory", "tp2-both", "pp2-file", "tp3-both"])
def test_what_the_cache_has_no_room_for_is_read_back_from_outside(server, layout, tmp_path):
    """A pool of two prompts takes five by turns. Each comes back with its beginning and the same words and probabilities."""
    prompts = [story(seed, 150) for seed in range(5)]
    fields = {"logprobs": 3, "max_tokens": 20, "ignore_eos": True}

    def answers(s):
        for prompt in prompts:
            r = s.post("/v1/completions", {"model": NAME, "prompt": prompt, "temperature": 0, **fields})
            assert r.status == 200, r.body
            yield r.json()["choices"][0]["logprobs"], r.json()["usage"]

    expected = [logprobs for logprobs, _ in answers(server)]
    file = () if layout[-1] == 0.01 else ("--kv-offload-path", tmp_path, "--kv-offload-path-gib", 0.02)
    with Server(*layout, *file, "--threads", 1, "--max-model-len", 256, "--max-num-seqs", 2) as s:
        s.wait_ready()
        for turn in range(3):
            got = list(answers(s))
            assert [logprobs for logprobs, _ in got] == expected
            for _, usage in got:
                n, cached = usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]
                # A block is computed instead where the steps' times say that this is faster, as they may on a busy machine.
                assert cached == 0 if turn == 0 else (n - 1) // 16 * 8 <= cached <= (n - 1) // 16 * 16
        wait_until(lambda: s.group(), lambda: s.group()["kv_blocks_read"] > 30, 5)
        group = s.group()
        assert group["kv_reads_failed"] == 0
        assert (group["kv_blocks_offloaded_memory"] > 0) == ("--kv-offload-gib" in layout)
        assert (group["kv_blocks_offloaded_file"] > 0) == bool(file)
        assert metric(s, "tensord_kv_blocks_offloaded_file") == group["kv_blocks_offloaded_file"]
        assert list(tmp_path.iterdir()) == []  # the file has no name
        told = tensord("status", "--url", s.url).stdout.decode()
        assert re.search(r"offloaded +\d+ blocks in host memory, \d+ in files; \d+ read back, 0 times in vain", told), told


def test_hundreds_of_blocks_leave_and_come_back_at_once():
    with Server("-n", 1, "--threads", 1, "--block-size", 1, "--max-model-len", 512, "--max-num-seqs", 1, "--kv-offload-gib", 0.1) as s:
        s.wait_ready()
        for turn in range(3):
            for seed in range(3):
                _, n, cached = ask(s, story(seed, 300))
                assert n > 280 and (cached == n - 1 if turn else cached < 10), (turn, seed, n, cached)


def test_offloading_that_cannot_be_is_refused_by_name(tmp_path):
    for args, words in [(("--kv-offload-gib", 1, "--no-prefix-cache"), "--kv-offload-gib keeps what the prefix cache has"),
                        (("--kv-offload-path", tmp_path), "--kv-offload-path needs a size"),
                        (("--kv-offload-path-gib", 1), "needs --kv-offload-path"),
                        (("--kv-offload-gib", -1), "--kv-offload-gib")]:
        r = tensord("serve", "--model", MODEL, "--port", 0, *args)
        assert r.returncode == 2 and words in r.stderr.decode(), r
    with Server("-n", 1, "--kv-offload-path", tmp_path / "no", "--kv-offload-path-gib", 1) as s:
        wait_until(lambda: s.log(), lambda: "cannot create a file in" in s.log() and "No such file" in s.log(), 20)


def test_the_gap_between_steps_is_told_of_every_rank(server):
    ask(server, story(1, 20), max_tokens=100, ignore_eos=True)
    wait_until(lambda: f"gaps: {server.group()}", lambda: all(r["n_gaps"] >= 90 for r in server.group()["ranks"]), 5)
    for rank in server.group()["ranks"]:
        assert 0 < rank["gap_ns"] / rank["n_gaps"] < 1e9
    assert metric(server, "tensord_step_gap_seconds") > 0


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


def read_events(sock, head):
    """The data of a chunked event stream up to [DONE], and the chunk that ends the body."""
    raw = head
    while not raw.endswith(b"\r\n0\r\n\r\n"):
        part = sock.recv(65536)
        assert part, raw[-300:]
        raw += part
    body, text = raw.split(b"\r\n\r\n", 1)[1], b""
    while body:
        size, body = body.split(b"\r\n", 1)
        n = int(size, 16)
        text += body[:n]
        body = body[n + 2:]
    data = [line[6:] for line in text.decode().splitlines() if line.startswith("data: ")]
    assert data.pop() == "[DONE]"
    return [json.loads(d) for d in data]


def is_paused(server, least_tokens):
    """And stays so: while the kernel still takes some, an answer pauses and goes on again."""
    g = server.group()
    if not (g["n_running"] == 0 and g["n_open"] == 1 and g["generated_tokens"] >= least_tokens):
        return False
    time.sleep(0.5)
    later = server.group()
    return later["n_running"] == 0 and later["generated_tokens"] == g["generated_tokens"]


def test_a_slow_reader_gives_up_its_place_and_loses_nothing(server):
    """Its answer fills every buffer; then its sequence leaves the steps until it reads on."""
    fields = {"model": NAME, "prompt": story(4, 20), "max_tokens": 1500, "temperature": 0.7, "seed": 3, "ignore_eos": True}
    whole = server.post("/v1/completions", fields).json()["choices"][0]["text"]
    start = server.group()["generated_tokens"]
    body = json.dumps({**fields, "stream": True, "logprobs": 5}).encode()
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        s.connect(("127.0.0.1", server.port))
        s.settimeout(60)
        s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\n"
                  b"Content-Length: %d\r\n\r\n" % len(body) + body)
        wait_until(lambda: f"paused: {server.group()}", lambda: is_paused(server, start + 200), 30)
        done = server.group()["generated_tokens"]
        assert ask(server, story(6, 30))[0]  # others go on
        assert server.group()["generated_tokens"] <= done + 12 + 1
        events = read_events(s, b"")
    assert "".join(e["choices"][0]["text"] for e in events if e["choices"]) == whole
    assert sum(len(e["choices"][0]["logprobs"]["tokens"]) for e in events if e["choices"] and e["choices"][0]["logprobs"]) == 1500


def test_choices_of_a_prompt_share_its_blocks_and_differ_by_their_index(server):
    def choices(**fields):
        r = server.post("/v1/completions", {"model": NAME, "prompt": story(7, 60), "max_tokens": 12, "temperature": 1.5, "seed": 5,
                                            "ignore_eos": True, **fields})
        assert r.status == 200, r.body
        return [c["text"] for c in r.json()["choices"]], r.json()["usage"]

    before = metric(server, "tensord_cached_tokens_total")
    four, usage = choices(n=4)
    assert len(set(four)) == 4 and usage["completion_tokens"] == 48 and usage["prompt_tokens"] < 100
    assert metric(server, "tensord_cached_tokens_total") - before >= 3 * (usage["prompt_tokens"] // 16 * 16 - 16)
    assert choices(n=2)[0] == four[:2] and choices()[0] == four[:1]
    best, usage = choices(n=2, best_of=4, logprobs=0)
    assert set(best) <= set(four) and usage["completion_tokens"] == 48


def test_speculation_changes_no_answer(server):
    """Texts that repeat themselves, at several temperatures, alone and at once."""
    prompts = [(story(2, 10) + ". ") * 4 + story(2, 3)] + [story(i, 40) for i in range(5)]
    fields = [{"temperature": t, "seed": 9, "max_tokens": 120, "ignore_eos": True} for t in (0, 0.3, 0.9)]
    wanted = [ask(server, p, **f)[0] for p in prompts for f in fields]
    with Server("-n", 2, "--threads", 1, "--speculative-tokens", 6) as s:
        s.wait_ready()
        assert [ask(s, p, **f)[0] for p in prompts for f in fields] == wanted
        wait_until(lambda: f"drafts: {s.group()}", lambda: s.group()["right_drafts"] > 100, 5)
        with concurrent.futures.ThreadPoolExecutor(18) as pool:
            assert list(pool.map(lambda a: ask(s, a[0], **a[1])[0], [(p, f) for p in prompts for f in fields])) == wanted


@pytest.mark.parametrize("layout", [("-n", 2, "--pipeline-parallel-size", 2), ("-n", 3, "--pipeline-parallel-size", 3),
                                    ("-n", 4, "--pipeline-parallel-size", 2)], ids=["pp2", "pp3", "tp2-pp2"])
def test_stages_of_a_pipeline_work_on_different_steps_and_give_the_same_answers(server, layout):
    asked = [{"model": NAME, "prompt": story(i, 20 + 40 * (i % 5)), "max_tokens": 10 + 5 * (i % 7), "ignore_eos": True, "seed": i,
              "temperature": 0.3 * (i % 4), "logprobs": i % 3} for i in range(24)]

    def answer(s, body):
        r = s.post("/v1/completions", body)
        assert r.status == 200, r.body
        return r.json()["choices"]

    wanted = [answer(server, body) for body in asked]
    with Server(*layout, "--threads", 1, "--max-model-len", 512, "--max-num-seqs", 8, "--kv-cache-memory-bytes", "800KiB",
                "--kv-offload-gib", 0.001) as s:
        s.wait_ready()
        with concurrent.futures.ThreadPoolExecutor(24) as pool:
            assert list(pool.map(lambda body: answer(s, body), asked)) == wanted
        streams = [s.stream("/v1/completions", {**body, "stream": True, "max_tokens": 300}) for body in asked[:6]]
        for stream in streams:
            next(iter(stream))
            stream.close()  # goes away in the middle
        assert [answer(s, body) for body in asked[:8]] == wanted[:8]
        wait_until(lambda: s.group(), lambda: s.group()["n_running"] == s.group()["kv_blocks_used"] == 0, 5)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The model in 4 bits: it agrees with itself most of the time."""
    path = tmp_path_factory.mktemp("draft") / "small.gguf"
    r = tensord("quantize", MODEL, path, "--type", "q4_0")
    assert r.returncode == 0, r.stderr
    return path


@pytest.mark.parametrize("layout", [("-n", 1), ("-n", 2), ("-n", 2, "--pipeline-parallel-size", 2, "--kv-offload-gib", 0.001)],
                         ids=["one", "tp2", "pp2"])
def test_a_draft_model_changes_no_answer_and_is_mostly_right(server, small, layout):
    prompts = [story(i, 40) for i in range(4)] + [story(2, 150)]
    fields = [{"temperature": 0}, {"temperature": 1, "seed": 9}, {"temperature": 0.8, "top_k": 30, "seed": 2, "logprobs": 2}]
    asked = [{"model": NAME, "prompt": p, "max_tokens": 60, "ignore_eos": True, **f} for p in prompts for f in fields]

    def answer(s, body):
        r = s.post("/v1/completions", body)
        assert r.status == 200, r.body
        return r.json()["choices"]

    wanted = [answer(server, body) for body in asked]
    with Server(*layout, "--threads", 1, "--max-model-len", 512, "--max-num-seqs", 20, "--speculative-model", small) as s:
        s.wait_ready()
        assert [answer(s, body) for body in asked] == wanted
        wait_until(lambda: f"drafts: {s.group()}", lambda: s.group()["draft_tokens"] > 300, 5)
        group = s.group()
        assert group["right_drafts"] > 0.7 * group["draft_tokens"]
        told = tensord("status", "--url", s.url).stdout.decode()
        assert re.search(r"guesses +\d+ of \d+ tokens right \([789]\d\.\d %\)", told), told
        with concurrent.futures.ThreadPoolExecutor(15) as pool:
            assert list(pool.map(lambda body: answer(s, body), asked)) == wanted


@needs_shared
def test_a_draft_model_of_another_vocabulary_is_refused_by_name(small, tmp_path):
    r = tensord("serve", "--model", MODEL, "--port", 0, "--speculative-model", STORIES)
    assert r.returncode == 1 and b"expected a draft model with the same vocabulary" in r.stderr, r
    r = tensord("generate", "--model", MODEL, "--prompt", "a", "--speculative-model", STORIES)
    assert r.returncode == 1 and b"expected a draft model with the same vocabulary" in r.stderr, r
    r = tensord("serve", "--model", MODEL, "--port", 0, "--speculative-model", tmp_path / "none")
    assert r.returncode == 1 and b"draft model: " in r.stderr, r
    r = tensord("plan", "--model", MODEL, "--speculative-model", small, "--json")
    plan = json.loads(r.stdout)
    assert plan["draft_bytes"] > small.stat().st_size and plan["draft_kv_bytes"] > 0


def test_an_echoed_prompt_has_the_log_probabilities_that_its_tokens_had_when_they_were_drawn(server):
    ids = json.loads(tensord("generate", "--model", MODEL, "--prompt", story(8, 30), "--max-tokens", 40, "--ignore-eos", "--json").stdout)
    prompt, out = ids["prompt_ids"], ids["ids"]

    def post(**fields):
        r = server.post("/v1/completions", {"model": NAME, "temperature": 0, "ignore_eos": True, **fields})
        assert r.status == 200, r.body
        return r.json()["choices"][0], r.json()["usage"]

    drawn, _ = post(prompt=prompt, max_tokens=len(out), logprobs=3)
    echoed, usage = post(prompt=prompt + out, max_tokens=0, logprobs=3, echo=True)
    assert usage["completion_tokens"] == 0 and echoed["finish_reason"] == "length"
    assert echoed["text"].endswith(drawn["text"]) and len(echoed["text"]) > len(drawn["text"])
    lp, n = echoed["logprobs"], len(prompt)
    assert len(lp["tokens"]) == n + len(out) and lp["token_logprobs"][0] is None and lp["top_logprobs"][0] is None
    assert lp["tokens"][n:] == drawn["logprobs"]["tokens"]
    assert lp["token_logprobs"][n:] == drawn["logprobs"]["token_logprobs"]
    assert lp["top_logprobs"][n:] == drawn["logprobs"]["top_logprobs"]
    more, usage = post(prompt=prompt, max_tokens=len(out), logprobs=3, echo=True)
    assert usage["completion_tokens"] == len(out) and more["text"] == echoed["text"]
    assert more["logprobs"] == lp
    listed, _ = post(prompt=prompt + out, max_tokens=1, prompt_logprobs=2)
    assert listed["prompt_logprobs"][0] is None and len(listed["prompt_logprobs"]) == n + len(out)
    for token, value, entry in zip((prompt + out)[1:], lp["token_logprobs"][1:], listed["prompt_logprobs"][1:], strict=True):
        assert entry[str(token)]["logprob"] == value and entry[str(token)]["rank"] >= 1 and len(entry) in (2, 3)
    streamed = [json.loads(e) for e in server.stream("/v1/completions", {"model": NAME, "prompt": "One day", "echo": True, "stream": True,
                                                                         "max_tokens": 5, "temperature": 0}) if e != "[DONE]"]
    assert "".join(c["text"] for e in streamed for c in e["choices"]).startswith("One day")
