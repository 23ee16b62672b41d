"""How the boot before this one ended: decided from real journals, and from what kernels and samples say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sparkd.doctor import last_boot
from sparkd.doctor.boot_end import Ending, LastBoot, Left, how_it_ended, in_words
from sparkd.host import clock, samples
from sparkd.host.paths import Paths
from sparkd.host.samples import Gpu, Ring, Sample
from sparkd.model.finding import Verdict

DATA = Path(__file__).resolve().parents[1] / "data/boots"
REBOOT, CUT = ((DATA / f"{name}.journal").read_text() for name in ("reboot", "power-cut"))
ENDED = 1795271983.0  # 2026-11-21 14:39:43 UTC, the power cut's last line
BOOT = "3f82f72a-13f3-48bc-83eb-2a296b68d754"

SAMPLE = Sample(
    ENDED - 4, 400.0, BOOT, "serving", 18, available_mib=3994, swap_mib=16384, swap_free_mib=16384, memory_stall=0.0, load=2.1,
    carrier=True, running=1, waiting=0, gpu=Gpu(61, 45, 96, 2411),
)  # fmt: skip
HUNG = """\
2026-11-21T14:38:02+0000 spark1 kernel: INFO: task VLLM::Worker_TP:4242 blocked for more than 122 seconds.
2026-11-21T14:38:02+0000 spark1 kernel: "echo 0 > /proc/sys/kernel/hung_task_timeout_secs" disables this message.
"""
OOM = """\
2026-11-21T14:39:40+0000 spark1 kernel: python3 invoked oom-killer: gfp_mask=0x140cca(GFP_HIGHUSER_MOVABLE), order=0
2026-11-21T14:39:41+0000 spark1 kernel: Out of memory: Killed process 1234 (sshd) total-vm:17416kB, anon-rss:1024kB
"""
XID = "2026-11-21T14:39:30+0000 spark1 kernel: NVRM: Xid (PCI:000f:01:00): 79, GPU has fallen off the bus.\n"
OOPS = "2026-11-21T14:39:41+0000 spark1 kernel: Internal error: Oops: 0000000096000004 [#1] SMP\n"
PANIC = (
    "Panic#1 Part1\n<0>[ 401.1] Kernel panic - not syncing: Fatal exception in interrupt\n<0>[ 401.2] SMP: stopping\n"
)


def left(**more: Any) -> Left:
    given: dict[str, Any] = {
        "boot_id": BOOT,
        "samples": (SAMPLE,),
        "journal": CUT,
        "kernel": "",
        "next_began": ENDED + 95,
    }
    return Left(**(given | more))


def late(seconds: float) -> str:
    """A journal that goes on for so long after the last sample."""
    return CUT.replace("2026-11-21T14:39:43", f"2026-11-21T14:{39 + int(seconds // 60)}:43")


@pytest.mark.parametrize(
    ("what", "ending", "says"),
    [
        (left(), Ending.POWER, "its journal stops without a word"),
        (left(journal=REBOOT), Ending.CLEAN, "the journal ends as a shutdown ends it"),
        (left(pstore={"dmesg-efi-1": PANIC}), Ending.PANIC, "Kernel panic - not syncing: Fatal exception in interrupt"),
        (left(pstore={"dmesg-efi-1": "Panic#2 Part5\n<4>[ 1.0] x\n"}), Ending.PANIC, "its last words in pstore"),
        (left(pstore={"dmesg-efi-1": "Shutdown#1 Part1\n"}, journal=REBOOT), Ending.CLEAN, "shutdown"),
        (left(kernel=OOPS), Ending.PANIC, "the kernel met a fault"),
        (left(kernel=OOPS, journal=REBOOT), Ending.CLEAN, "shutdown"),  # it lived on, and was rebooted for it
        (left(kernel=HUNG), Ending.HANG, "tasks or processors that did not come back"),
        (left(kernel=HUNG.replace("T14:38", "T11:38")), Ending.POWER, "without a word"),  # three hours before: no reason
        (left(kernel=OOM), Ending.HANG, "memory was exhausted"),
        (left(samples=(replace(SAMPLE, memory_stall=88.0),)), Ending.HANG, "all tasks waited for it 88 %"),
        (left(watchdog_reset=True), Ending.HANG, "the hardware watchdog reset it"),
        (left(kernel=XID), Ending.POWER, "after a fault of the GPU"),
        (left(journal=late(180)), Ending.HANG, "could not take a sample any more 184 s before the end"),
        (left(journal=late(180), samples=(replace(SAMPLE, mark="ended"),)), Ending.POWER, "without a word"),
        (left(journal=None, kernel=None), Ending.POWER, "by our samples alone"),
        (left(journal=None, kernel=None, samples=(SAMPLE, replace(SAMPLE, mark="stopped"))), Ending.CLEAN, "told to stop"),
        (left(samples=(replace(SAMPLE, mark="stopped"),)), Ending.POWER, "without a word"),  # the journal knows better
        (left(samples=(), journal=None, kernel=None, unseen=("no journal",)), Ending.UNKNOWN, "no journal"),
    ],
)  # fmt: skip
def test_the_ending_is_named(what: Left, ending: Ending, says: str) -> None:
    verdict = how_it_ended(what)
    assert verdict.ending is ending
    assert says in verdict.says
    assert verdict.unclean == (ending in (Ending.PANIC, Ending.POWER, Ending.HANG))


def test_a_shutdown_counts_from_its_last_words_only() -> None:
    lines = REBOOT.splitlines()
    for cut in (1, 2, 5, 10):  # the very last lines may be lost: the file system was gone by then
        assert how_it_ended(left(journal="\n".join(lines[:-cut]))).ending is Ending.CLEAN
    begun = CUT + "2026-11-21T14:39:43+0000 spark2 systemd-logind[70]: The system will reboot now!\n"
    assert how_it_ended(left(journal=begun)).ending is Ending.HANG
    assert "did not end" in how_it_ended(left(journal=begun)).says


def test_a_restarted_journal_is_no_shutdown() -> None:
    restarted = (
        "2026-11-21T14:30:00+0000 spark2 systemd-journald[31]: Journal stopped\n"
        "2026-11-21T14:30:00+0000 spark2 systemd-journald[99]: Journal started\n"
    )
    assert how_it_ended(left(journal=restarted + CUT)).ending is Ending.POWER
    assert how_it_ended(left(journal=REBOOT + CUT)).ending is Ending.POWER  # `Startup finished` follows


def test_what_the_last_seconds_looked_like_is_said() -> None:
    verdict = how_it_ended(left())
    assert verdict.says == (
        "the last boot ended: power loss (its journal stops without a word); last sign of life at 2026-11-21 14:39:43 UTC, "
        "95 s before this boot began; then serving epoch 18, 3.9 GiB of memory available, 0.0 GiB swapped out, load 2.1, "
        "GPU 61 °C 45 W 96 % 2411 MHz, link up, 1 running and 0 waiting requests"
    )
    assert verdict.evidence[0].startswith("2026-11-21 14:39:39 UTC: serving epoch 18")
    assert verdict.evidence[-1].endswith("Startup finished in 1.157s.")
    assert in_words(Sample(0, 0, BOOT, "idle", 0)) == "idle epoch 0"


def test_a_clean_end_is_one_short_sentence() -> None:
    verdict = how_it_ended(left(journal=REBOOT))
    assert verdict.says == "the last boot ended: clean (the journal ends as a shutdown ends it)"
    assert verdict.evidence == ()


def test_secrets_in_the_journal_are_not_passed_on() -> None:
    line = "2026-11-21T14:39:43+0000 spark2 bash[1]: vllm serve --api-key sk-verysecret0123456789abcdef\n"
    verdict = how_it_ended(left(journal=CUT + line))
    assert "sk-verysecret" not in str(verdict)


@pytest.mark.parametrize("stamp", ["+0000", "+00:00"])
def test_times_of_either_form_are_read(stamp: str) -> None:
    assert how_it_ended(left(journal=CUT.replace("+0000", stamp))).ended_at == ENDED


# --- the check -----------------------------------------------------------------------------------


def asked(tmp_path: Path, status: dict[str, Any] | None) -> Any:
    facts: Any = SimpleNamespace(paths=Paths(state=tmp_path), status=status)
    [finding] = last_boot.last_boot.asked(facts)
    return finding


def kept(tmp_path: Path, ending: Ending, seen_by: str | None = None) -> None:
    verdict = LastBoot(
        seen_by=seen_by or clock.boot_id(), ending=ending, says=f"the last boot ended: {ending}", evidence=("x",)
    )
    last_boot.store(Paths(state=tmp_path), verdict)


def test_it_is_doubtful_until_the_node_has_served_again(tmp_path: Path) -> None:
    kept(tmp_path, Ending.POWER)
    finding = asked(tmp_path, {"serving": False})
    assert (finding.id, finding.layer, finding.verdict) == ("unit.last-boot", "unit", Verdict.WARNING)
    assert finding.evidence == ("x",) and finding.remedy
    assert asked(tmp_path, {"serving": True}).verdict is Verdict.GOOD
    ring = Ring(tmp_path / samples.FILE)
    ring.append(SAMPLE)  # it served before that boot: no news
    assert asked(tmp_path, {"serving": False}).verdict is Verdict.WARNING
    ring.append(replace(SAMPLE, boot_id=clock.boot_id()))
    assert asked(tmp_path, {"serving": False}).verdict is Verdict.GOOD


def test_a_clean_end_is_good_and_an_unknown_one_unknown(tmp_path: Path) -> None:
    assert asked(tmp_path, {"serving": False}).verdict is Verdict.UNKNOWN
    kept(tmp_path, Ending.UNKNOWN)
    assert asked(tmp_path, {"serving": False}).verdict is Verdict.UNKNOWN
    kept(tmp_path, Ending.CLEAN)
    assert asked(tmp_path, {"serving": False}).verdict is Verdict.GOOD
    kept(tmp_path, Ending.POWER, seen_by="an earlier boot")  # what it says is of a boot before the last
    assert asked(tmp_path, {"serving": False}).verdict is Verdict.UNKNOWN


def test_without_a_daemon_the_doctor_looks_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no journalctl
    assert asked(tmp_path, None).verdict is Verdict.UNKNOWN
    Ring(tmp_path / samples.FILE).append(SAMPLE)
    finding = asked(tmp_path, None)
    assert finding.verdict is Verdict.WARNING
    assert "power loss" in finding.says


def test_a_damaged_file_is_as_none(tmp_path: Path) -> None:
    (tmp_path / last_boot.FILE).write_text("{")
    assert asked(tmp_path, {"serving": False}).verdict is Verdict.UNKNOWN
