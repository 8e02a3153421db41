"""One plan over several ranks: all of them get the tokens of one process, and none waits for a dead one.

Processes over loopback with gloo, on the CPU and on virtual GPUs; nothing runs on CUDA or NCCL.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from profiles.errors import ApplyError
from runtime_adapter.distributed import load_distributed

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from distributed_orders import LAYERS, plan_on, prompts  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from tiny_models import FAMILIES, tiny_model  # noqa: E402

WORKER = Path(__file__).with_name("distributed_worker.py")
TOKENS, SECONDS = 12, 60
Ask = Callable[[Sequence[Mapping[str, Any]], int], list[list[dict[str, Any]] | None]]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # such small tensors gain nothing from more, and tests may run beside each other
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders with the files of tiny models, as transformers writes them."""
    made = {}
    for family in FAMILIES:
        made[family] = tmp_path_factory.mktemp(family)
        tiny_model(family, num_hidden_layers=LAYERS).save_pretrained(made[family])
    made["tied"] = tmp_path_factory.mktemp("tied")
    tiny_model("qwen3_moe", num_hidden_layers=LAYERS, tie_word_embeddings=True).save_pretrained(made["tied"])
    return made


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """What each of so many ranks reports of the orders; fails when they hang."""
    folder = tmp_path_factory.mktemp("orders")
    servers: list[subprocess.Popen[str]] = []

    def asked(orders: Sequence[Mapping[str, Any]], count: int) -> Any:
        if not servers:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            command = [sys.executable, WORKER]
            servers.append(subprocess.Popen(command, start_new_session=True, env=environment(), **pipes))
            assert answer(servers, 3 * SECONDS) == "ready\n"
        file = folder / f"orders_{len(list(folder.iterdir()))}.json"
        file.write_text(json.dumps(orders))
        print(file, count, file=servers[-1].stdin, flush=True)
        return json.loads(answer(servers, SECONDS))

    yield asked
    for server in servers:
        end(server)


def answer(servers: list[subprocess.Popen[str]], seconds: float) -> str:
    """The next line of the server, which is ended when it does not come."""
    stream = servers[-1].stdout
    assert stream is not None
    ready, _, _ = select.select([stream], [], [], seconds)
    if not ready:
        end(servers.pop())
        pytest.fail("the ranks hang")
    return stream.readline()


def end(server: subprocess.Popen[str]) -> None:
    """The server and all ranks that it forked."""
    os.killpg(server.pid, signal.SIGKILL)
    server.communicate()


