"""Writes a Llama with random weights, for measuring where no model is at hand: small numbers of both signs, as quickly as the disk takes
them. It has no tokenizer.

    python3 tests/gpu/randmodel.py OUT TYPE [LAYERS]

TYPE is one of bf16, f16, q8_0, q4_0, q4_k, q5_k, q6_k, mxfp4: OUT is a GGUF file; or f8_rows, f8_blocks (scales per row, per block of
128 x 128): OUT is a Hugging Face folder. The shape is that of an 8B Llama 3 of LAYERS (32) layers."""

import json
import os
import pathlib
import struct
import sys

D, FF, HEADS, KV_HEADS, DIM, VOCAB, CONTEXT = 4096, 14336, 32, 8, 128, 128256, 8192
# Of a block: GGUF's number, weights, bytes, and what is fixed in them: 16-bit scales of about 2^-12, their exponents where all are floats.
SMALL = b"\x00\x0c"
TYPES = {
    "f16": (1, 1, 2, {}),
    "bf16": (30, 1, 2, {}),
    "q4_0": (2, 32, 18, {0: SMALL}),
    "q8_0": (8, 32, 34, {0: b"\x00\x08"}),
    "q4_k": (12, 256, 144, {0: b"\x00\x04", 2: b"\x00\x08"}),
    "q5_k": (13, 256, 176, {0: b"\x00\x02", 2: b"\x00\x08"}),
    "q6_k": (14, 256, 210, {208: b"\x10\x00"}),
    "mxfp4": (39, 32, 17, {0: b"\x79"}),
}
F32 = 0


def text(s):
    return struct.pack("<Q", len(s)) + s.encode()


def random_blocks(kind, n_bytes):
    """At least so many bytes of whole blocks."""
    _, _, size, fixed = TYPES[kind]
    n = (n_bytes + size - 1) // size
    data = bytearray(os.urandom(n * size))
    if kind in ("f16", "bf16"):  # sign and last bits are random, the exponent is not
        high = {"f16": 0x20, "bf16": 0x3C}[kind]
        data[1::2] = bytes(data[1::2]).translate(bytes(b & 0x80 | high | b & 1 for b in range(256)))
    for at, value in fixed.items():
        for i, byte in enumerate(value):
            data[at + i :: size] = bytes([byte]) * n
    return bytes(data)


def write(path, head, parts):
    """`parts`: (bytes to write, of which data again and again, up to a multiple of what)."""
    with open(path, "wb", buffering=0) as f:
        f.write(head)
        for n_bytes, data, to in parts:
            for begin in range(0, n_bytes, len(data)):
                f.write(data[: min(len(data), n_bytes - begin)])
            f.write(bytes(-n_bytes % to))


def write_folder(out, kind, layers):
    by_block = kind == "f8_blocks"
    floats, ones = random_blocks("bf16", 32 << 20), b"\x80\x3f" * D
    eight = os.urandom(32 << 20).translate(bytes(b & 0x80 | 0x20 | b & 0x0F for b in range(256)))  # 2^-3 to 2^-1
    head, parts, at = {}, [], 0

    def add(name, dtype, shape, width, data):
        nonlocal at
        n_bytes = shape[0] * (shape[1] if len(shape) > 1 else 1) * width
        head[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + n_bytes]}
        parts.append((n_bytes, data, 1))
        at += n_bytes

    def linear(name, rows, cols):
        add(name + ".weight", "F8_E4M3", [rows, cols], 1, eight)
        scales = [(rows + 127) // 128, (cols + 127) // 128] if by_block else [rows, 1]
        add(name + (".weight_scale_inv" if by_block else ".weight_scale"), "F32", scales, 4, struct.pack("<f", 2.0**-5) * 4096)

    add("model.embed_tokens.weight", "BF16", [VOCAB, D], 2, floats)
    add("lm_head.weight", "BF16", [VOCAB, D], 2, floats)
    add("model.norm.weight", "BF16", [D], 2, ones)
    for i in range(layers):
        b = f"model.layers.{i}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            add(b + name + ".weight", "BF16", [D], 2, ones)
        for name, rows, cols in (("self_attn.q_proj", HEADS * DIM, D), ("self_attn.k_proj", KV_HEADS * DIM, D),
                                 ("self_attn.v_proj", KV_HEADS * DIM, D), ("self_attn.o_proj", D, HEADS * DIM), ("mlp.gate_proj", FF, D),
                                 ("mlp.up_proj", FF, D), ("mlp.down_proj", D, FF)):
            linear(b + name, rows, cols)
    blocks = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    rows = {"quant_method": "compressed-tensors", "format": "float-quantized"}
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": D, "intermediate_size": FF, "num_hidden_layers": layers,
              "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": DIM, "vocab_size": VOCAB,
              "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": False,
              "torch_dtype": "bfloat16", "hidden_act": "silu", "quantization_config": blocks if by_block else rows}
    folder = pathlib.Path(out)
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    write(folder / "model.safetensors", struct.pack("<Q", len(text)) + text, parts)


def main():
    out, kind, layers = sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 32
    if kind.startswith("f8"):
        write_folder(out, kind, layers)
        return
    number, weights, size, _ = TYPES[kind]
    matrix = lambda name, rows, cols: (name, (cols, rows), number, rows * cols // weights * size)
    norm = lambda name: (name, (D,), F32, D * 4)
    tensors = [matrix("token_embd.weight", VOCAB, D), norm("output_norm.weight"), matrix("output.weight", VOCAB, D)]
    for i in range(layers):
        b = f"blk.{i}."
        tensors += [norm(b + "attn_norm.weight"), matrix(b + "attn_q.weight", HEADS * DIM, D), matrix(b + "attn_k.weight", KV_HEADS * DIM, D),
                    matrix(b + "attn_v.weight", KV_HEADS * DIM, D), matrix(b + "attn_output.weight", D, HEADS * DIM),
                    norm(b + "ffn_norm.weight"), matrix(b + "ffn_gate.weight", FF, D), matrix(b + "ffn_up.weight", FF, D),
                    matrix(b + "ffn_down.weight", D, FF)]
    facts = {"block_count": layers, "context_length": CONTEXT, "embedding_length": D, "feed_forward_length": FF, "attention.head_count": HEADS,
             "attention.head_count_kv": KV_HEADS, "rope.dimension_count": DIM, "vocab_size": VOCAB}
    floats = {"attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 500000.0}
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), 1 + len(facts) + len(floats))
    head += text("general.architecture") + struct.pack("<I", 8) + text("llama")
    for name, value in facts.items():
        head += text("llama." + name) + struct.pack("<II", 4, value)
    for name, value in floats.items():
        head += text("llama." + name) + struct.pack("<If", 6, value)
    at = 0
    for name, shape, of, n_bytes in tensors:
        head += text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape) + struct.pack("<IQ", of, at)
        at += (n_bytes + 31) // 32 * 32
    blocks = random_blocks(kind, 32 << 20)
    ones = struct.pack("<f", 1.0) * D
    write(out, head + bytes(-len(head) % 32), [(n_bytes, ones if of == F32 else blocks, 32) for _, _, of, n_bytes in tensors])


main()
