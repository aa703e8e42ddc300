"""A training step: ours beside plain PyTorch, in turns, each in a process of its own.

    python -m benchmarks.training [pvt_small] [--batch 16] [--dtype fp32] [--json FILE]

A step is forward, cross entropy, backward and AdamW, on random images. `eager` is the published
formula (``fused=False``), `sdpa` the same with ``scaled_dot_product_attention``. Memory is the
highest resident memory of the process above that before the model was made: weights, gradients,
optimiser and what the forward pass keeps. Losses and gradients of the first step are compared.
"""

import argparse
import statistics
import time
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.common import begin, spread, write_json
from benchmarks.sdpa import with_sdpa
from benchmarks.worker import peak_memory, reset_peak_memory
from pvt_ext import PVT, create_model

MODELS = {
    "ours": lambda name: create_model(name),
    "eager": lambda name: create_model(name, fused=False),
    "sdpa": lambda name: with_sdpa(create_model(name, fused=False)),
}
MIN_ROUNDS = 5
PAUSE = 0.15  # seconds before each turn: the threads of the one before stop spinning


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="pvt_small")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--peers", nargs="+", choices=MODELS, default=list(MODELS))
    args = begin(parser, seconds=60)
    context = get_context("spawn")
    connections: dict[str, Connection] = {}
    for peer in args.peers:
        connections[peer], there = context.Pipe()
        context.Process(target=serve, args=(there, peer, args), daemon=True).start()
    answers = {peer: connection.recv() for peer, connection in connections.items()}
    times: dict[str, list[float]] = {peer: [] for peer in args.peers}
    end = time.perf_counter() + args.seconds
    while len(times["ours"]) < MIN_ROUNDS or time.perf_counter() < end:
        for peer, connection in connections.items():
            time.sleep(PAUSE)
            connection.send("step")
            times[peer].append(connection.recv())
    for peer, connection in connections.items():
        connection.send("memory")
        answers[peer]["memory_mb"] = connection.recv()
        connection.send("stop")
    row = {
        "case": f"{args.model}, batch {args.batch}, {args.size}x{args.size}, {args.dtype}",
        "milliseconds": {peer: statistics.median(values) for peer, values in times.items()},
        "spread": {peer: spread(values) for peer, values in times.items()},
        "peers": answers,
    }
    print(table(row))
    write_json(args.json, [row])


def serve(connection: Connection, peer: str, args: argparse.Namespace) -> None:
    """Target of the process: answers each "step" with milliseconds."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    images = torch.randn(args.batch, 3, args.size, args.size)
    labels = torch.randint(0, 1000, (args.batch,))
    at_start = reset_peak_memory()
    torch.manual_seed(0)
    model = MODELS[peer](args.model).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    loss = backward(model, images, labels, args.dtype)
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]).item()
    optimizer.step()
    step(model, optimizer, images, labels, args.dtype)
    connection.send({"loss": loss, "gradient_norm": norm})
    while (message := connection.recv()) != "stop":
        if message == "memory":
            connection.send(peak_memory() - at_start)
            continue
        start = time.perf_counter()
        step(model, optimizer, images, labels, args.dtype)
        connection.send((time.perf_counter() - start) * 1e3)


def step(
    model: PVT,
    optimizer: torch.optim.Optimizer,
    images: torch.Tensor,
    labels: torch.Tensor,
    dtype: str,
) -> None:
    optimizer.zero_grad(set_to_none=True)
    backward(model, images, labels, dtype)
    optimizer.step()


def backward(model: PVT, images: torch.Tensor, labels: torch.Tensor, dtype: str) -> float:
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bf16"):
        loss = F.cross_entropy(model(images).float(), labels)
    loss.backward()
    return loss.item()


def table(row: dict[str, Any]) -> str:
    ours, ours_memory = row["milliseconds"]["ours"], row["peers"]["ours"]["memory_mb"]
    lines = [
        row["case"],
        "            ms  spread   / ours   peak MB   / ours      loss  |gradient|",
    ]
    for peer, ms in row["milliseconds"].items():
        answer = row["peers"][peer]
        memory = answer["memory_mb"]
        lines.append(
            f"{peer:6} {ms:7.0f} {row['spread'][peer]:6.0%} {ms / ours:8.2f} {memory:9.0f} "
            f"{memory / ours_memory:8.2f} {answer['loss']:9.5f} {answer['gradient_norm']:11.6f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
