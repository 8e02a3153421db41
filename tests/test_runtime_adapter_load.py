"""A checkpoint read onto the devices of a plan: the model that transformers loads, read once, held once, or not at all.

On virtual GPUs; nothing runs on CUDA.
"""

from __future__ import annotations

import copy
import functools
import gc
import json
import os
import random
import shutil
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from profiles.errors import ApplyError, MoeplanError
from profiles.placement import Placement
from runtime_adapter.apply import apply
from runtime_adapter.load import load

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors import safe_open  # noqa: E402 -- these need torch
from safetensors.torch import load_file, save_file  # noqa: E402
from tiny_models import EXPERTS, FAMILIES, MORE_FAMILIES, VOCABULARY, tiny_model  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from transformers.core_model_loading import Chunk, Concatenate, WeightConverter  # noqa: E402

from runtime_adapter import virtual_gpus as vgpu  # noqa: E402
from runtime_adapter.anatomy import anatomy_of, expert_count  # noqa: E402
from runtime_adapter.loading import fill, install, pieces, room  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
ALL_FAMILIES = (*FAMILIES, *MORE_FAMILIES)
GPUS = [f"cuda:{i}" for i in range(4)]
VIRTUAL = {f"cuda:{i}": f"vgpu:{i}" for i in range(4)}
HALF, REST = list(range(0, EXPERTS, 2)), list(range(1, EXPERTS, 2))
PLACEMENTS = int(os.environ.get("MOEPLAN_PLACEMENTS", "1"))
"""Random placements a family."""
FEW = {"num_hidden_layers": 2, "n_routed_experts": 2, "num_experts_per_tok": 1, "n_group": 1, "topk_group": 1}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # such small tensors gain nothing from more, and tests may run beside each other
    transformers.logging.disable_progress_bar()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a family's tiny model, in shards of some kilobytes, so that layers lie in several of them."""

    @functools.cache
    def save(family: str, **changes: Any) -> Path:
        folder = tmp_path_factory.mktemp(family)
        tiny_model(family, **changes).save_pretrained(folder, max_shard_size="40KB")
        return folder

    return save


