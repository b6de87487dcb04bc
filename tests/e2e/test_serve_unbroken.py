"""Workers are killed while the official openai client reads: it gets the text that it would have had, and notices nothing."""

import concurrent.futures
import os
import signal

import openai
import pytest
from serving import NAME, Server, needs_chat, needs_model, wait_until
from test_serve_faults import PROMPT, SLOW

pytest_plugins = ["serving"]
pytestmark = needs_model


@pytest.fixture(scope="module")
def breakable():
    """Two ranks whose group may be killed; every test leaves it ready."""
    with Server("-n", 2, "--threads", 1) as s:
        s.wait_ready()
        yield s
        s.stop()


def client_of(server):
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def client(breakable):
    with client_of(breakable) as c:
        yield c


def complete(client, **fields):
    extra = {"ignore_eos": True, **fields.pop("extra_body", {})}
    return client.completions.create(model=NAME, **{"prompt": PROMPT, "max_tokens": 400, "temperature": 0, "extra_body": extra, **fields})


def chat(client, **fields):
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Tell me a story about a dog."}]
    return client.chat.completions.create(model=NAME, messages=messages, **{"max_tokens": 400, "temperature": 0, "extra_body": {"ignore_eos": True}, **fields})


def kill_rank(server, rank):
    os.kill(server.group()["ranks"][rank]["pid"], signal.SIGKILL)


def read_killing(server, chunks, rank, at):
    """All chunks of a stream during which a rank is killed when `at` of them have come. The loss was real: the group is a new one."""
    before = server.group()["generation"]
    got = []
    for chunk in chunks:
        got.append(chunk)
        if len(got) == at:
            kill_rank(server, rank)
    wait_until("a new group", lambda: server.is_ready() and server.group()["generation"] > before, 30)
    return got


@pytest.mark.parametrize("rank,at", [(0, 1), (1, 20), (0, 150), (1, 300)])
def test_a_completion_goes_on_when_a_rank_is_killed(breakable, client, rank, at):
    whole = complete(client)
    got = read_killing(breakable, complete(client, stream=True, stream_options={"include_usage": True}), rank, at)
    assert "".join(c.text for chunk in got for c in chunk.choices) == whole.choices[0].text
    assert [c.finish_reason for chunk in got for c in chunk.choices if c.finish_reason] == ["length"]
    assert got[-1].usage.completion_tokens == whole.usage.completion_tokens == 400
    assert got[-1].usage.prompt_tokens == whole.usage.prompt_tokens


@needs_chat
def test_a_chat_with_logprobs_goes_on_when_a_rank_is_killed(breakable, client):
    fields = {"temperature": 0.9, "seed": 11, "logprobs": True, "top_logprobs": 2}
    whole = chat(client, **fields).choices[0]
    got = read_killing(breakable, chat(client, stream=True, **fields), 1, 60)
    choices = [c for chunk in got for c in chunk.choices]
    assert "".join(c.delta.content or "" for c in choices) == whole.message.content
    assert [t for c in choices if c.logprobs for t in c.logprobs.content] == whole.logprobs.content
    assert sum(c.delta.role is not None for c in choices) == 1


def test_all_choices_and_a_stop_string_are_as_without_the_loss(breakable, client):
    several = {"n": 3, "temperature": 1.0, "seed": 5, "max_tokens": 150}
    whole = complete(client, **several)
    got = read_killing(breakable, complete(client, stream=True, **several), 0, 120)
    for choice in whole.choices:
        assert "".join(c.text for chunk in got for c in chunk.choices if c.index == choice.index) == choice.text
    text = complete(client).choices[0].text
    stop = text[len(text) // 2 : len(text) // 2 + 9]
    stopped = complete(client, stop=[stop]).choices[0]
    assert stopped.finish_reason == "stop" and stopped.text == text[: text.index(stop)]
    got = read_killing(breakable, complete(client, stream=True, stop=[stop]), 1, 30)
    assert "".join(c.text for chunk in got for c in chunk.choices) == stopped.text


def test_whole_answers_come_when_ranks_are_killed_twice():
    """Three clients wait for whole answers while one reads a stream that shows how far they are."""
    with Server("-n", 2, *SLOW) as s, client_of(s) as client, concurrent.futures.ThreadPoolExecutor(3) as pool:
        s.wait_ready()
        wanted = [complete(client, temperature=0.8, seed=i, max_tokens=100).choices[0].text for i in range(3)]
        golden = complete(client, max_tokens=200).choices[0].text
        before, is_killed = s.group()["generation"], False
        stream = complete(client, max_tokens=200, stream=True)
        text = next(iter(stream)).choices[0].text
        answers = [pool.submit(complete, client, temperature=0.8, seed=i, max_tokens=100) for i in range(3)]
        wait_until("they run", lambda: s.group()["n_open"] == 4, 10, 0.001)
        kill_rank(s, 1)
        for n, chunk in enumerate(stream):
            text += "".join(c.text for c in chunk.choices)
            if n > 60 and not is_killed and s.is_ready() and s.group()["generation"] > before:
                is_killed = True
                kill_rank(s, 0)
        assert [a.result(60).choices[0].text for a in answers] == wanted
        assert is_killed and text == golden
        wait_until("a third group", lambda: s.is_ready() and s.group()["generation"] == before + 2, 30)
        s.stop()
