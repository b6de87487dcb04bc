#!/usr/bin/env python3
"""Trains tensord-tiny and writes model.safetensors in BF16. Needs torch, tokenizers and safetensors.

The model is a Qwen3-style decoder written out below; its parameters carry the names that Hugging
Face transformers uses, so the checkpoint loads there as it is. `--minutes` bounds the wall time and
is also the length of the learning-rate schedule. A checkpoint is written every few minutes;
`--export FILE` turns one into model.safetensors.
"""
import argparse
import json
import math
import os
import time

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer

END, START, STOP = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
PROMPT_WEIGHT = 0.2  # weight in the loss of what users and system messages say


class RMSNorm(nn.Module):
    def __init__(self, n, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n))
        self.eps = eps

    def forward(self, x):
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)
        return (y * self.weight).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.h, self.kv, self.d = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
        n = c["hidden_size"]
        self.q_proj = nn.Linear(n, self.h * self.d, bias=False)
        self.k_proj = nn.Linear(n, self.kv * self.d, bias=False)
        self.v_proj = nn.Linear(n, self.kv * self.d, bias=False)
        self.o_proj = nn.Linear(self.h * self.d, n, bias=False)
        self.q_norm = RMSNorm(self.d, c["rms_norm_eps"])
        self.k_norm = RMSNorm(self.d, c["rms_norm_eps"])

    def forward(self, x, cos, sin):
        b, t, _ = x.shape
        q = self.q_norm(self.q_proj(x).view(b, t, self.h, self.d)).transpose(1, 2)
        k = self.k_norm(self.k_proj(x).view(b, t, self.kv, self.d)).transpose(1, 2)
        v = self.v_proj(x).view(b, t, self.kv, self.d).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        g = self.h // self.kv
        k, v = k.repeat_interleave(g, 1), v.repeat_interleave(g, 1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).reshape(b, t, self.h * self.d))


def rotate(x, cos, sin):
    """Rotary position embedding, the halves of a head being the two coordinates."""
    half = x.shape[-1] // 2
    x1, x2 = x[..., :half].float(), x[..., half:].float()
    return torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin), -1).to(x.dtype)


class MLP(nn.Module):
    def __init__(self, c):
        super().__init__()
        n, f = c["hidden_size"], c["intermediate_size"]
        self.gate_proj = nn.Linear(n, f, bias=False)
        self.up_proj = nn.Linear(n, f, bias=False)
        self.down_proj = nn.Linear(f, n, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.input_layernorm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])
        self.self_attn = Attention(c)
        self.post_attention_layernorm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])
        self.mlp = MLP(c)

    def forward(self, x, cos, sin):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embed_tokens = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.layers = nn.ModuleList(Layer(c) for _ in range(c["num_hidden_layers"]))
        self.norm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])


class Model(nn.Module):
    """Named so that its state dict has the tensor names of Qwen3ForCausalLM with tied embeddings."""

    def __init__(self, c, context):
        super().__init__()
        self.model = Decoder(c)
        freq = c["rope_theta"] ** -(torch.arange(0, c["head_dim"], 2).float() / c["head_dim"])
        angle = torch.arange(context).float()[:, None] * freq[None]
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                out = name.endswith(("o_proj.weight", "down_proj.weight"))
                std = 0.02 / math.sqrt(2 * c["num_hidden_layers"]) if out else 0.02
                nn.init.normal_(p, std=std)

    def forward(self, ids, targets, weights):
        x = self.model.embed_tokens(ids)
        t = ids.shape[1]
        for layer in self.model.layers:
            x = layer(x, self.cos[:t], self.sin[:t])
        logits = F.linear(self.model.norm(x), self.model.embed_tokens.weight).float()
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        w = weights.flatten()
        return (loss * w).sum() / w.sum().clamp(min=1.0)


def weigh(ids, start, stop, assistant):
    """Loss weight of each token of a document: full for answers and plain text, low for prompts."""
    w = np.ones(len(ids), dtype=np.float32)
    low, i = False, 0
    while i < len(ids):
        if ids[i] == start:
            low = ids[i + 1] != assistant
            w[i:i + 2] = PROMPT_WEIGHT
            i += 2
            continue
        if low:
            w[i] = PROMPT_WEIGHT
        if ids[i] == stop:
            low = False
        i += 1
    return w


