"""One request as a client asks it, and all that comes back: over HTTP as a stream or whole, or as a stream of gRPC.

An answer is kept as a plain object of what must not differ between two runs: text, ids, log probabilities as they were
written, finish reasons and counts of tokens. Names, times and what a cache saved are left out.
"""

import dataclasses
import http.client
import json
import socket
import threading
import time

import grpc
from serving import NAME, Stream

LIMIT_S = 120
FINISH = {1: "stop", 2: "length", 3: "cancelled", 4: "error"}


class Lost(Exception):
    """The answer ended otherwise than whole."""


class Refused(Exception):
    """The server did not take the request and said so: try again."""


@dataclasses.dataclass
class Spec:
    """What is asked. how: "stream", "whole" or "grpc"; body: of the HTTP request, or fields of GenerateRequest with `sampling`."""

    name: str
    how: str
    path: str
    body: dict
    is_long: bool = False  # the prompt takes many steps

    def with_seed(self, seed):
        """The same gRPC request with the seed that the server drew for it."""
        return dataclasses.replace(self, body={**self.body, "sampling": {**self.body["sampling"], "seed": seed}})


class SlowStream(Stream):
    """A stream whose kernel buffers are as small as they get, so that who does not read is felt by the server."""

    def __init__(self, server, path, body, timeout):
        self.c = server.connection(timeout)
        self.c.sock = socket.socket()
        self.c.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.c.sock.settimeout(timeout)
        self.c.sock.connect(("127.0.0.1", server.port))
        self.c.request("POST", path, json.dumps(body), {"Content-Type": "application/json", **server.headers()})
        self.response = self.c.getresponse()
        self.status = self.response.status


def exact(text):
    """JSON with its numbers as they were written."""
    return json.loads(text, parse_float=str)


class Told:
    """What an answer has told so far, choice by choice."""

    def __init__(self):
        self.choices = {}
        self.usage = None
        self.prompt = []  # log probabilities of the prompt

    def choice(self, index):
        return self.choices.setdefault(index, {"text": "", "tokens": [], "finish": None})

    def add(self, index, text, tokens, finish):
        c = self.choice(index)
        if c["finish"] is not None and (text or tokens or finish):
            raise Lost(f"choice {index} went on behind its end ({c['finish']}): {text!r}")
        c["text"] += text
        c["tokens"] += tokens
        c["finish"] = finish

    def count(self, usage):
        if self.usage is not None:
            raise Lost("the usage came twice")
        self.usage = [int(usage["prompt_tokens"]), int(usage["completion_tokens"])]

    def final(self):
        if not self.choices:
            raise Lost("it ended without a choice")
        for index, c in self.choices.items():
            if c["finish"] not in ("stop", "length"):
                raise Lost(f"choice {index} has the finish reason {c['finish']}, expected stop or length")
        return self.plain()

    def plain(self):
        return {"choices": [self.choices[i] for i in sorted(self.choices)], "usage": self.usage, "prompt": self.prompt}


def http_tokens(logprobs):
    """The entries of a completion's or a chat's logprobs, one per token."""
    if not logprobs:
        return []
    if "content" in logprobs:
        return logprobs["content"] or []
    return [list(x) for x in zip(logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], logprobs["text_offset"], strict=True)]


def text_of(choice):
    if "text" in choice:
        return choice["text"]
    return (choice.get("delta") or choice.get("message") or {}).get("content") or ""


