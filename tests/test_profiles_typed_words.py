"""What people type: 210 machines in words of forums, drivers and listings, and what is said of those nobody knows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from profiles import Hardware, HardwareError, load_hardware
from profiles.catalogue import find_cpu, find_gpu
from profiles.read_phrase import read_phrase


class Typed(NamedTuple):
    """One row of tests/hardware_phrases.txt, as written there."""

    phrase: str
    gpus: str
    cpu: str
    ram: str


LINES = (Path(__file__).parent / "hardware_phrases.txt").read_text(encoding="utf-8").splitlines()
ROWS = [Typed(*line.rsplit(" | ", 3)) for line in LINES if line and not line.startswith("#")]
KNOWN, UNKNOWN = [row for row in ROWS if row.gpus != "?"], [row for row in ROWS if row.gpus == "?"]


def told(machine: Hardware, row: Typed) -> list[str]:
    """What of the machine is not as the row says; empty where all is."""
    wrong, gpus = [], list(machine.gpus)
    for group in [] if row.gpus == "-" else row.gpus.split(" + "):
        count, name, gb, gb_per_s = re.fullmatch(r"(\d+)x(.*)@(.*)@(.*)", group).groups()  # type: ignore[union-attr]
        these, gpus = gpus[: int(count)], gpus[int(count) :]
        part = find_gpu(name)
        for gpu in these:
            memory = machine.pools[0].memory_bytes if gpu.pool else gpu.memory_bytes
            if part is None or gpu.model != part.name:
                wrong.append(f"{gpu.model} is no {name}")
            if not 0.93 <= memory / float(gb) / 1e9 <= 1.0755:  # with ECC on, or of 2^30
                wrong.append(f"{memory} is not {gb} GB")
            if gpu.bandwidth_bytes_per_s != pytest.approx(float(gb_per_s) * 1e9, rel=0.005):
                wrong.append(f"{gpu.bandwidth_bytes_per_s} is not {gb_per_s} GB/s")
        wrong += [] if len(these) == int(count) else [f"{len(machine.gpus)} GPUs"]
    wrong += [f"also {gpu.model}" for gpu in gpus]
    if row.cpu != "-":
        name, cores, gb_per_s = row.cpu.split("@")
        part = find_cpu(name)
        if part is None or (machine.cpu.model, machine.cpu.cores) != (part.name, int(cores)):
            wrong.append(f"{machine.cpu.model} of {machine.cpu.cores} cores is no {name} of {cores}")
        if gb_per_s != "-" and machine.cpu.bandwidth_bytes_per_s != pytest.approx(float(gb_per_s) * 1e9, rel=0.005):
            wrong.append(f"RAM: {machine.cpu.bandwidth_bytes_per_s} is not {gb_per_s} GB/s")
    elif "bandwidth=" not in row.phrase and not machine.pools and machine.cpu.model is not None:
        wrong.append(f"there is no {machine.cpu.model}")
    if row.ram != "-" and machine.cpu.memory_bytes != pytest.approx(float(row.ram) * 1e9, rel=1e-6):
        wrong.append(f"RAM: {machine.cpu.memory_bytes} is not {row.ram} GB")
    return wrong


def test_there_are_enough_and_nearly_all_are_known() -> None:
    assert len(ROWS) >= 200
    assert len({row.phrase.lower() for row in ROWS}) == len(ROWS)
    assert len(KNOWN) >= 0.95 * len(ROWS)


@pytest.mark.parametrize("row", KNOWN, ids=[row.phrase for row in KNOWN])
def test_is_understood(row: Typed) -> None:
    machine = load_hardware(row.phrase)
    assert told(machine, row) == []
    assert load_hardware(machine.name) == load_hardware(machine.to_dict()) == machine


@pytest.mark.parametrize(
    "phrase",
    [*(row.phrase for row in UNKNOWN), "2xRTX 9999", "GTX 1080 Ti + 4090", "4090,cpu=FX-8350,ram=32GB", "12345"],
)
def test_what_nobody_knows_is_answered_with_a_document_that_works(phrase: str, tmp_path: Path) -> None:
    with pytest.raises(HardwareError) as caught:
        load_hardware(phrase)
    message = str(caught.value)
    assert "\n" not in message
    assert "docs/profiles.md" in message
    (tmp_path / "my-box.yaml").write_text(re.search(r"\{name: .*\}", message)[0])  # type: ignore[index]
    machine = load_hardware(tmp_path / "my-box.yaml")
    assert machine.gpus or "cpu=" in phrase
    assert machine.cpu.memory_bytes > 0


def test_names_that_are_suggested_can_be_typed() -> None:
    for phrase in ("HGX H100", "A100", "cpu=9955WX", "RTX40", "RTX 4090 Laptop GPU", "cpu=EPYC"):
        with pytest.raises(HardwareError) as caught:
            read_phrase(phrase)
        names = re.search(r"did you mean (.*?)\?", str(caught.value))[1].split(" or ")  # type: ignore[index]
        assert all(read_phrase(f"cpu={name}" if "cpu=" in phrase else name) for name in names)


def test_unknown_parts_in_documents_are_answered_with_figures(tmp_path: Path) -> None:
    path = tmp_path / "box.yaml"
    path.write_text("name: box\ndevices: [{use: RTX 9999}, {use: EPYC-9654, memory_bytes: 1 TB}]\n")
    with pytest.raises(HardwareError) as caught:
        load_hardware(path)
    figures = re.search(r"\{kind: gpu.*\}\}", str(caught.value))[0]  # type: ignore[index]
    path.write_text(path.read_text().replace("{use: RTX 9999}", figures))
    assert load_hardware(path).gpus[0].bandwidth_bytes_per_s == 900e9
