"""Another name for the virtual GPUs."""

from runtime_adapter.virtual_gpus import *  # noqa: F403
from runtime_adapter.virtual_gpus import VTensor, ledger  # noqa: F401
