"""A decode step of Llama shapes in PyTorch, eager and compiled, beside tokrun's: one JSON object a line.

Says so and ends well where there is no PyTorch or no card.
"""

import json
import statistics
import sys
import time

try:
    import torch
    import torch.nn.functional as F
except ImportError:
    print(json.dumps({"skipped": "no PyTorch"}))
    sys.exit(0)

TINY = "--tiny" in sys.argv
SHAPES = (
    {"tiny": (64, 128, 2, 4, 2, 16, 100)}
    if TINY
    else {
        # hidden, feed-forward, layers, heads, key heads, head width, vocabulary
        "llama-3.2-1b": (2048, 8192, 16, 32, 8, 64, 128256),
        "llama-3.1-8b": (4096, 14336, 32, 32, 8, 128, 128256),
    }
)
DEPTH = 16 if TINY else 128


class Model(torch.nn.Module):
    def __init__(self, shape, device, dtype):
        super().__init__()
        hidden, wide, layers, self.heads, self.kv_heads, self.width, vocabulary = shape
        queries, keys = self.heads * self.width, self.kv_heads * self.width

        def weight(rows, columns):
            return torch.randn(rows, columns, device=device, dtype=dtype) * columns**-0.5

        self.embedding = weight(vocabulary, hidden)
        self.head = weight(vocabulary, hidden)
        self.layers = [
            (weight(queries + 2 * keys, hidden), weight(hidden, queries), weight(2 * wide, hidden), weight(hidden, wide))
            for _ in range(layers)
        ]
        shape = (layers, 2, 1, self.kv_heads, DEPTH, self.width)
        self.cache = torch.randn(shape, device=device, dtype=dtype)
        self.norm = torch.ones(hidden, device=device, dtype=dtype)

    def forward(self, token):
        x = self.embedding[token]
        for index, (qkv, output, gate_up, down) in enumerate(self.layers):
            y = F.linear(F.rms_norm(x, self.norm.shape, self.norm), qkv)
            q, k, v = y.split([self.heads * self.width, self.kv_heads * self.width, self.kv_heads * self.width], -1)
            self.cache[index, 0, :, :, -1] = k.view(1, self.kv_heads, self.width)
            self.cache[index, 1, :, :, -1] = v.view(1, self.kv_heads, self.width)
            q = q.view(1, self.heads, 1, self.width)
            y = F.scaled_dot_product_attention(q, self.cache[index, 0], self.cache[index, 1], enable_gqa=True)
            x = x + F.linear(y.reshape(1, -1), output)
            gate, up = F.linear(F.rms_norm(x, self.norm.shape, self.norm), gate_up).chunk(2, -1)
            x = x + F.linear(F.silu(gate) * up, down)
        return F.linear(F.rms_norm(x, self.norm.shape, self.norm), self.head).argmax(-1)


def seconds_a_step(step, token, synchronise):
    for _ in range(5):
        token = step(token)
    synchronise()
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        for _ in range(2 if TINY else 64):
            # A compiled step may overwrite its result with the next one.
            token = step(token).clone()
        synchronise()
        times.append((time.perf_counter() - begin) / (2 if TINY else 64))
    return statistics.median(times)


def main():
    on_card = torch.cuda.is_available()
    if not on_card and not TINY:
        print(json.dumps({"skipped": "PyTorch finds no card"}))
        return
    device, dtype = ("cuda", torch.bfloat16) if on_card else ("cpu", torch.float32)
    synchronise = torch.cuda.synchronize if on_card else lambda: None
    for name, shape in SHAPES.items():
        model = Model(shape, device, dtype)
        modes = {"eager": model}
        if on_card:
            modes["compiled"] = torch.compile(model, mode="reduce-overhead", fullgraph=True)
        for mode, step in modes.items():
            with torch.inference_mode():
                seconds = seconds_a_step(step, torch.tensor([1], device=device), synchronise)
            row = {"model": name, "type": str(dtype), "mode": mode, "depth": DEPTH, "tokens_per_s": 1 / seconds}
            print(json.dumps(row | {"torch": torch.__version__}), flush=True)


main()
