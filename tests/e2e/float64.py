"""A Qwen3 forward in float64 numpy, over the F32 matrices of a GGUF file: what a model's scores would be if nothing were
rounded but its weights, and perhaps keys and values as a cache stores them."""
import math
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # small matrices: more threads would mostly wait for each other
import numpy  # noqa: E402

from gguffile import Gguf  # noqa: E402


def as_f16(x):
    return x.astype("f2").astype("f8")


def as_bf16(x):
    """Round to nearest, ties to even; x holds no infinities."""
    bits = x.astype("f4").view("u4")
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view("f4").astype("f8")


def as_e4m3(x):
    """The Open Compute Project's 8-bit float, without a scale: four bits at least of 2^-6 and more, steps of 2^-9 below, 448 at most."""
    step = numpy.exp2(numpy.maximum(numpy.floor(numpy.log2(numpy.maximum(numpy.abs(x), 1e-30))), -6) - 3)
    return numpy.clip(numpy.rint(x / step) * step, -448, 448)


def as_q8_0(x):
    """Blocks of 32 with one F16 scale: GGUF's Q8_0, as ggml's reference makes it."""
    blocks = x.astype("f4").reshape(-1, 32)
    scale = numpy.abs(blocks).max(1, keepdims=True) / numpy.float32(127)
    q = numpy.rint(numpy.divide(blocks, scale, out=numpy.zeros_like(blocks), where=scale > 0))
    return (q * as_f16(scale)).reshape(x.shape)


def as_q4_0(x):
    """The same of Q4_0: the element farthest from zero becomes -8."""
    blocks = x.astype("f4").reshape(-1, 32)
    scale = numpy.take_along_axis(blocks, numpy.abs(blocks).argmax(1, keepdims=True), 1) / numpy.float32(-8)
    q = numpy.divide(blocks, scale, out=numpy.zeros_like(blocks), where=scale != 0) + numpy.float32(8.5)
    return ((numpy.minimum(15, numpy.trunc(q)) - 8) * as_f16(scale)).reshape(x.shape)


class Model:
    def __init__(self, path, stored=lambda x: x):
        """Of a file whose tensors are all F32, as `tensord quantize --type f32` writes it. stored: what a cache makes of keys
        and values, rows of a head's elements."""
        self.stored = stored
        file = Gguf(path)
        assert file.metadata["general.architecture"] == b"qwen3" and set(file.types().values()) == {"F32"}
        self.metadata = file.metadata
        self.tensors = {name: numpy.frombuffer(data, "<f4").reshape(shape[::-1]).astype("f8")
                        for name, (_, shape, data) in file.tensors.items()}

    def norm(self, x, name):
        eps = self.metadata["qwen3.attention.layer_norm_rms_epsilon"]
        return x / numpy.sqrt((x * x).mean(-1, keepdims=True) + eps) * self.tensors[name]

    def heads(self, x, layer, name, dim):
        """[heads x n x dim] of one projection; q and k normalised and rotated, elements i and i + dim / 2 together."""
        y = (x @ self.tensors[f"blk.{layer}.attn_{name}.weight"].T).reshape(len(x), -1, dim).swapaxes(0, 1)
        if name == "v":
            return y
        y = self.norm(y, f"blk.{layer}.attn_{name}_norm.weight")
        freq = self.metadata["qwen3.rope.freq_base"] ** (-numpy.arange(0, dim, 2) / dim)
        angle = numpy.outer(numpy.arange(len(x)), freq)
        cos, sin, a, b = numpy.cos(angle), numpy.sin(angle), y[..., :dim // 2], y[..., dim // 2:]
        return numpy.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    def attend(self, x, layer, dim):
        q, k, v = (self.heads(x, layer, name, dim) for name in "qkv")
        k, v = (self.stored(t).repeat(len(q) // len(k), 0) for t in (k, v))
        score = q @ k.swapaxes(1, 2) / math.sqrt(dim) + numpy.triu(numpy.full((len(x), len(x)), -numpy.inf), 1)
        e = numpy.exp(score - score.max(-1, keepdims=True))
        return (e / e.sum(-1, keepdims=True) @ v).swapaxes(0, 1).reshape(len(x), -1)

    def nll(self, ids):
        """-log p of ids[1], ids[2] ..., each after all before it."""
        t, dim = self.tensors, self.metadata["qwen3.attention.key_length"]
        x = t["token_embd.weight"][ids]
        for i in range(self.metadata["qwen3.block_count"]):
            x = x + self.attend(self.norm(x, f"blk.{i}.attn_norm.weight"), i, dim) @ t[f"blk.{i}.attn_output.weight"].T
            y = self.norm(x, f"blk.{i}.ffn_norm.weight")
            gate = y @ t[f"blk.{i}.ffn_gate.weight"].T
            x = x + (gate / (1 + numpy.exp(-gate)) * (y @ t[f"blk.{i}.ffn_up.weight"].T)) @ t[f"blk.{i}.ffn_down.weight"].T
        head = t.get("output.weight", t["token_embd.weight"])
        logits = self.norm(x[:-1], "output_norm.weight") @ head.T
        logits -= logits.max(-1, keepdims=True)
        return numpy.log(numpy.exp(logits).sum(-1)) - logits[numpy.arange(len(ids) - 1), ids[1:]]
