"""The ranks that test_runtime_adapter_distributed.py asks for. Not a test itself.

`python distributed_worker.py ORDERS` is one rank, as torchrun starts it: ORDERS is a JSON file with what every rank
does, one after the other, and what came of it goes to ORDERS.RANK. Without arguments it is a server, so that torch is
imported once for all tests: it says "ready", and for each line "ORDERS COUNT" it forks COUNT ranks and answers with a
line of JSON, what each reported, null for a rank that ended without a word. No rank ends before all have reported, so
that none learns from the end of another.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, TextIO

import torch
import torch.distributed as dist
import torch.distributed.pipelining
import transformers
import vgpu
from tiny_models import FAMILIES

from profiles.errors import MoeplanError
from runtime_adapter.distributed import load_distributed
from runtime_adapter.distributed.cut import StageModel

SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


def carry_out(order: dict[str, Any], rank: int) -> dict[str, Any]:
    """Load and generate as ordered. Values under "by_rank" replace those of the order on that rank."""
    order = order | order.get("by_rank", {}).get(str(rank), {})
    with (
        vgpu.ledger() as ledger,
        load_distributed(order["plan"], order["path"], hosts=order["hosts"], progress=False, **order["load"]) as model,
    ):
        loaded = dict(ledger.live_bytes)
        positions = watch(order.get("fate"))
        ids, mask = torch.tensor(order["ids"]), torch.tensor(order["mask"])
        tokens = [model.generate(ids, mask, **order["generate"]).tolist() for _ in range(order.get("times", 1))]
        caches = [part.cache is None for part in model._models]
    return {
        "tokens": tokens,
        "modules": sorted(model.device_map),
        "bytes": loaded,
        "caches": caches,
        "positions": positions,
    }


def watch(fate: dict[str, Any] | None) -> list[Any]:
    """The positions that stages of this process are given, filled as they compute; `fate` happens at its `call`."""
    given_positions: list[Any] = []

    def computed(self: StageModel, given: Any, mask: Any, positions: Any) -> Any:
        given_positions.append(positions.tolist())
        if fate is not None and len(given_positions) == fate["call"]:
            if fate["what"] == "raise":
                raise torch.OutOfMemoryError("no memory, as the test wants it")
            os.kill(os.getpid(), SIGNALS[fate["what"]])
        return COMPUTE(self, given, mask, positions)

    StageModel._computed = computed  # type: ignore[method-assign]
    return given_positions


COMPUTE = StageModel._computed


def report(orders: Path, rank: int) -> list[dict[str, Any]]:
    """What came of each order; the first that fails is the last."""
    results: list[dict[str, Any]] = []
    try:
        for order in json.loads(orders.read_text()):
            results.append(carry_out(order, rank))
    except (MoeplanError, torch.OutOfMemoryError) as problem:
        kept.append(problem)  # as a program would that catches it and goes on
        results.append({"error": f"{type(problem).__name__}: {problem}"})
    return results


kept: list[BaseException] = []


def forked(orders: Path, rank: int, count: int) -> tuple[int, TextIO]:
    """A child that reports through the file and then waits to be killed."""
    read, write = os.pipe()
    child = os.fork()
    if child:
        os.close(write)
        return child, os.fdopen(read)
    try:
        dist.init_process_group("gloo", init_method=f"file://{orders}.store", rank=rank, world_size=count)
        with os.fdopen(write, "w") as pipe:
            pipe.write(json.dumps(report(orders, rank)) + "\n")
            pipe.flush()
            signal.pause()
    finally:
        os._exit(1)


def serve() -> None:
    for name, _ in FAMILIES.values():
        getattr(transformers, f"{name}ForCausalLM")  # imported here, not in every rank
    print("ready", flush=True)
    for line in sys.stdin:
        name, count = line.rsplit(maxsplit=1)
        children = [forked(Path(name), rank, int(count)) for rank in range(int(count))]
        silent = {int(rank) for rank, fate in fates(Path(name)).items() if fate["what"] == "stop"}
        said = [None if rank in silent else pipe.readline() for rank, (_, pipe) in enumerate(children)]
        for child, pipe in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            pipe.close()
        print(json.dumps([json.loads(text) if text else None for text in said]), flush=True)


def fates(orders: Path) -> dict[str, Any]:
    changes = [order.get("by_rank", {}) for order in json.loads(orders.read_text())]
    return {rank: change["fate"] for by_rank in changes for rank, change in by_rank.items() if "fate" in change}


if __name__ == "__main__":
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    if len(sys.argv) > 1:
        number = int(os.environ["RANK"])
        Path(f"{sys.argv[1]}.{number}").write_text(json.dumps(report(Path(sys.argv[1]), number)))
    else:
        serve()