def copy_of(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def reference(folder: Path, **options: Any) -> Any:
    """What transformers loads, copied: its weights are views of the mapped file, and where those begin at an address
    that is no multiple of 64 MKL may round otherwise."""
    return copy.deepcopy(transformers.AutoModelForCausalLM.from_pretrained(folder, **options))


def random_plan(model: Any, seed: int) -> Placement:
    """Blocks anywhere; experts of a layer on one to five devices."""
    rng, places, layers = random.Random(seed), [*GPUS, "cpu"], []
    for experts in anatomy_of(model).experts:
        among = rng.sample(places, rng.choice([1, 1, 2, 3, 5]))
        ids: dict[str, list[int]] = {}
        for expert in range(expert_count(experts) if experts else 0):
            ids.setdefault(rng.choice(among), []).append(expert)
        layers.append({"attention": rng.choice(places), "experts": ids})
    return Placement(embedding=rng.choice(places), head=rng.choice(places), layers=layers)


def plan_of(model: Any, home: str = "cuda:0", head: str = "cuda:0", **experts: Any) -> Placement:
    layers = [
        {"attention": home, "experts": (experts or {home: "all"}) if module else {}}
        for module in anatomy_of(model).experts
    ]
    return Placement(embedding=home, head=head, layers=layers)


def split_plan(model: Any) -> Placement:
    count = max(expert_count(m) for m in anatomy_of(model).experts if m)
    parts = {"cuda:1": list(range(0, count, 2)), "cpu": list(range(1, count, 2))}
    layers = [{"attention": "cuda:0", "experts": parts if m else {}} for m in anatomy_of(model).experts]
    return Placement(embedding="cpu", head="cuda:2", layers=layers)


def inputs() -> dict[str, Any]:
    ids = torch.randint(1, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def logits(model: Any) -> Any:
    with torch.no_grad():
        return model(**inputs()).logits


def tokens(model: Any) -> Any:
    return model.generate(**inputs(), max_new_tokens=4, do_sample=False)


class Reads:
    """Counts what `load` opens and reads; `fail_at` raises `error` at that read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fail_at: int = 0, error: BaseException | None = None) -> None:
        self.opened: Counter[str] = Counter()
        self.read: Counter[str] = Counter()
        self.fail_at, self.error = fail_at, error
        monkeypatch.setattr(fill, "safe_open", self._open)

    def _open(self, path: Path, **options: Any) -> Any:
        self.opened[path.name] += 1
        reads = self

        class Opened:
            def __enter__(self) -> Any:
                self.file = safe_open(path, **options)
                return self

            def __exit__(self, *problem: Any) -> None:
                self.file.__exit__(*problem)
                del self.file

            def get_tensor(self, name: str) -> Any:
                reads.read[name] += 1
                if reads.read.total() == reads.fail_at:
                    raise reads.error or AssertionError
                return self.file.get_tensor(name)

        return Opened()


# ---- what is loaded ----


@pytest.mark.parametrize("seed", range(PLACEMENTS))
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_the_model_is_the_one_that_transformers_loads(
    family: str, seed: int, saved: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, reads = saved(family), Reads(monkeypatch)
    expected = reference(folder)
    plan = random_plan(expected, seed)
    with vgpu.ledger() as applied, apply(plan, expected, devices=VIRTUAL):
        there, copied = applied.live_bytes, tokens(expected)
    with vgpu.ledger() as ledger:
        model = load(plan, folder, devices=VIRTUAL, progress=False)
        assert ledger.live_bytes == there
        assert ledger.peak == ledger.live, "something was on a GPU twice"
        moved = model.plan_applied.moved_bytes
        assert {device: size for device, size in moved.items() if device != "cpu"} == there
        assert not model.training
        assert torch.equal(logits(model), logits(expected))
        assert torch.equal(tokens(model), copied)
        stored = {name for file in folder.glob("*.safetensors") for name in safe_open(file, "pt").keys()}  # noqa: SIM118
        assert dict(reads.read) == dict.fromkeys(stored, 1)
        assert set(reads.opened) == {file.name for file in folder.glob("*.safetensors")}
        assert_same_state(model, expected)
        del model
        assert not ledger.live_bytes


def assert_same_state(model: Any, expected: Any) -> None:
    """After undoing: values, types, buffers of any kind, tied objects, config and generation config."""
    model.plan_applied.undo()
    assert not hasattr(model, "plan_applied")
    assert not hasattr(model, "hf_device_map")
    ours, theirs = dict(model.named_buffers()), dict(expected.named_buffers())
    assert list(ours) == list(theirs)
    ours, theirs = ours | model.state_dict(), theirs | expected.state_dict()
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        assert ours[name].dtype == value.dtype, name
        assert torch.equal(ours[name].cpu(), value), name
    assert model.config.to_dict() == expected.config.to_dict()
    assert model.generation_config.to_dict() == expected.generation_config.to_dict()


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_types_are_those_of_transformers(family: str, saved: Callable[..., Path]) -> None:
    folder = saved(family)
    for dtype in (torch.bfloat16, torch.float16):
        expected = reference(folder, dtype=dtype)
        model = load(plan_of(expected, "cpu", "cpu"), folder, dtype=dtype, progress=False)
        assert_same_state(model, expected)


def test_without_a_dtype_in_the_config_that_of_the_files_counts(saved: Callable[..., Path], tmp_path: Path) -> None:
    folder = copy_of(saved("mixtral"), tmp_path)
    config = json.loads((folder / "config.json").read_text())
    del config["dtype"]
    (folder / "config.json").write_text(json.dumps(config))
    for file in folder.glob("*.safetensors"):
        save_file({name: value.bfloat16() for name, value in load_file(file).items()}, file, {"format": "pt"})
    expected = reference(folder)
    assert expected.dtype == torch.bfloat16
    assert_same_state(load(plan_of(expected, "cpu", "cpu"), folder, progress=False), expected)


def test_experts_that_are_fused_in_the_files_are_divided_while_read(saved: Callable[..., Path]) -> None:
    """gpt-oss keeps a layer's experts in one tensor; a GPU gets its rows, never the rest."""
    folder = saved("gpt_oss")
    expected = reference(folder)
    plan = plan_of(expected, **{"cuda:1": HALF, "cpu": REST})
    with vgpu.ledger() as ledger:
        model = load(plan, folder, devices=VIRTUAL, progress=False)
        part = model.model.layers[0].mlp.experts.get_submodule("vgpu:1")
        whole = expected.model.layers[0].mlp.experts
        assert torch.equal(part.gate_up_proj.cpu(), whole.gate_up_proj[HALF])
        assert ledger.peak[torch.device("vgpu:1")] == 3 * sum(p[HALF].nbytes for p in whole.parameters())


def test_conversions_of_other_kinds_read_all_tensors_of_a_parameter_at_once(
    saved: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One tensor that becomes three parameters, and two in different files that become one."""
    folder = copy_of(saved("qwen2_moe"), tmp_path)
    at, three = "model.layers.0.self_attn", ("q_proj", "k_proj", "v_proj")
    joined = torch.cat([tensor_of(folder, f"{at}.{name}.weight") for name in three])
    head = tensor_of(folder, "lm_head.weight")
    gone = {"lm_head.weight", *(f"{at}.{name}.weight" for name in three)}
    rewrite(folder, lambda name, value: None if name in gone else value)
    add(folder, "a.safetensors", **{f"{at}.qkv.weight": joined, "lm_head.a.weight": head[:50].clone()})
    add(folder, "z.safetensors", **{"lm_head.b.weight": head[50:].clone()})
    rules = [
        WeightConverter("self_attn.qkv.weight", [f"self_attn.{name}.weight" for name in three], [Chunk(dim=0)]),
        WeightConverter(["lm_head.a.weight", "lm_head.b.weight"], "lm_head.weight", [Concatenate(dim=0)]),
    ]
    usual = pieces.get_model_conversion_mapping
    monkeypatch.setattr(pieces, "get_model_conversion_mapping", lambda model: [*rules, *usual(model)])
    expected, reads = reference(saved("qwen2_moe")), Reads(monkeypatch)
    model = load(split_plan(expected), folder, devices=VIRTUAL, progress=False)
    assert torch.equal(logits(model), logits(expected))
    assert set(reads.read.values()) == {1}


def test_a_model_type_with_code_of_its_own_that_is_the_same(saved: Callable[..., Path], tmp_path: Path) -> None:
    folder = copy_of(saved("deepseek_v3"), tmp_path)
    configured(model_type="kimi_k2", auto_map={"AutoModelForCausalLM": "modeling_kimi.Kimi"})(folder)
    expected = reference(saved("deepseek_v3"))
    assert torch.equal(logits(load(split_plan(expected), folder, devices=VIRTUAL, progress=False)), logits(expected))


def test_parameters_that_a_checkpoint_may_lack_are_computed(
    saved: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_of(saved("mixtral"), tmp_path)
    rewrite(folder, lambda name, value: None if name == "model.norm.weight" else value)
    monkeypatch.setattr(transformers.MixtralForCausalLM, "_keys_to_ignore_on_load_missing", [r"model\.norm"])
    model = load(plan_of(tiny_model("mixtral")), folder, devices=VIRTUAL, progress=False)
    assert str(model.model.norm.weight.device) == "vgpu:0"
    assert torch.equal(model.model.norm.weight.cpu(), torch.ones(32))


def test_inference_mode_and_copies(saved: Callable[..., Path]) -> None:
    folder, expected = saved("mixtral"), reference(saved("mixtral"))
    with torch.inference_mode():
        model = load(split_plan(expected), folder, devices=VIRTUAL, progress=False)
    assert not any(tensor.is_inference() for tensor in (*model.parameters(), *model.buffers()))
    assert torch.equal(logits(model), logits(expected))
    alone = copy.deepcopy(load(plan_of(expected, "cpu", "cpu"), folder, progress=False))
    assert torch.equal(logits(alone), logits(expected))


def test_a_checkpoint_in_one_file_and_in_fused_form(tmp_path: Path) -> None:
    """Names that the model has already, as after saving without going back to the published form."""
    model = tiny_model("qwen3_moe")
    model.save_pretrained(tmp_path, save_original_format=False)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    loaded = load(split_plan(model), tmp_path, devices=VIRTUAL, progress=False)
    assert torch.equal(logits(loaded), logits(model))
    loaded.plan_applied.undo()
    loaded.cpu().save_pretrained(tmp_path / "again")  # in the form in which it was, as transformers does
    assert load_file(tmp_path / "again/model.safetensors").keys() == load_file(tmp_path / "model.safetensors").keys()


def test_a_loaded_model_can_be_saved_placed_anew_and_kept(saved: Callable[..., Path], tmp_path: Path) -> None:
    folder = saved("qwen2_moe")
    expected = reference(folder)
    model = load(split_plan(expected).to_dict(), str(folder), devices=VIRTUAL, progress=False)
    model.plan_applied.undo()
    with vgpu.ledger(), apply(random_plan(expected, 5), model, devices=VIRTUAL):
        assert torch.equal(logits(model), logits(expected))
    alone = load(plan_of(expected, "cpu", "cpu"), folder, progress=False)
    alone.plan_applied.undo()
    alone.save_pretrained(tmp_path, max_shard_size="40KB")
    for file in folder.glob("*.safetensors"):
        ours, theirs = load_file(tmp_path / file.name), load_file(file)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


# ---- tied weights, and tensors that are not needed ----


def test_a_tied_head_is_read_once_and_is_one_tensor_on_each_device(
    saved: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, reads = saved("qwen3_moe", tie_word_embeddings=True), Reads(monkeypatch)
    expected = reference(folder)
    size = expected.lm_head.weight.nbytes
    for head, copies in (("cuda:0", 1), ("cuda:3", 2)):
        with vgpu.ledger() as ledger:
            model = load(plan_of(expected, head=head), folder, devices=VIRTUAL, progress=False)
            assert (model.lm_head.weight is model.model.embed_tokens.weight) == (copies == 1)
            here = ledger.live[torch.device("vgpu:3")]
            assert here == (size + model.model.norm.weight.nbytes if copies == 2 else 0)
            assert torch.equal(logits(model), logits(expected))
            model.plan_applied.undo()
            assert model.lm_head.weight is model.model.embed_tokens.weight
    assert "lm_head.weight" not in reads.read


def test_a_tied_head_that_is_stored_too_must_be_equal(saved: Callable[..., Path], tmp_path: Path) -> None:
    folder = copy_of(saved("qwen3_moe"), tmp_path)  # which stores both
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    plan = plan_of(tiny_model("qwen3_moe"))
    with vgpu.ledger() as ledger:
        with pytest.raises(ApplyError, match=r"differs from .* tie_word_embeddings"):
            load(plan, folder, devices=VIRTUAL, progress=False)
        assert not ledger.live_bytes
    rewrite(folder, lambda name, value: tensor_of(folder, "lm_head.weight") if "embed_tokens" in name else value)
    model = load(plan, folder, devices=VIRTUAL, progress=False)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def rewrite(folder: Path, change: Callable[[str, Any], Any]) -> None:
    """Change tensors by name; None leaves one out, and the index with it."""
    index_file = folder / "model.safetensors.index.json"
    index = json.loads(index_file.read_text())
    changed = {}
    for file in sorted(folder.glob("*.safetensors")):
        values = {name: change(name, value) for name, value in load_file(file).items()}
        changed[file] = {name: value.contiguous() for name, value in values.items() if value is not None}
        index["weight_map"] = {n: f for n, f in index["weight_map"].items() if values.get(n, 0) is not None}
    for file, values in changed.items():
        save_file(values, file, {"format": "pt"})
    index_file.write_text(json.dumps(index))


def tensor_of(folder: Path, name: str) -> Any:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    return load_file(folder / index["weight_map"][name])[name].clone()


def add(folder: Path, file: str, **tensors: Any) -> None:
    """Put more tensors into a file of their own."""
    index_file = folder / "model.safetensors.index.json"
    index = json.loads(index_file.read_text())
    index["weight_map"] |= dict.fromkeys(tensors, file)
    index_file.write_text(json.dumps(index))
    save_file(tensors, folder / file, {"format": "pt"})


def test_tensors_without_a_place_are_left_out(saved: Callable[..., Path], tmp_path: Path) -> None:
    folder = copy_of(saved("deepseek_v3"), tmp_path)
    plan, one = plan_of(tiny_model("deepseek_v3"), "cpu", "cpu"), torch.ones(4)
    add(
        folder,
        "mtp.safetensors",
        **{"model.layers.61.eh_proj.weight": one, "model.layers.0.rotary_emb.inv_freq": one + 1},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(plan, folder, progress=False)
    add(folder, "more.safetensors", **{"model.layers.0.self_attn.stray.weight": one, "model.other": one + 1})
    with pytest.warns(UserWarning, match="2 tensors have no place in DeepseekV3ForCausalLM .*self_attn.stray"):
        model = load(plan, folder, progress=False)
    assert torch.equal(logits(model), logits(reference(saved("deepseek_v3"))))


# ---- what is refused, before anything is read ----


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder, lambda other, value: None if other == name else value)


def changed(name: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder, lambda other, value: change(value) if other == name else value)


def configured(**fields: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **fields}))

    return write


def shard(folder: Path) -> Path:
    return sorted(folder.glob("*.safetensors"))[2]


def cut(folder: Path) -> None:
    os.truncate(shard(folder), shard(folder).stat().st_size - 8)


def twice(folder: Path) -> None:
    """One parameter under its published and under its own name."""
    add(folder, "more.safetensors", **{"model.layers.1.mlp.experts.gate_up_proj": torch.ones(EXPERTS, 32, 32)})


EXPERT = "model.layers.1.mlp.experts.5.up_proj.weight"
NORM = "model.layers.1.input_layernorm.weight"
SPOILED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "an expert is missing": (without(EXPERT), rf"{EXPERT}: missing \(7 tensors"),
    "a tensor is missing": (without(NORM), rf"1 of \d+ parameters of DeepseekV2ForCausalLM are in no .*{NORM}"),
    "a bias is missing": (
        configured(attention_bias=True),
        r"\d of \d+ parameters of DeepseekV2ForCausalLM are in no file, the first is .*bias",
    ),
    "an expert has another shape": (
        changed(EXPERT, lambda value: value[:, :-1]),
        rf"{EXPERT}': \[16, 31\], but .*experts.0.up_proj.* is \[16, 32\]",
    ),
    "a tensor has another shape": (changed(NORM, lambda value: value[:-1]), rf"{NORM}: \[31\] by .*\[32\] by config"),
    "experts have another shape": (
        configured(moe_intermediate_size=24),
        r"down_proj: \[8, 32, 16\] .*\[8, 32, 24\] by config",
    ),
    "more experts": (configured(n_routed_experts=16), r"experts\.8\.down_proj\.weight: missing \(8 tensors"),
    "fewer experts": (configured(n_routed_experts=4), r"8 tensors like .*for its 4 experts; .*not of one model"),
    "another model": (
        configured(model_type="qwen2_moe", num_experts=EXPERTS, mlp_only_layers=[0]),
        r"o_proj\.weight: \[32, 64\] by .*, \[32, 32\] by config.json; they are not of one model",
    ),
    "quantised": (configured(quantization_config={"quant_method": "fp8"}), "quantization_config: 'fp8' weights cannot"),
    "quantised in the files": (
        changed(NORM, lambda value: value.to(torch.float8_e4m3fn)),
        f"{NORM}.*F8_E4M3, a quantised or packed type",
    ),
    "cut short": (cut, r"model-00003-of-\d+\.safetensors: is cut short"),
    "a shard is missing": (lambda folder: shard(folder).unlink(), r"no file 'model-00003-of-\d+\.safetensors'"),
    "no config": (lambda folder: (folder / "config.json").unlink(), r"config\.json: (cannot be read|no such|missing)"),
    "an unknown model": (configured(model_type="nonsense"), r"config\.json: model_type: 'nonsense' is neither"),
    "a config that cannot be": (configured(num_attention_heads="many"), r"config\.json: "),
    "a parameter given twice": (twice, "is model.layers.1.mlp.experts.gate_up_proj in the model, and so is"),
}


@pytest.mark.parametrize("case", SPOILED)
def test_a_checkpoint_that_is_not_whole_is_refused_before_it_is_read(
    case: str, saved: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, (spoil, message) = copy_of(saved("deepseek_v2"), tmp_path), SPOILED[case]
    spoil(folder)
    refused(plan_of(tiny_model("deepseek_v2")), folder, message, monkeypatch)


def refused(plan: Any, folder: Path, message: str, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    reads = Reads(monkeypatch)
    with vgpu.ledger() as ledger:
        with pytest.raises(MoeplanError, match=message) as caught:
            load(plan, folder, progress=False, **{"devices": VIRTUAL, **options})
        assert not any(size > 64 for size in ledger.peak.values())  # a device is tried with a few bytes
    assert not reads.opened
    assert "\n" not in str(caught.value)


def test_plans_devices_and_types_that_do_not_fit_are_refused(
    saved: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, model = saved("deepseek_v2"), tiny_model("deepseek_v2")
    plan = plan_of(model)
    for wrong, message, options in (
        (plan.replace(layers=plan.layers[:2]), "the plan has 2, DeepseekV2ForCausalLM has 3", {}),
        (plan_of(model, **{"cuda:1": HALF}), r"layers\[1\]\.experts: 4 of 8 are on no device", {}),
        (plan_of(model, "cuda:99"), "cuda:99: this machine has", {}),
        (plan, "the meta device computes nothing", {"devices": {"cuda:0": "meta"}}),
        (plan, "dtype: 'int8' is none of", {"dtype": "int8"}),
        (plan, "dtype: 'huge' is none of", {"dtype": "huge"}),
        ({"layers": []}, "placement", {}),
    ):
        refused(wrong, folder, message, monkeypatch, **options)
    refused(plan, tmp_path / "nowhere", "nowhere: no such file or folder", monkeypatch)
    refused(plan, tmp_path, "has no .safetensors file", monkeypatch)


def test_too_little_memory_is_noticed_before_anything_is_read(
    saved: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, model = saved("deepseek_v2"), tiny_model("deepseek_v2")
    weights = sum(parameter.nbytes for parameter in model.parameters())
    plan = plan_of(model, "cpu", "cpu")
    monkeypatch.setattr(room, "free_bytes", lambda device: weights)
    refused(plan, folder, r"^cpu: the plan puts .* GB of weights there, but .* GB are free", monkeypatch)
    monkeypatch.setattr(room, "free_bytes", lambda device: weights + 20_000)
    load(plan, folder, progress=False)  # and what converting one expert takes
    monkeypatch.setattr(room, "free_bytes", lambda device: weights - 1 if device.type == "vgpu" else 0)
    refused(plan_of(model), folder, "^vgpu:0: the plan puts", monkeypatch)
    monkeypatch.setattr(room, "free_bytes", lambda device: weights if device.type == "vgpu" else 0)
    load(plan_of(model), folder, devices=VIRTUAL, progress=False)


def test_free_memory_is_what_the_system_and_the_driver_say(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < (room.free_bytes(torch.device("cpu")) or 0) < 2**50
    assert room.free_bytes(torch.device("vgpu:0")) is None
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (700, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 60)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 20)
    assert room.free_bytes(torch.device("cuda:0")) == 740


# ---- memory runs out ----


class Allocations(TorchDispatchMode):
    """Counts the tensors with memory of their own that are made, and what of it on the CPU is alive at most.

    `fail_at` raises torch.OutOfMemoryError in place of that allocation.
    """

    def __init__(self, fail_at: int = 0) -> None:
        super().__init__()
        self.count, self.fail_at = 0, fail_at
        self.host = vgpu.Ledger()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {storage_of(tensor) for tensor in flat((args, kwargs))}
        new = [tensor for tensor in flat(out) if tensor.device.type != "meta" and storage_of(tensor) not in given]
        for tensor in new:
            self.count += 1
            if self.count == self.fail_at:
                raise torch.OutOfMemoryError(f"allocation {self.count}")
            if tensor.device.type == "cpu":
                self.host.hold(tensor.untyped_storage(), tensor.device)
        return out


def flat(tree: Any) -> list[Any]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def storage_of(tensor: Any) -> int:
    return int(getattr(tensor, "elem", tensor).untyped_storage()._cdata)


def held(folder: Path) -> Counter[str]:
    """Bytes of all tensors there are, by device, and open files and mappings of the checkpoint."""
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    found = Counter({"tensors": sum(t.numel() * t.element_size() for t in tensors if not t.is_meta)})
    if sys.platform == "linux":
        found["mapped"] = Path("/proc/self/maps").read_text().count(str(folder))
        found["open"] = sum(str(folder) in str(fd.resolve()) for fd in Path("/proc/self/fd").iterdir())
    return found


@pytest.fixture
def few_objects() -> Iterator[None]:
    """Whatever there is before a test need not be looked through again and again."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def fails_clean(plan: Placement, folder: Path, error: type[BaseException], **options: Any) -> BaseException:
    """Load, which must raise `error`; while the error is held nothing else is."""
    gc.collect()
    before = held(folder)
    with vgpu.ledger(options.pop("caps", None)) as ledger:
        with pytest.raises(error) as caught:
            load(plan, folder, devices=VIRTUAL, progress=False)
        assert not ledger.live_bytes
    assert held(folder) == before
    return caught.value


@pytest.mark.usefixtures("few_objects")
@pytest.mark.parametrize(("family", "changes"), [("deepseek_v2", FEW), ("gpt_oss", {"num_hidden_layers": 1})])
def test_no_memory_for_any_allocation_leaves_nothing_held(
    family: str, changes: dict[str, Any], saved: Callable[..., Path]
) -> None:
    """Of whatever size, for whatever purpose: a parameter, a converted expert, a rotary table."""
    folder, plan = saved(family, **changes), split_plan(tiny_model(family, **changes))
    with Allocations() as allocations, vgpu.ledger():
        load(plan, folder, devices=VIRTUAL, progress=False)
    assert allocations.count > 60
    for number in range(1, allocations.count + 1):
        with Allocations(fail_at=number):
            problem = fails_clean(plan, folder, MoeplanError)
        assert "\n" not in str(problem)


@pytest.mark.usefixtures("few_objects")
def test_a_gpu_that_is_full_at_any_moment_is_emptied(saved: Callable[..., Path]) -> None:
    folder = saved("deepseek_v2", **FEW)
    plan = split_plan(tiny_model("deepseek_v2", **FEW))
    with vgpu.ledger() as ledger:
        model = load(plan, folder, devices=VIRTUAL, progress=False)
        peak = {str(device): size for device, size in ledger.peak.items()}
        sizes = {d: sorted(p.nbytes for p in model.parameters() if str(p.device) == d) for d in peak}
        del model
    for device, limits in sizes.items():
        for size in (*(sum(limits[:count]) for count in range(1, len(limits))), peak[device] - 1):
            problem = fails_clean(plan, folder, ApplyError, caps={device: max(8, size)})
            assert device in str(problem)
    with vgpu.ledger(caps=peak):  # to the byte
        load(plan, folder, devices=VIRTUAL, progress=False)


@pytest.mark.usefixtures("few_objects")
def test_a_file_that_cannot_be_read_or_an_interruption_leaves_nothing_held(
    saved: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved("deepseek_v2", **FEW)
    plan = split_plan(tiny_model("deepseek_v2", **FEW))
    count = sum(len(load_file(file)) for file in folder.glob("*.safetensors"))
    for number in range(1, count + 1):
        error = (OSError("input/output error"), torch.OutOfMemoryError("no memory"), KeyboardInterrupt())[number % 3]
        with monkeypatch.context() as patch:
            reads = Reads(patch, fail_at=number, error=error)
            kind = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else MoeplanError
            problem = fails_clean(plan, folder, kind)
        assert reads.read.total() == number
        if kind is MoeplanError:
            assert str(folder) in str(problem)
            assert "cannot be read" in str(problem)


@pytest.mark.usefixtures("few_objects")
def test_what_fails_after_reading_leaves_nothing_held(
    saved: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved("deepseek_v2", **FEW)
    plan = split_plan(tiny_model("deepseek_v2", **FEW))
    for name in ("_bring_computed", "_hang_parts", "move_weights", "hook_forward", "_announce"):
        with monkeypatch.context() as patch:
            patch.setattr(install, name, interrupted)
            fails_clean(plan, folder, KeyboardInterrupt)


def interrupted(*arguments: Any) -> None:
    raise KeyboardInterrupt


# ---- how much host memory ----


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_host_memory_holds_the_cpu_share_and_one_expert_on_its_way(family: str, saved: Callable[..., Path]) -> None:
    """Counted exactly: everything that torch allocates on the CPU; views of the mapped files are not allocated."""
    folder = saved(family)
    plan = split_plan(tiny_model(family))
    with vgpu.ledger() as ledger:
        allocations = Allocations()
        with allocations:
            model = load(plan, folder, devices=VIRTUAL, progress=False)
        share = sum(p.nbytes for p in (*model.parameters(), *model.buffers()) if p.device.type == "cpu")
        assert share > 10_000
        assert ledger.peak == ledger.live
        one = max(p[0].nbytes for m in anatomy_of(model).experts if m for p in m.parameters() if p.ndim == 3)
        assert allocations.host.peak[torch.device("cpu")] <= share + one + 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
@pytest.mark.skipif("CI" in os.environ, reason="writes and reads 1.2 GB")
def test_peak_of_a_process_that_loads_a_large_checkpoint() -> None:
    command = [sys.executable, "benchmarks/load.py", "--gb", "1.2", "--shards", "4", "--cases", "split", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr or done.stdout
    (row,) = json.loads(done.stdout)
    assert row["checkpoint_bytes"] > 1_200_000_000
    assert 4 * row["cpu_bytes"] > row["checkpoint_bytes"] > row["cpu_bytes"]
    assert row["equal"]
    assert row["peak_bytes"] <= 1.3 * row["cpu_bytes"] + row["shard_bytes"]


# ---- the bar ----


def test_progress_goes_to_standard_error(saved: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder, model = saved("mixtral"), tiny_model("mixtral")
    load(plan_of(model, "cpu", "cpu"), folder)
    shown = capsys.readouterr()
    size = sum(parameter.nbytes for parameter in model.parameters())
    assert "loading MixtralForCausalLM" in shown.err
    assert f"{size / 1000:.1f}/{size / 1000:.1f} kB" in shown.err
    assert not shown.out
    load(plan_of(model, "cpu", "cpu"), folder, progress=False)
    assert capsys.readouterr() == ("", "")


def test_importing_load_does_not_import_torch() -> None:
    code = "import sys, runtime_adapter.load; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
