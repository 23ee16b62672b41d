"""A cluster of one node is the same daemon without a barrier: the shipped gpt-oss-20b recipe on spark2."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.lab.container_image import REFERENCE
from tests.lab.pair import NODES, Pair, wait_for
from tests.lab.places import CHECKOUT

NODE = "spark2"
WEIGHTS = "/home/milo/models/gpt-oss-20b"
SETTINGS = """\
cluster:
  name: alone
  nodes:
    - name: spark2
      link_address: 10.0.0.2
recipe: gpt-oss-20b
"""


@pytest.fixture
def alone(pair: Pair) -> Iterator[Pair]:
    """spark2 with a configuration and a state of its own; afterwards the pair's again."""
    for node in NODES:
        pair.run(node, "systemctl stop sparkd sparkd-engine")
    keep = "mv /etc/sparkd /etc/sparkd.pair; mv /var/lib/sparkd /var/lib/sparkd.pair"
    pair.run(NODE, f"{keep}; mkdir -p /etc/sparkd/recipes {WEIGHTS}")
    recipe = (CHECKOUT / "config/recipes/gpt-oss-20b.yaml").read_text()
    shipped = next(line for line in recipe.splitlines() if line.strip().startswith("image: "))
    recipe = recipe.replace(shipped, f"  image: {REFERENCE}")
    recipe = recipe.replace("gpu-memory-utilization: 0.9", "gpu-memory-utilization: 0.1")
    volume = "    - ~/.cache/flashinfer:/root/.cache/flashinfer"
    recipe = recipe.replace(volume, f"{volume}\n    - /var/lib/sparkd-lab:/lab")
    spark = pair.lab.node(NODE)
    spark.write("/etc/sparkd/sparkd.yaml", SETTINGS)
    spark.write("/etc/sparkd/recipes/gpt-oss-20b.yaml", recipe)
    config = {"architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "max_position_embeddings": 131072}
    spark.write(f"{WEIGHTS}/config.json", json.dumps(config))
    spark.write(f"{WEIGHTS}/model.safetensors", "\x02\0\0\0\0\0\0\0{}")  # a header of two bytes: no tensors
    yield pair
    pair.run(NODE, "systemctl stop sparkd sparkd-engine; docker rm -f vllm-core; rm -rf /etc/sparkd /var/lib/sparkd", check=False)
    pair.run(NODE, f"mv /etc/sparkd.pair /etc/sparkd; mv /var/lib/sparkd.pair /var/lib/sparkd; rm -rf {WEIGHTS}")


def test_one_node_serves_and_recovers_without_a_barrier(alone: Pair) -> None:
    alone.run(NODE, "systemctl start sparkd")
    status = alone.wait_phase("serving", NODE, max_s=90)
    assert [node["node"] for node in status["nodes"]] == [NODE]
    body = json.dumps({"model": "core", "messages": [{"role": "user", "content": "hello"}]})
    ask = f"curl -sS -m 20 -H 'Content-Type: application/json' -d '{body}' http://127.0.0.1:8001/v1/chat/completions"
    assert json.loads(alone.run(NODE, ask))["choices"][0]["message"]["content"]

    alone.kill(NODE, "top")
    wait_for("a newer epoch", lambda: alone.status(NODE).get("epoch", 0) > status["epoch"], max_s=30)
    alone.wait_phase("serving", NODE, max_s=90)
    assert "engine.rank-died" in alone.event_ids(NODE)
