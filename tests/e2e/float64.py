"""A Qwen3 forward in float64 numpy, over the F32 matrices of a GGUF file: what a model's scores would be if nothing were
rounded but its weights."""
import math
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # small matrices: more threads would mostly wait for each other
import numpy  # noqa: E402

from gguffile import Gguf  # noqa: E402


class Model:
    def __init__(self, path):
        """Of a file whose tensors are all F32, as `tensord quantize --type f32` writes it."""
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
        k, v = (t.repeat(len(q) // len(k), 0) for t in (k, v))
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
