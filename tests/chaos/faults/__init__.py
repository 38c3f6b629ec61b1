"""Every fault, by name."""

from collections.abc import Mapping

from tests.chaos.faults import broker, database, network, operations, pools, processes, providers
from tests.chaos.run import Fault

FAULTS: Mapping[str, Fault] = {
    fault.name: fault
    for group in (processes, broker, database, network, providers, pools, operations)
    for fault in group.FAULTS
}
