"""The official openai Python client against the server."""

import json
import math

import openai
import pytest
from serving import MODEL, NAME, needs_chat, needs_model, tensord

pytest_plugins = ["serving"]
pytestmark = needs_model
PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=60) as c:
        yield c


def complete(client, prompt=PROMPT, **fields):
    return client.completions.create(model=NAME, prompt=prompt, **{"max_tokens": 16, "temperature": 0, **fields})


def chat(client, content="Say hello.", **fields):
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": content}]
    return client.chat.completions.create(model=NAME, messages=messages, **{"max_tokens": 16, "temperature": 0, **fields})


def test_models(client):
    models = client.models.list().data
    assert [m.id for m in models] == [NAME] and models[0].object == "model"
    assert client.models.retrieve(NAME).id == NAME


def test_a_completion(client):
    r = complete(client)
    assert r.object == "text_completion" and r.model == NAME and r.id.startswith("cmpl-")
    assert r.choices[0].text and r.choices[0].index == 0
    assert r.usage.completion_tokens <= 16
    assert complete(client).choices == r.choices


def test_several_prompts_have_a_choice_each(client):
    prompts = [PROMPT, "The dog", "A girl"]
    r = complete(client, prompts)
    assert [c.index for c in r.choices] == [0, 1, 2]
    assert [c.text for c in r.choices] == [complete(client, p).choices[0].text for p in prompts]


def test_a_streamed_completion_with_usage(client):
    whole = complete(client)
    chunks = list(complete(client, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.text for chunk in chunks for c in chunk.choices) == whole.choices[0].text
    assert chunks[-1].usage == whole.usage and chunks[-1].choices == []
    assert all(chunk.usage is None for chunk in chunks[:-1])


def check_logprobs(values):
    for value, top in values:
        assert value <= 0 and math.isfinite(value)
        assert len(top) == 3 and max(top) == top[0] and sum(math.exp(t) for t in top) < 1.0001
        assert value == pytest.approx(top[0]), "a greedy token is the most likely one"


def test_logprobs_of_a_completion(client):
    r = complete(client, logprobs=3, max_tokens=8)
    lp = r.choices[0].logprobs
    assert len(lp.tokens) == len(lp.token_logprobs) == len(lp.top_logprobs) == len(lp.text_offset) == r.usage.completion_tokens
    for value, top in zip(lp.token_logprobs, lp.top_logprobs):
        assert value <= 0 and max(top.values()) == pytest.approx(value) and len(top) <= 3
    assert lp.text_offset == sorted(lp.text_offset)
    assert complete(client).choices[0].logprobs is None


def test_a_stop_string_ends_the_text_before_it(client):
    whole = complete(client, max_tokens=40).choices[0].text
    word = whole.split()[3]
    r = complete(client, max_tokens=40, stop=[word])
    assert r.choices[0].finish_reason == "stop"
    assert r.choices[0].text == whole[: whole.index(word)]
    streamed = complete(client, max_tokens=40, stop=word, stream=True)
    assert "".join(c.text for chunk in streamed for c in chunk.choices) == r.choices[0].text


def test_a_seed_fixes_the_draws(client):
    draw = lambda seed: complete(client, temperature=1.0, seed=seed, max_tokens=24).choices[0].text
    assert draw(7) == draw(7)
    assert len({draw(seed) for seed in range(6)}) > 1


def test_whole_logits_and_the_largest_of_them_give_the_same_tokens(client):
    """Logprobs need every logit of a step; without them greedy and top-k draw from the ranks' largest."""
    for temperature, top_k, least in ((0, 0, 0), (1.0, 5, 0), (0.8, 40, 30), (1.3, 62, 40)):
        fields = {"temperature": temperature, "max_tokens": 48, "seed": 11, "extra_body": {"top_k": top_k, "min_tokens": least}}
        assert complete(client, **fields).choices[0].text == complete(client, logprobs=0, **fields).choices[0].text


def test_sampling_parameters_are_taken(client):
    greedy = complete(client).choices[0].text
    assert complete(client, temperature=1.0, extra_body={"top_k": 1}).choices[0].text == greedy
    assert complete(client, temperature=1.0, top_p=1e-6).choices[0].text == greedy
    assert complete(client, temperature=1.0, extra_body={"min_p": 1.0}).choices[0].text == greedy
    long = {"max_tokens": 200, "extra_body": {"ignore_eos": True}}
    assert complete(client, presence_penalty=2, frequency_penalty=2, **long).choices[0].text != complete(client, **long).choices[0].text


def test_a_bias_bans_or_forces_a_token(client):
    greedy = json.loads(tensord("generate", "--model", MODEL, "--prompt", PROMPT, "--max-tokens", 2, "--json").stdout)
    first, second = greedy["ids"]
    plain = complete(client, max_tokens=1, logprobs=2).choices[0]
    banned = complete(client, max_tokens=1, logit_bias={str(first): -100}).choices[0].text
    assert banned != plain.text and banned in plain.logprobs.top_logprobs[0]
    forced = complete(client, max_tokens=1, logit_bias={str(second): 100}).choices[0].text
    assert forced not in ("", plain.text) and (plain.text + forced).strip() == greedy["text"].strip()


@needs_chat
def test_a_chat(client):
    r = chat(client)
    assert r.object == "chat.completion" and r.id.startswith("chatcmpl-")
    assert r.choices[0].message.role == "assistant" and isinstance(r.choices[0].message.content, str)
    assert chat(client).choices == r.choices


@needs_chat
def test_a_streamed_chat_with_usage(client):
    whole = chat(client)
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices) == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage and chunks[-1].choices == []
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason


