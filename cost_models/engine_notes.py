"""Where it is the engine and not the hardware that decides where experts are better off."""

from __future__ import annotations

from cost_models.cost_model import CostModel

FUSED = "llama.cpp"
"""An engine whose GPU kernels run all of a layer's experts at once: what the hardware could do."""


def engine_notes(costs: CostModel) -> tuple[str, ...]:
    """One line where experts that are with their attention on a GPU take longer in a decode step than on the CPU, and
    would not with an engine of fused kernels; nothing elsewhere.

    >>> from profiles import load_hardware, load_profile
    >>> machine = load_hardware("1xRTX4090,cpu=EPYC-9654")
    >>> engine_notes(CostModel(load_profile("deepseek-v2", "q4_k_m"), machine, target="ktransformers"))[0][-39:]
    'so the engine decides, not the hardware'
    >>> engine_notes(CostModel(load_profile("deepseek-v2", "q4_k_m"), machine, target="llama.cpp"))
    ()
    """
    layer = next((i for i, layer in enumerate(costs.profile.layers) if layer.experts is not None), None)
    gpu = next(iter(costs.hardware.gpus), None)
    if layer is None or gpu is None or costs.engine.name == FUSED:
        return ()
    fused = CostModel(costs.as_stored, costs.hardware, costs.workload, target=costs.target, engine=FUSED)
    step = costs.decode_step()
    here, there = (costs.experts_from_s(layer, gpu.name, device, step) for device in (gpu.name, "cpu"))
    could, would = (fused.experts_from_s(layer, gpu.name, device, step) for device in (gpu.name, "cpu"))
    if here <= there or could > would:
        return ()
    return (
        f"{costs.engine.name}: experts of a layer take {here * 1e3:.2f} ms on {gpu.name} in a decode step, "
        f"{there * 1e3:.2f} ms on the CPU; with fused kernels ({FUSED}) it would be {could * 1e3:.2f} and "
        f"{would * 1e3:.2f} ms, so the engine decides, not the hardware",
    )
