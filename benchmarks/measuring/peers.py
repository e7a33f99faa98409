"""Projections of other packages, each with what it needs to be there; none is a dependency of dataflex.

All get float32 gradients as they are, without Adam: what dataflex does beside the projection is left out for them.
TRAK, dattri and bergson draw their matrix anew in every call, so a call costs the same for few rows as for many, and
time is linear in the number of parameters: they are measured on the first few thousand of them.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from measuring.case import Case
from measuring.contenders import GPU_FACTOR
from measuring.timing import PEER, Contender

DRAWN_ENTRIES = 2**24  # of P in a call of a peer that draws it: half a second
TRAK, DATTRI, BERGSON = "TRAK BasicProjector", "dattri random_project", "bergson project_global"
SKLEARN, FAST_JL = "scikit-learn SparseRandomProjection", "fast_jl"
KIND = "rademacher"


@dataclass(frozen=True)
class Peer:
    """A contender of another package.

    Attributes:
        name: Its row in the tables.
        module: What must be importable.
        package: What ``pip install`` must be given for that.
        devices: Where it runs.
        entries: Entries of P that a call on the CPU may draw.
        make: Prepares a case and returns the call.
    """

    name: str
    module: str
    package: str
    devices: tuple[str, ...]
    entries: float
    make: Callable[[Case], Callable[[], object]]

    def missing(self) -> str | None:
        """The package to install, if it is not there."""
        return None if importlib.util.find_spec(self.module) else f"pip install {self.package}"

    def version(self) -> str:
        """The installed version."""
        return importlib.metadata.version(self.package)

    def contender(self, case: Case) -> Contender:
        """The peer on this case, or on a part of it."""
        entries = self.entries * (GPU_FACTOR if case.device.type == "cuda" else 1)
        part, share = (case, 1.0) if math.isinf(entries) else case.part(int(entries))
        return Contender(self.name, PEER, self.make(part), share, stored=None)


def trak(case: Case) -> Callable[[], object]:
    """TRAK's block-wise projector with random signs."""
    from trak.projectors import BasicProjector, ProjectionType

    projector = BasicProjector(case.parameters, case.dim, 0, ProjectionType.rademacher, case.device)
    return lambda: projector.project(case.grads, model_id=0)


def dattri(case: Case) -> Callable[[], object]:
    """The random projection of dattri with random signs; its CPU form has no sparse kind."""
    from dattri.func.projection import random_project

    project = random_project(
        case.grads, case.rows, case.dim, proj_max_batch_size=32, proj_type=KIND, device=case.device.type
    )
    return lambda: project(case.grads)


def bergson(case: Case) -> Callable[[], object]:
    """The streamed global projection of bergson with random signs."""
    from bergson.collector.collector import project_global

    return lambda: project_global("benchmark", case.grads, case.dim, KIND)


def sklearn(case: Case) -> Callable[[], object]:
    """scikit-learn's sparse map of its own density, 1 / sqrt(p): k / sqrt(p) nonzeros a column, stored."""
    grads = case.grads.numpy()
    projection = _fitted(case.parameters, case.dim)
    return lambda: projection.transform(grads)


@lru_cache(maxsize=1)  # for the cases that differ in b alone: a fit takes up to a minute
def _fitted(parameters: int, dim: int) -> Any:
    from sklearn.random_projection import SparseRandomProjection

    example = np.zeros((1, parameters), dtype=np.float32)  # its shape and dtype alone matter
    return SparseRandomProjection(dim, dense_output=True, random_state=0).fit(example)


def fast_jl(case: Case) -> Callable[[], object]:
    """The CUDA kernel of TRAK with random signs, in half precision, whose rows it takes 8 at a time."""
    import fast_jl as kernel
    import torch

    processors = torch.cuda.get_device_properties(case.device).multi_processor_count
    padded = torch.zeros(-(-case.rows // 8) * 8, case.parameters, dtype=torch.float16, device=case.device)
    padded[: case.rows] = case.grads
    project = kernel.project_rademacher_32 if len(padded) % 32 == 0 else kernel.project_rademacher_8
    return lambda: project(padded, case.dim, 0, processors)


PEERS = (
    Peer(TRAK, "trak", "traker", ("cpu", "cuda"), DRAWN_ENTRIES, trak),
    Peer(DATTRI, "dattri", "dattri", ("cpu", "cuda"), DRAWN_ENTRIES, dattri),
    Peer(BERGSON, "bergson", "bergson", ("cpu", "cuda"), DRAWN_ENTRIES, bergson),
    Peer(SKLEARN, "sklearn", "scikit-learn", ("cpu",), math.inf, sklearn),
    Peer(FAST_JL, "fast_jl", "fast_jl", ("cuda",), math.inf, fast_jl),
)


def available(device: str) -> Iterator[Peer]:
    """The peers that can run; says which are skipped, and what they need."""
    for peer in PEERS:
        if device not in peer.devices:
            print(f"skipped: {peer.name} does not run on {device}")
        elif (command := peer.missing()) is not None:
            print(f"skipped: {peer.name}: {command}")
        else:
            yield peer
