"""A process that looks like a vLLM worker left over on the host: its name, its title, and a port that it holds.

Started as `exec -a VLLM::Worker_TP0 python3 stale_worker.py 29501`.
"""

import ctypes
import signal
import socket
import sys

PR_SET_NAME = 15
ctypes.CDLL(None).prctl(PR_SET_NAME, b"VLLM::Worker_TP", 0, 0, 0)  # the kernel keeps 15 bytes
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("0.0.0.0", int(sys.argv[1])))
listener.listen()
signal.pause()