def rows(path, tok, length, limit_bytes):
    """Packs whole documents into rows of length + 1; each row begins with a document."""
    start, stop, pad = (tok.token_to_id(t) for t in (START, STOP, END))
    assistant = tok.encode("assistant").ids[0]
    with open(path, encoding="utf-8") as f:
        docs = f.read(limit_bytes).split(END)[:-1]
    out, weights, cur, curw = [], [], [], []
    for at in range(0, len(docs), 10000):
        for enc in tok.encode_batch_fast([d + END for d in docs[at:at + 10000]]):
            ids = enc.ids
            if len(ids) > length + 1:
                continue
            if len(cur) + len(ids) > length + 1:
                gap = length + 1 - len(cur)
                out.append(np.array(cur + [pad] * gap, dtype=np.int16))
                weights.append(np.concatenate(curw + [np.zeros(gap, dtype=np.float32)]))
                cur, curw = [], []
            cur = cur + ids
            curw.append(weigh(ids, start, stop, assistant))
    return torch.from_numpy(np.stack(out)), torch.from_numpy(np.stack(weights))


def export(state, path):
    tensors = {k: v.to(torch.bfloat16).contiguous() for k, v in state.items()}
    save_file(tensors, path, metadata={"format": "pt"})
    print("wrote", path, os.path.getsize(path), "bytes", flush=True)


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--model", required=True, help="directory with config.json and tokenizer.json")
    p.add_argument("--text", help="file of make_text.py")
    p.add_argument("--bytes", type=int, default=-1, help="read at most this many characters of the text")
    p.add_argument("--checkpoint", default="checkpoint.pt")
    p.add_argument("--minutes", type=float, default=60.0)
    p.add_argument("--steps", type=int, default=0, help="stop early after so many steps (0: no)")
    p.add_argument("--batch", type=int, default=16)
    p.add_argument("--length", type=int, default=384)
    p.add_argument("--lr", type=float, default=0.003, help="for embeddings and norms (AdamW)")
    p.add_argument("--muon-lr", type=float, default=0.02, help="for matrices (Muon); 0: AdamW for all")
    p.add_argument("--compile", action="store_true")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--export", metavar="FILE", help="only write FILE from the checkpoint")
    args = p.parse_args()
    if args.export:
        export(torch.load(args.checkpoint, weights_only=True), args.export)
        return
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    with open(os.path.join(args.model, "config.json"), encoding="utf-8") as f:
        config = json.load(f)
    tok = Tokenizer.from_file(os.path.join(args.model, "tokenizer.json"))
    ids, weights = rows(args.text, tok, args.length, args.bytes)
    print(f"{len(ids)} rows of {args.length}, {int((weights > 0).sum())} tokens", flush=True)

    model = Model(config, args.length)
    print(sum(q.numel() for q in model.parameters()), "parameters", flush=True)
    matrices = [q for n, q in model.named_parameters() if q.dim() == 2 and "embed" not in n]
    others = [q for n, q in model.named_parameters() if q.dim() != 2 or "embed" in n]
    if args.muon_lr > 0:
        opts = [torch.optim.Muon(matrices, lr=args.muon_lr, weight_decay=0.02, momentum=0.95),
                torch.optim.AdamW(others, lr=args.lr, betas=(0.9, 0.95), weight_decay=0.0)]
    else:
        opts = [torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1},
                                   {"params": others, "weight_decay": 0.0}], lr=args.lr, betas=(0.9, 0.95))]
    for opt in opts:
        for group in opt.param_groups:
            group["top_lr"] = group["lr"]
    step_fn = torch.compile(model) if args.compile else model
    order = torch.randperm(len(ids))
    begin = saved = shown = time.time()
    total, step, tokens, mean = args.minutes * 60, 0, 0, None
    while True:
        done = (time.time() - begin) / total
        if done >= 1 or (args.steps and step >= args.steps):
            break
        rate = min(1.0, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
        pick = order[torch.arange(step * args.batch, (step + 1) * args.batch) % len(ids)]
        x, w = ids[pick].long(), weights[pick]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = step_fn(x[:, :-1], x[:, 1:], w[:, 1:])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in opts:
            for group in opt.param_groups:
                group["lr"] = group["top_lr"] * rate
            opt.step()
            opt.zero_grad(set_to_none=True)
        step += 1
        tokens += args.batch * args.length
        mean = loss.item() if mean is None else 0.95 * mean + 0.05 * loss.item()
        now = time.time()
        if now - shown > 20 or step in (1, 2, 5, 10, 20):
            print(f"step {step} loss {mean:.4f} rate {rate:.3f} {tokens / (now - begin):.0f} tokens/s "
                  f"{(now - begin) / 60:.1f} min", flush=True)
            shown = now
        if now - saved > 240:
            torch.save(model.state_dict(), args.checkpoint + ".part")
            os.replace(args.checkpoint + ".part", args.checkpoint)
            saved = now
    torch.save(model.state_dict(), args.checkpoint)
    print(f"{step} steps, {tokens} tokens, loss {mean:.4f}", flush=True)
    export(model.state_dict(), os.path.join(args.model, "model.safetensors"))


if __name__ == "__main__":
    main()
