"""shared/runtime/memory.py: the memory of growing mails, and how often garbage is collected."""

import subprocess
import sys

GROWING = """
import re
from pathlib import Path
from shared.runtime import memory

def octets(what: str) -> int:
    return 1024 * int(re.search(what + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

memory.keep_large_blocks_apart()
bytearray(31 * 1024 * 1024)  # freed at once: glibc by itself keeps no block up to this size apart from here on
Path("/proc/self/clear_refs").write_text("5")
before = octets("VmRSS")
mails = [bytearray() for _ in range(20)]
for _ in range(100):
    for number, mail in enumerate(mails):
        mail += bytes(30_000 + 1_500 * number)
print((octets("VmHWM") - before) / sum(map(len, mails)))
"""


def test_mails_that_grow_side_by_side_take_little_more_than_their_size() -> None:
    ended = subprocess.run([sys.executable, "-c", GROWING], capture_output=True, text=True, check=True)

    assert 0.9 < float(ended.stdout) < 1.2


def test_the_garbage_collector_runs_less_often_and_skips_older_objects() -> None:
    tuned = "import gc; from shared.runtime import memory; memory.tune_garbage_collector(); "
    shown = "print(gc.get_threshold()[0] == memory.GC_THRESHOLD, gc.get_freeze_count() > 1000)"

    ended = subprocess.run([sys.executable, "-c", tuned + shown], capture_output=True, text=True, check=True)

    assert ended.stdout == "True True\n"
