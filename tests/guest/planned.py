"""Run in a guest: prints how each kind of probe would be attached there, [row, place, fentry] by backend."""

import json

from uffdtrace.kernel import preflight, probes
from uffdtrace.kernel.btf import Btf
from uffdtrace.kernel.symbols import Symbols

with Btf() as btf:
    plans = {one: probes.plan(btf, Symbols(), one, preflight.preemptible()) for one in probes.Backend}
print(
    json.dumps(
        {backend.value: [(one.row.name, one.place, one.fentry) for one in plan] for backend, plan in plans.items()}
    )
)
