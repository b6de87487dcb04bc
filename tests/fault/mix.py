"""The requests that are open when a fault strikes: made from a seed, so that every way of asking and of sampling occurs, and what
each of them is answered without a fault."""

import concurrent.futures

from ask import Ask, Spec
from serving import HAS_CHAT, NAME

WORDS = "once there was a little dog who ran to the big red house and saw a cat in the tree with a bird near the park".split()
GREEDY = {"temperature": 0}
SAMPLING = [
    GREEDY,
    {"temperature": 0.9, "top_p": 0.95},
    {"temperature": 1.1, "top_k": 40},
    {"temperature": 0.8, "min_p": 0.05},
    {"temperature": 0.8, "repetition_penalty": 1.2, "frequency_penalty": 0.3, "presence_penalty": 0.2},
    {"temperature": 0.7, "dry_multiplier": 0.8, "repetition_penalty": 1.1},
    {"temperature": 1.0, "mirostat": 2},
    {"temperature": 1.0, "xtc_probability": 0.5, "xtc_threshold": 0.1, "typical_p": 0.9},
]
PLAIN, LOGPROBS, CHAT, CHAT_LOGPROBS, STOP, SEVERAL, BEST = "plain", "logprobs", "chat", "chat-logprobs", "stop", "n", "best-of"
SHAPES = [PLAIN, LOGPROBS, CHAT, CHAT_LOGPROBS, STOP, SEVERAL, BEST]


def words(rng, least, most):
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(least, most)))


def pick_sampling(rng, shape, i):
    """Of choices that must differ a warm one; DRY and the like by turns."""
    warm = [s for s in SAMPLING if s["temperature"] > 0]
    return warm[i % len(warm)] if shape in (SEVERAL, BEST) else SAMPLING[i % len(SAMPLING)]


def http_spec(rng, how, shape, i, prompt, max_tokens, is_long):
    body = {"model": NAME, "max_tokens": max_tokens, "ignore_eos": True, "seed": 1000 + i, **pick_sampling(rng, shape, i)}
    is_chat = shape in (CHAT, CHAT_LOGPROBS)
    if is_chat:
        body["messages"] = [{"role": "system", "content": "Be short."}, {"role": "user", "content": prompt}]
    else:
        body["prompt"] = prompt
    if shape == LOGPROBS:
        body["logprobs"] = 3
        if how == "whole":
            body["prompt_logprobs"] = 1
    if shape == CHAT_LOGPROBS:
        body |= {"logprobs": True, "top_logprobs": 3}
    if shape == SEVERAL:
        body["n"] = 3
    if shape == BEST:
        body |= {"n": 2, "best_of": 3}
    path = "/v1/chat/completions" if is_chat else "/v1/completions"
    return Spec(f"{how} {shape} {i}", how, path, body, is_long)


def grpc_spec(rng, shape, i, prompt, max_tokens, is_long):
    sampling = dict(pick_sampling(rng, shape, i))
    if sampling["temperature"] == 0 or i % 3:  # the others take the seed that the server draws
        sampling["seed"] = 1000 + i
    body = {"sampling": sampling, "max_tokens": max_tokens, "ignore_eos": True, "request_id": f"fault-{i}"}
    if shape in (CHAT, CHAT_LOGPROBS):
        body["chat"] = [("system", "Be short."), ("user", prompt)]
    else:
        body["text"] = prompt.encode()
    if shape in (LOGPROBS, CHAT_LOGPROBS):
        sampling["n_logprobs"] = 3
    if shape == LOGPROBS:
        body["prompt_logprobs"] = 1
    if shape == SEVERAL:
        body["n"] = 3
    if shape == BEST:
        body |= {"n": 2, "best_of": 3}
    return Spec(f"grpc {shape} {i}", "grpc", "", body, is_long)


def make_spec(rng, how, shape, i, is_long=False):
    if not HAS_CHAT and shape in (CHAT, CHAT_LOGPROBS):
        shape = PLAIN
    if how == "stream" and shape == BEST:  # which of them is best is known at the end
        shape = SEVERAL
    # Every word is about a token; the model takes 2048 in all. Several choices share the prompt.
    prompt = f"{rng.choice(WORDS)} {i} " + (words(rng, 1100, 1300) if is_long else words(rng, 2, 60))
    max_tokens = rng.randint(8, 32) if is_long else rng.randint(60, 120) if shape in (SEVERAL, BEST) else rng.randint(120, 260)
    if how == "grpc":
        return grpc_spec(rng, shape, i, prompt, max_tokens, is_long)
    return http_spec(rng, how, shape, i, prompt, max_tokens, is_long)


class Mix:
    """The specs of a run and their golden answers. `golden` of a name: as the server without a fault answers it."""

    def __init__(self, rng, golden_server, rpc, channel, n_each=3):
        self.server, self.rpc, self.channel = golden_server, rpc, channel
        self.specs, self.golden = [], {}
        i = 0
        for how in ("stream", "whole", "grpc"):
            for shape in SHAPES:
                for _ in range(n_each):
                    self.specs.append(make_spec(rng, how, shape, i))
                    i += 1
            for shape in (PLAIN, LOGPROBS, CHAT):
                self.specs.append(make_spec(rng, how, shape, i, True))
                i += 1
        self.add_stops(rng)
        for spec, ask in zip(self.specs, self.answer(self.specs), strict=True):
            self.golden[spec.name] = ask.answer

    def answer(self, specs):
        """The finished asks of a server that is left in peace, a few at a time; one that is not whole ends the run."""

        def one(spec):
            ask = Ask(self.server, self.rpc, self.channel, spec)
            ask.run()
            if ask.result != "whole":
                raise RuntimeError(f"without a fault '{spec.name}' is not answered: {ask.why}")
            return ask

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            return list(pool.map(one, specs))

    def add_stops(self, rng):
        """A stop string is a piece of what the request would have said, across words, so that it does stop."""
        chosen = [s for s in self.specs if f" {STOP} " in s.name]
        for spec, ask in zip(chosen, self.answer(chosen), strict=True):
            if spec.how == "grpc":
                spec.body["sampling"].setdefault("seed", ask.seed)
            text = ask.answer["choices"][0]["text"]
            at = len(text) * rng.randint(40, 80) // 100
            stop = text[at : at + rng.randint(3, 12)]
            spec.body["stop"] = [stop.encode()] if spec.how == "grpc" else [stop]

    def pick(self, rng, n, hows, is_long=False):
        """n different specs of these ways of asking, as evenly as they go."""
        picked = []
        pools = {how: [s for s in self.specs if s.how == how and s.is_long == is_long] for how in hows}
        for how in hows:
            rng.shuffle(pools[how])
        while len(picked) < n and any(pools.values()):
            for how in hows:
                if pools[how] and len(picked) < n:
                    picked.append(pools[how].pop())
        return picked

    def golden_of(self, ask):
        """What the finished ask should have been told; where the server drew the seed, asked again with that seed."""
        if ask.spec.how == "grpc" and "seed" not in ask.spec.body["sampling"]:
            if ask.seed is None:
                return None
            return self.answer([ask.spec.with_seed(ask.seed)])[0].answer
        return self.golden[ask.spec.name]
