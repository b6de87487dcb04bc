"""How fast transformers decodes an 8B Llama of random BF16 weights on the same GPU, with a static cache and a compiled step, for comparison.
Prints Markdown lines that begin with "|"; ends with a sentence where something is missing."""

import sys
import time

try:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
except ImportError as e:
    sys.exit(f"no {e.name} here")
if not torch.cuda.is_available():
    sys.exit("PyTorch sees no GPU")

FEW, MANY = 16, 144
config = LlamaConfig(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
                     vocab_size=128256, max_position_embeddings=8192, rope_theta=500000.0)
torch.set_default_dtype(torch.bfloat16)
with torch.device("cuda"):
    model = LlamaForCausalLM(config).eval()
model.generation_config.cache_implementation = "static"
model.forward = torch.compile(model.forward, mode="reduce-overhead")
prompt = torch.randint(1000, 2000, (1, 32), device="cuda")


def seconds(n):
    torch.cuda.synchronize()
    begin = time.perf_counter()
    with torch.no_grad():
        model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=n, min_new_tokens=n, do_sample=False, pad_token_id=0)
    torch.cuda.synchronize()
    return time.perf_counter() - begin


for _ in range(2):
    seconds(MANY)  # compiles, and records
each = min((seconds(MANY) - seconds(FEW)) / (MANY - FEW) for _ in range(3))
weights = sum(p.numel() for n, p in model.named_parameters() if "embed_tokens" not in n) * 2
print("| what | rate |\n|---|---:|")
print(f"| transformers, static cache, compiled: decode of an 8B Llama in BF16 | {1 / each:.1f} tokens/s, {weights / each * 1e-9:.0f} GB/s of weights |")
