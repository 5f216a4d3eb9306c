"""What programs that load LoRA-like files do with them: rules as data, and an engine that applies them."""

from surgery.export.loaders.simulate import simulate_file
from surgery.export.loaders.simulation import Held, Simulation
from surgery.export.loaders.table import Loader, rule_table

__all__ = ["Held", "Loader", "Simulation", "rule_table", "simulate_file"]
