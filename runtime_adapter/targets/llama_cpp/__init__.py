"""llama.cpp and ik_llama.cpp: a plan as a command line, and such a command line as a plan."""

from runtime_adapter.targets.llama_cpp.target import IK_LLAMA_CPP, LLAMA_CPP

__all__ = ["IK_LLAMA_CPP", "LLAMA_CPP"]
