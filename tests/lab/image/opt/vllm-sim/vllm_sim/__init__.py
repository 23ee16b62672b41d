"""A simulated vLLM: the process tree, log, ports, HTTP API and deaths of the real one, without a model.

Field recordings of vLLM 0.32.0 are the reference (tests/data/field in the checkout). Standard library only, because the
lab's container image has nothing else.
"""

VERSION = "0.32.0+lab.simulated"
NOTE = "(simulated vLLM of the sparkd lab: no model runs here)"