@needs_chat
def test_logprobs_of_a_chat(client):
    r = chat(client, logprobs=True, top_logprobs=3, max_tokens=8)
    content = r.choices[0].logprobs.content
    check_logprobs([(t.logprob, [x.logprob for x in t.top_logprobs]) for t in content])
    assert b"".join(bytes(t.bytes) for t in content).decode(errors="replace").startswith(r.choices[0].message.content)


@needs_chat
def test_the_parts_of_a_message_are_joined(client):
    parts = [{"type": "text", "text": "Say hello."}]
    assert chat(client, parts).choices[0].message == chat(client).choices[0].message


# ---- errors, as the client raises them ----


def test_wrong_values_are_bad_requests(client):
    for fields in ({"temperature": -1}, {"top_p": 2}, {"max_tokens": 0}, {"logprobs": 99}, {"n": 0}, {"presence_penalty": 9}):
        with pytest.raises(openai.BadRequestError) as e:
            complete(client, **fields)
        assert e.value.param == next(iter(fields)) and next(iter(fields)) in e.value.message
        assert e.value.type == "invalid_request_error"


def test_what_is_not_built_is_refused_by_name(client):
    with pytest.raises(openai.BadRequestError, match="suffix"):
        complete(client, suffix="end")
    with pytest.raises(openai.BadRequestError, match="tools"):
        chat(client, tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}])


def test_an_unknown_field_is_tolerated(client):
    assert complete(client, extra_body={"no_such_field": {"a": [1]}}).choices[0].text == complete(client).choices[0].text


def test_a_prompt_that_does_not_fit_is_a_bad_request(client):
    with pytest.raises(openai.BadRequestError) as e:
        complete(client, "once upon a time " * 3000)
    assert "context" in e.value.message


def test_an_unknown_model_is_not_found(client):
    with pytest.raises(openai.NotFoundError) as e:
        client.completions.create(model="other", prompt=PROMPT, max_tokens=1)
    assert "other" in e.value.message and NAME in e.value.message
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_a_key_is_asked_for(secure, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(secure.tls))
    with openai.OpenAI(base_url=secure.url + "/v1", api_key="wrong", max_retries=0) as c, pytest.raises(openai.AuthenticationError):
        c.models.list()
    with openai.OpenAI(base_url=secure.url + "/v1", api_key=secure.key, max_retries=0) as c:
        assert [m.id for m in c.models.list().data] == [MODEL.name]
        assert complete(c).choices[0].text