def environment() -> dict[str, str]:
    paths = [str(WORKER.parents[1]), str(WORKER.parent)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


def order(path: Path, owners: Sequence[int], **changes: Any) -> dict[str, Any]:
    """Load the model at `path`, its blocks on the ranks `owners`, all on the CPU, and continue the prompts."""
    model = transformers.AutoModelForCausalLM.from_pretrained(path)
    ids, mask = prompts()
    return {
        "plan": plan_on(model, owners),
        "path": str(path),
        "hosts": [[f"cuda:{i}"] for i in range(max(owners) + 1)],
        "load": {"devices": {f"cuda:{owner}": "cpu" for owner in owners}},
        "ids": ids.tolist(),
        "mask": mask.tolist(),
        "generate": {"max_new_tokens": TOKENS},
        **changes,
    }


def expected(path: Path, **options: Any) -> Any:
    """What one process generates, by transformers alone."""
    model = transformers.AutoModelForCausalLM.from_pretrained(path)
    ids, mask = prompts()
    options = {"max_new_tokens": TOKENS, "do_sample": False, **options}
    return model.generate(ids, attention_mask=mask, **options).tolist()


def test_two_ranks_that_torchrun_started(tmp_path: Path, checkpoints: dict[str, Path]) -> None:
    orders = tmp_path / "orders.json"
    families = ("mixtral", "gpt_oss")
    orders.write_text(json.dumps([order(checkpoints[family], [0, 0, 0, 0, 1, 1, 1, 1]) for family in families]))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", WORKER, orders]
    done = subprocess.run(command, env=environment(), timeout=3 * SECONDS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for rank in range(2):
        results = json.loads(Path(f"{orders}.{rank}").read_text())
        assert [result["tokens"] for result in results] == [[expected(checkpoints[family])] for family in families]


def test_two_ranks_with_several_devices_each(ask: Ask, checkpoints: dict[str, Path]) -> None:
    """Attention, whole and split experts of a stage on devices of its rank; each rank has a vgpu:0 of its own."""
    wanted = []
    for family, experts in (("qwen3_moe", {"cuda:1": "all"}), ("deepseek_v3", {"cpu": "all"})):
        one = order(checkpoints[family], [0, 0, 0, 0, 0, 2, 2, 2], hosts=[["cuda:0", "cuda:1"], ["cuda:2", "cuda:3"]])
        for layer in one["plan"]["layers"][:-1]:
            if layer["experts"] and layer["attention"] == "cuda:0":
                layer["experts"] = experts
        one["plan"]["layers"][-1]["experts"] = {"cuda:2": [0, 1, 2], "cuda:3": [3, 4, 5, 6, 7]}
        here, there = {"cuda:0": "vgpu:0", "cuda:1": "vgpu:1"}, {"cuda:2": "vgpu:0", "cuda:3": "vgpu:1"}
        one["by_rank"] = {"0": {"load": {"devices": here}}, "1": {"load": {"devices": there}}}
        wanted.append(one)
    first, second = ask(wanted, 2)
    assert first is not None
    assert second is not None
    tokens = [expected(checkpoints[family]) for family in ("qwen3_moe", "deepseek_v3")]
    assert [[result["tokens"][0] for result in results] for results in (first, second)] == [tokens, tokens]
    assert [set(result["bytes"]) for result in first] == [{"vgpu:0", "vgpu:1"}, {"vgpu:0"}]
    assert [set(result["bytes"]) for result in second] == [{"vgpu:0", "vgpu:1"}] * 2


def test_four_ranks(ask: Ask, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Each reads its own files only, and generates twice; a plan that comes back to ranks; a tied head of its own."""
    wanted = [expected(checkpoints[name]) for name in ("qwen2_moe", "deepseek_v2", "tied")]
    straight, winding = [0, 0, 1, 1, 2, 2, 3, 3], [3, 1, 0, 2, 1, 3, 0, 2]
    own = {str(r): {"path": str(only_of(checkpoints["qwen2_moe"], straight, r, tmp_path))} for r in range(4)}
    orders = [
        order(checkpoints["qwen2_moe"], straight, by_rank=own, times=2),
        order(checkpoints["deepseek_v2"], winding),
        order(checkpoints["tied"], [0, 1, 1, 1, 2, 2, 2, 3]),
    ]
    answers = ask(orders, 4)
    for rank, results in enumerate(answers):
        assert results is not None
        assert "error" not in results[-1], f"rank {rank}: {results[-1]}"
        assert [result["tokens"][0] for result in results] == wanted
        assert results[0]["tokens"][1] == wanted[0]
        assert all(all(result["caches"]) for result in results), "KV caches are kept after generating"
    modules = [[name for name in results[1]["modules"] if "experts" not in name] for results in answers if results]
    assert modules == [
        ["model.layers.1", "model.layers.5"],
        ["model.layers.0", "model.layers.3"],
        ["lm_head", "model.layers.2", "model.norm"],
        ["model.embed_tokens", "model.layers.4"],
    ]


def only_of(path: Path, owners: Sequence[int], rank: int, folder: Path) -> Path:
    """A checkpoint with nothing but what blocks of `rank` need."""
    made = folder / f"rank_{rank}"
    made.mkdir()
    for name in ("config.json", "generation_config.json"):
        (made / name).write_bytes((path / name).read_bytes())

    def owner(name: str) -> int:
        parts = name.split(".")
        return owners[int(parts[2]) + 1] if parts[1] == "layers" else owners[0 if "embed_tokens" in name else -1]

    tensors = {name: t for name, t in load_file(path / "model.safetensors").items() if owner(name) == rank}
    save_file(tensors, made / "model.safetensors", metadata={"format": "pt"})
    return made


def test_end_tokens_end_rows_and_then_all(ask: Ask, checkpoints: dict[str, Path]) -> None:
    path, owners = checkpoints["mixtral"], [0, 0, 0, 0, 1, 1, 1, 1]
    free = expected(path)
    ends = [free[0][9 + 3], free[1][9 + 5], free[2][9 + 1]]  # what each row says sooner or later
    options = {"max_new_tokens": TOKENS, "eos_token_id": ends, "pad_token_id": 0}
    wanted = expected(path, **options)
    assert 9 < len(wanted[0]) < 9 + TOKENS
    assert any(row[-1] == 0 for row in wanted)
    for results in ask([order(path, owners, generate=options)], 2):
        assert results is not None
        assert results[0]["tokens"] == [wanted]
        prompt, *later = results[0]["positions"]
        assert prompt == [[*range(9)], [0, 0, 0, *range(6)], [0] * 7 + [0, 1]]  # padding does not count
        assert later == [[[9 + i], [6 + i], [2 + i]] for i in range(len(wanted[0]) - 10)]


FOREVER = {"timeout_s": 10_000.0}  # nobody can have waited for it


@pytest.mark.parametrize("what", ["kill", "raise"])
@pytest.mark.parametrize("owners", [[0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 2, 2, 3, 3]], ids=["two", "four"])
def test_when_a_rank_ends_the_others_say_so(
    ask: Ask, checkpoints: dict[str, Path], owners: list[int], what: str
) -> None:
    count = max(owners) + 1
    one = order(checkpoints["mixtral"], owners, by_rank={"1": {"fate": {"what": what, "call": 4}}})
    one["load"] |= FOREVER
    answers = ask([one], count)
    if what == "kill":
        assert answers[1] is None
    else:
        assert answers[1] == [{"error": "OutOfMemoryError: no memory, as the test wants it"}]
    neighbours = {0: count - 1, 2: 1, 3: 2}  # of whom each is waiting for something
    for rank in set(range(count)) - {1}:
        results = answers[rank]
        assert results is not None
        (result,) = results
        assert f"ApplyError: rank {rank} of {count}: lost rank {neighbours[rank]} while waiting for" in result["error"]
        assert "\n" not in result["error"]


def test_a_rank_that_hangs_is_waited_for_no_longer_than_said(ask: Ask, checkpoints: dict[str, Path]) -> None:
    one = order(checkpoints["mixtral"], [0, 0, 0, 0, 1, 1, 1, 1], by_rank={"1": {"fate": {"what": "stop", "call": 2}}})
    one["load"]["timeout_s"] = 2.0
    first, _ = ask([one], 2)
    assert first is not None
    assert "rank 0 of 2: rank 1 did not answer while waiting for token 2 of 12" in first[0]["error"]
    assert "timeout_s=2" in first[0]["error"]


def test_ranks_that_do_not_mean_the_same_are_told(ask: Ask, checkpoints: dict[str, Path]) -> None:
    path, owners = checkpoints["mixtral"], [0, 0, 0, 0, 1, 1, 1, 1]
    plan, other = order(path, owners), order(path, [0, 0, 0, 1, 1, 1, 1, 1])
    plan["by_rank"] = {"1": {"plan": other["plan"]}}
    ids = order(path, owners, by_rank={"1": {"ids": (prompts()[0] + 1).tolist()}})
    lost = order(path, owners, by_rank={"1": {"path": str(path / "nowhere")}})
    for wrong, message in ((plan, "plan, or hosts: rank 1 has another"), (ids, "prompt: rank 1 has another")):
        for results in ask([wrong], 2):
            assert results is not None
            assert message in results[0]["error"]
    first, second = ask([lost], 2)
    assert first is not None
    assert second is not None
    assert "rank 0 of 2: lost rank 1 while waiting for whether all have the same checkpoint" in first[0]["error"]
    assert "nowhere: " in second[0]["error"]


def test_a_process_that_is_no_rank_is_told(monkeypatch: pytest.MonkeyPatch, checkpoints: dict[str, Path]) -> None:
    monkeypatch.delenv("RANK", raising=False)
    one = order(checkpoints["mixtral"], [0, 0, 0, 0, 1, 1, 1, 1])
    with pytest.raises(ApplyError, match="start it with torchrun --nproc-per-node 2"):
        load_distributed(one["plan"], one["path"], hosts=one["hosts"])


def test_importing_it_does_not_import_torch() -> None:
    code = "import sys, runtime_adapter.distributed; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
