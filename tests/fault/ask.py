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
import uuid

import grpc
from serving import NAME, Stream, channel_to

LIMIT_S = 120
FINISH = {1: "stop", 2: "length", 3: "cancelled", 4: "error"}


class Lost(Exception):
    """The answer ended otherwise than whole."""


class Broken(Exception):
    """The answer stopped before its end."""


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


class EventStream(Stream):
    """A stream by its events, (id, data) each. is_slow: with kernel buffers as small as they get, so that who does not read is felt by
    the server."""

    def __init__(self, server, method, path, body, headers, is_slow=False):
        self.c = server.connection(LIMIT_S)
        if is_slow:
            self.c.sock = socket.socket()
            self.c.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            self.c.sock.settimeout(LIMIT_S)
            self.c.sock.connect(("127.0.0.1", server.port))
        self.c.request(method, path, body and json.dumps(body), {"Content-Type": "application/json", **server.headers(), **headers})
        self.response = self.c.getresponse()
        self.status = self.response.status

    def __iter__(self):
        event = {}
        for line in self.response:
            name, _, value = line.decode().rstrip("\n").partition(": ")
            if name:
                event[name] = value
            elif event:
                yield event.get("id"), event.get("data")
                event = {}


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
    comes_back: when the connection breaks it is taken up where it was, until LIMIT_S: by its id, or where none was told yet by the
    idempotency key that it has. Without it a broken connection counts as lost.
    """

    def __init__(self, server, rpc, channel, spec, may_retry=False, pause_s=0.0, comes_back=False):
        super().__init__(daemon=True)
        self.server, self.rpc, self.channel, self.spec = server, rpc, channel, spec
        self.may_retry, self.pause_s = may_retry, pause_s
        self.comes_back, self.key, self.id, self.last_event = comes_back, uuid.uuid4().hex, None, None
        self.result, self.why, self.answer, self.seed = None, "", None, None
        self.n_refused = self.n_returns = 0
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
                if not (self.may_retry or self.comes_back) or time.monotonic() > end:
                    self.result, self.why = "refused" if self.may_retry else "lost", f"refused: {e}"
                else:
                    if not self.comes_back:
                        self.clear()
                    time.sleep(0.02)
            except (Broken, OSError, http.client.HTTPException, grpc.RpcError, ValueError) as e:
                self.why = f"{e.code().name}: {e.details()}" if isinstance(e, grpc.RpcError) else f"{type(e).__name__}: {e}"
                if not self.comes_back or time.monotonic() > end:
                    self.result = "lost"
                self.n_returns += 1
                time.sleep(0.02)
            except (Lost, KeyError) as e:
                self.result, self.why = "lost", f"{type(e).__name__}: {e}"

    def took(self):
        self.is_open = True
        self.times.append(time.time())

    # ---- HTTP ----

    def check_status(self, status, body):
        if status in (429, 503):
            raise Refused(f"{status} {body[:200]!r}")
        if status != 200:
            raise Lost(f"status {status}: {body[:300]!r}")

    def headers(self):
        return {"Idempotency-Key": self.key} if self.comes_back else {}

    def ask_whole(self):
        c = self.server.connection(LIMIT_S)
        try:
            c.request("POST", self.spec.path, json.dumps(self.spec.body), {"Content-Type": "application/json", **self.server.headers(), **self.headers()})
            r = c.getresponse()
            status, text = r.status, r.read()
        except ConnectionRefusedError as e:
            raise Refused(str(e)) from e
        finally:
            c.close()
        self.check_status(status, text)
        body = exact(text)
        for c in body["choices"]:
            self.told.add(c["index"], text_of(c), http_tokens(c.get("logprobs")), c["finish_reason"])
        self.told.prompt = [c.get("prompt_logprobs") for c in body["choices"]]
        self.told.count(body["usage"])
        self.took()

    def open_stream(self):
        if self.last_event:
            return EventStream(self.server, "GET", f"/v1/requests/{self.id}/stream", None, {"Last-Event-ID": self.last_event})
        body = {**self.spec.body, "stream": True, "stream_options": {"include_usage": True}}
        return EventStream(self.server, "POST", self.spec.path, body, self.headers(), bool(self.pause_s))

    def ask_stream(self):
        try:
            stream = self.open_stream()
        except ConnectionRefusedError as e:
            raise Refused(str(e)) from e
        try:
            if stream.status != 200:
                self.check_status(stream.status, stream.response.read())
            self.id = stream.response.getheader("X-Request-Id")
            self.is_open = True
            self.read_events(stream)
        finally:
            stream.close()

    def read_events(self, stream):
        is_done = False
        for event_id, data in stream:
            if data is None:
                continue  # a comment
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
            self.last_event = event_id
            if chunk["choices"]:
                self.took()
            if self.pause_s and self.n_events == 1:
                time.sleep(self.pause_s)
        if not is_done:
            raise Broken("the stream ended without [DONE]")

    # ---- gRPC ----

    def ask_grpc(self):
        fields = dict(self.spec.body)
        fields["sampling"] = self.rpc.message("Sampling", **fields["sampling"])
        if "chat" in fields:
            messages = [self.rpc.message("ChatMessage", role=r.encode(), content=t.encode()) for r, t in fields["chat"]]
            fields["chat"] = self.rpc.message("ChatPrompt", messages=messages)
        if self.comes_back:
            fields["idempotency_key"] = self.key.encode()
        request = self.rpc.message("GenerateRequest", model=NAME, **fields)
        channel = channel_to(self.server) if self.n_returns else self.channel  # the one before is closed
        try:
            for e in self.resume(channel) if self.id else self.rpc.call(channel, "Inference/Generate", request, timeout=LIMIT_S):
                self.read_event(e)
        except grpc.RpcError as e:
            if e.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED) and not self.is_open and not self.comes_back:
                raise Refused(f"{e.code().name}: {e.details()}") from e
            raise
        except ValueError as e:  # what grpc says of a channel that was closed
            raise Broken(str(e)) from e
        finally:
            if channel is not self.channel:
                channel.close()

    def resume(self, channel):
        n = [len(self.told.choice(c)["tokens"]) for c in range(max(self.told.choices, default=-1) + 1)]
        if not any(n):
            self.told.prompt = []  # they come again
        return self.rpc.call(channel, "Inference/Resume", self.rpc.message("ResumeRequest", id=self.id, n_known=n), timeout=LIMIT_S)

    def read_event(self, e):
        self.id = self.id or e.id
        if e.prompt_logprobs:
            self.told.prompt += [
                [p.position, p.id, p.text.hex(), p.logprob, p.rank, [[t.id, t.logprob] for t in p.top_logprobs]] for p in e.prompt_logprobs
            ]
            return
        tokens = []
        c = self.told.choice(e.choice)
        if self.n_returns and e.finish_reason and c["finish"]:  # the last one of a choice comes again
            self.count_usage(e)
            return
        if e.WhichOneof("has_token"):
            if e.index != len(c["tokens"]):
                raise Lost(f"choice {e.choice}: token {e.index} came where {len(c['tokens'])} was expected")
            tokens = [[e.token_id, e.logprob, [[t.id, t.logprob] for t in e.top_logprobs]]]
        self.told.add(e.choice, e.text.decode(), tokens, FINISH.get(e.finish_reason))
        self.count_usage(e)
        self.took()

    def count_usage(self, e):
        if e.HasField("usage"):
            self.told.count({"prompt_tokens": e.usage.prompt_tokens, "completion_tokens": e.usage.completion_tokens})
            self.seed = e.usage.seed


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
