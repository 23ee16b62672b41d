"""sparkd: the node agent for a small cluster of DGX Spark machines that serve one model with vLLM."""

__version__ = "0.1.0"
