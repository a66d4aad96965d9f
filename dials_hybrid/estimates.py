"""What a refinement will take, told before it starts."""

from __future__ import annotations

import time

from .model import HybridModel
from .parallel import in_threads
from .plan import Stage, expected_operations, operations


def seconds(model: HybridModel, plan: tuple[Stage, ...]) -> float:
    """Return the seconds of all passes, from one batch with derivatives that is measured."""
    model = model.coarser(plan[0].slopes)
    batch = model.batches[len(model.batches) // 2]
    table, moved = model.potential_table().detach(), model.potential_moves()
    rotation = model.orientation().detach()
    start = time.perf_counter()
    together = [batch] * model.workers
    for _ in in_threads(
        lambda b: model.batch_tangents(b, table, moved, rotation), together, len(together)
    ):
        pass  # only the time counts
    took = (time.perf_counter() - start) / len(together)
    work = [len(b.blocks) * b.hkl.shape[1] ** 2 for b in model.batches]
    share = len(batch.blocks) * batch.hkl.shape[1] ** 2 / sum(work)
    return took / share / operations(model) * expected_operations(model, plan)


def size(model: HybridModel) -> float:
    """Return the bytes of a refinement in all, an upper estimate."""
    return 8 * _numbers_held(model) + model.working_bytes()


def _numbers_held(model: HybridModel) -> float:
    """Double-precision numbers that stay while blocks come and go."""
    portions, rows = len(model.portions.block), len(model.problem.observations.intensity)
    depths, structure = len(model.depth), _count(model.crystal)
    thickness, everything = _count(model.thickness), _count(model)
    linearised = portions * depths * (structure + 3)
    jacobian = (portions + 5 * rows) * everything + 10 * everything**2
    network = 3 * len(model.block_matrix) * depths * thickness
    error_model = 240 * rows
    # the old linearisation is there until the new one is
    return 2 * linearised + jacobian + network + error_model


def _count(module) -> int:
    return sum(p.numel() for p in module.parameters())
