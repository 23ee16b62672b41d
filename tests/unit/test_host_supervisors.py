"""Who else drives the engine's container, found in the files of a small host."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparkd.host.supervisors import drives, starters


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("/usr/bin/docker start vllm_ds4", True),
        ("/usr/bin/docker exec vllm_ds4 bash /workspace/vllm-head-090.sh", True),
        ("/usr/bin/docker exec vllm_ds4 bash -c 'pkill -9 -f \"vllm serve\" || true'", True),
        ("docker compose -f /srv/vllm.yaml up -d vllm_ds4", True),
        ("/opt/vllm/bin/vllm serve /models/x --port 8000", True),
        ("python3 -m vllm.entrypoints.openai.api_server --model x", True),
        ("/usr/bin/docker exec vllm_ds4 curl -sf http://localhost:8000/health", False),
        ("/usr/bin/docker logs -f vllm_ds4", False),
        ("/usr/bin/docker start vllm_ds4_old", False),
        ("/usr/bin/docker start my-vllm_ds4", False),
        ("/usr/sbin/nginx -g daemon", False),
    ],
)
def test_what_drives_and_what_only_looks(command: str, expected: bool) -> None:
    assert drives(command, "vllm_ds4") is expected


def test_units_drop_ins_scripts_users_and_cron_are_found(tmp_path: Path) -> None:
    def write(path: str, text: str) -> None:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    system = "etc/systemd/system"
    write(
        f"{system}/head.service",
        "[Service]\nExecStartPre=/bin/sleep 5\nExecStart=docker \\\n  exec vllm_ds4 bash /w/x.sh\n",
    )
    write(
        f"{system}/watch.service", "[Service]\nExecStart=docker logs -f vllm_ds4\n# ExecStart=docker start vllm_ds4\n"
    )
    write(f"{system}/wrapped.service", "[Service]\nExecStart=/bin/bash /home/milo/start.sh\n")
    write("home/milo/start.sh", "#!/bin/bash\n# docker stop vllm_ds4\ndocker start vllm_ds4\n")
    write(f"{system}/quiet.service.d/override.conf", "[Service]\nExecStart=\nExecStart=vllm serve /m\n")
    write("usr/lib/systemd/system/nginx.service", "[Service]\nExecStart=/usr/sbin/nginx\n")
    write("home/milo/.config/systemd/user/mine.service", "[Service]\nExecStart=vllm serve /m\n")
    write("etc/cron.d/vllm", "# docker start vllm_ds4\n@reboot root docker start vllm_ds4\n")
    (tmp_path / "lib").symlink_to("usr/lib")
    found = {one.name.rpartition("/")[2]: one for one in starters("vllm_ds4", tmp_path)}
    assert set(found) == {"head.service", "wrapped.service", "quiet.service", "mine.service", "vllm"}
    assert found["head.service"].line == "ExecStart=docker exec vllm_ds4 bash /w/x.sh"
    assert (found["mine.service"].kind, found["mine.service"].enabled) == ("user unit", False)
    assert found["vllm"].line == "@reboot root docker start vllm_ds4"
    wants = tmp_path / "home/milo/.config/systemd/user/default.target.wants"
    wants.mkdir()
    (wants / "mine.service").symlink_to("../mine.service")
    assert next(one for one in starters("vllm_ds4", tmp_path) if one.name == "mine.service").enabled


def test_an_empty_host_has_none(tmp_path: Path) -> None:
    assert starters("vllm_ds4", tmp_path) == []