class Ask(threading.Thread):
    """Asks one Spec in a thread of its own. `result` is "whole", "lost", or "refused" when it was never taken.

    may_retry: one that is refused is asked again until LIMIT_S; without it a refusal counts as lost.
    pause_s: how long the client takes nothing after its first event; the server feels it.
    """

    def __init__(self, server, rpc, channel, spec, may_retry=False, pause_s=0.0):
        super().__init__(daemon=True)
        self.server, self.rpc, self.channel, self.spec = server, rpc, channel, spec
        self.may_retry, self.pause_s = may_retry, pause_s
        self.result, self.why, self.answer, self.seed = None, "", None, None
        self.n_refused = 0
        self.asked_at = time.time()
        self.clear()

    def clear(self):
        self.told = Told()
        self.times = []  # seconds since the epoch at which something new arrived
        self.is_open = False

    @property
    def n_events(self):
        return len(self.times)

    def run(self):
        ask = {"stream": self.ask_stream, "whole": self.ask_whole, "grpc": self.ask_grpc}[self.spec.how]
        end = time.monotonic() + LIMIT_S
        while self.result is None:
            try:
                ask()
                self.answer = self.told.final()
                self.result = "whole"
            except Refused as e:
                self.n_refused += 1
                if not self.may_retry or time.monotonic() > end:
                    self.result, self.why = "refused" if self.may_retry else "lost", f"refused: {e}"
                else:
                    self.clear()
                    time.sleep(0.02)
            except (Lost, OSError, ValueError, KeyError, http.client.HTTPException) as e:
                self.result, self.why = "lost", f"{type(e).__name__}: {e}"
            except grpc.RpcError as e:
                self.result, self.why = "lost", f"{e.code().name}: {e.details()}"

    def took(self):
        self.is_open = True
        self.times.append(time.time())

    # ---- HTTP ----

    def check_status(self, status, body):
        if status in (429, 503):
            raise Refused(f"{status} {body[:200]!r}")
        if status != 200:
            raise Lost(f"status {status}: {body[:300]!r}")

    def ask_whole(self):
        try:
            r = self.server.post(self.spec.path, self.spec.body, LIMIT_S)
        except ConnectionRefusedError as e:
            raise Refused(str(e)) from e
        self.check_status(r.status, r.body)
        body = exact(r.body)
        for c in body["choices"]:
            self.told.add(c["index"], text_of(c), http_tokens(c.get("logprobs")), c["finish_reason"])
        self.told.prompt = [c.get("prompt_logprobs") for c in body["choices"]]
        self.told.count(body["usage"])
        self.took()

    def ask_stream(self):
        body = {**self.spec.body, "stream": True, "stream_options": {"include_usage": True}}
        try:
            stream = (SlowStream if self.pause_s else Stream)(self.server, self.spec.path, body, LIMIT_S)
        except ConnectionRefusedError as e:
            raise Refused(str(e)) from e
        try:
            if stream.status != 200:
                self.check_status(stream.status, stream.response.read())
            self.is_open = True
            self.read_events(stream)
        finally:
            stream.close()

    def read_events(self, stream):
        is_done = False
        for data in stream:
            if is_done:
                raise Lost(f"an event behind [DONE]: {data[:200]}")
            if data == "[DONE]":
                is_done = True
                continue
            chunk = exact(data)
            if "error" in chunk:
                raise Lost(f"error event: {chunk['error'].get('message')}")
            for c in chunk["choices"]:
                self.told.add(c["index"], text_of(c), http_tokens(c.get("logprobs")), c["finish_reason"])
            if chunk.get("usage"):
                self.told.count(chunk["usage"])
            if chunk["choices"]:
                self.took()
            if self.pause_s and self.n_events == 1:
                time.sleep(self.pause_s)
        if not is_done:
            raise Lost("the stream ended without [DONE]")

    # ---- gRPC ----

    def ask_grpc(self):
        fields = dict(self.spec.body)
        fields["sampling"] = self.rpc.message("Sampling", **fields["sampling"])
        if "chat" in fields:
            messages = [self.rpc.message("ChatMessage", role=r.encode(), content=t.encode()) for r, t in fields["chat"]]
            fields["chat"] = self.rpc.message("ChatPrompt", messages=messages)
        request = self.rpc.message("GenerateRequest", model=NAME, **fields)
        try:
            for e in self.rpc.call(self.channel, "Inference/Generate", request, timeout=LIMIT_S):
                self.read_event(e)
        except grpc.RpcError as e:
            if e.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED) and not self.is_open:
                raise Refused(f"{e.code().name}: {e.details()}") from e
            raise

    def read_event(self, e):
        if e.prompt_logprobs:
            self.told.prompt += [
                [p.position, p.id, p.text.hex(), p.logprob, p.rank, [[t.id, t.logprob] for t in p.top_logprobs]] for p in e.prompt_logprobs
            ]
            return
        tokens = []
        c = self.told.choice(e.choice)
        if e.WhichOneof("has_token"):
            if e.index != len(c["tokens"]):
                raise Lost(f"choice {e.choice}: token {e.index} came where {len(c['tokens'])} was expected")
            tokens = [[e.token_id, e.logprob, [[t.id, t.logprob] for t in e.top_logprobs]]]
        self.told.add(e.choice, e.text.decode(), tokens, FINISH.get(e.finish_reason))
        if e.HasField("usage"):
            self.told.count({"prompt_tokens": e.usage.prompt_tokens, "completion_tokens": e.usage.completion_tokens})
            self.seed = e.usage.seed
        self.took()


def written(answer):
    return json.dumps(answer, sort_keys=True).encode()


def bytes_different(golden, answer):
    """At how many bytes two answers differ, written out; what one is longer counts too."""
    a, b = written(golden), written(answer)
    return 0 if a == b else max(1, sum(x != y for x, y in zip(a, b)) + abs(len(a) - len(b)))


def excerpts(golden, answer):
    """Both as they are written around the first byte at which they differ."""
    a, b = written(golden), written(answer)
    at = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    return tuple(x[max(0, at - 60) : at + 60].decode(errors="replace") for x in (a, b))


def is_beginning(golden, told):
    """Whether what a broken answer told is how the golden one begins: nothing wrong, nothing twice."""
    for mine, whole in zip(told["choices"], golden["choices"]):
        n = len(mine["tokens"])
        if not whole["text"].startswith(mine["text"]) or whole["tokens"][:n] != mine["tokens"]:
            return False
    return True
