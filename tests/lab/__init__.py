"""The two-node lab: real systemd, real Docker, real network; only vLLM in it is a simulation (see api.py)."""
