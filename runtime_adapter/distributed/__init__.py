"""One plan over several processes and hosts: stages cut where it changes host, hidden states through torch.distributed.

Importing this does not import torch; calling `load_distributed` does.
"""

from runtime_adapter.distributed.load import load_distributed
from runtime_adapter.distributed.stages import Stage, stages_of

__all__ = ["Stage", "load_distributed", "stages_of"]
