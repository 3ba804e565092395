"""Run in a guest: prints how each kind of probe would be attached there, [row, place, kind] by backend."""

import json

from uffdtrace.kernel import preflight, probes
from uffdtrace.kernel.btf import Btf
from uffdtrace.kernel.symbols import Symbols

with Btf() as btf:
    symbols = Symbols()
    machine = preflight.preemptible(), preflight.has_sessions(btf, symbols)
    plans = {one: probes.plan(btf, symbols, one, *machine) for one in probes.Backend}
print(
    json.dumps(
        {backend.value: [(one.row.name, one.place, one.kind.value) for one in plan] for backend, plan in plans.items()}
    )
)
