"""Freed memory goes back to the system."""

import subprocess
import sys

from tests.support.measure import anonymous_bytes

SCRIPT = """
import torch
from surgery.diffusion import give_back_freed
from tests.support.measure import anonymous_bytes

{call}
torch.zeros(30 << 20, dtype=torch.uint8)  # freed at once: glibc now keeps blocks of that size
start = anonymous_bytes()
blocks = [torch.ones(8 << 20, dtype=torch.uint8) for _ in range(40)]
del blocks[:-1]  # the last one lies above the others
print(anonymous_bytes() - start)
"""


def left(call: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(call=call)], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def test_blocks_of_megabytes_leave_no_holes() -> None:
    assert anonymous_bytes() > 0
    assert left("") > 200 << 20
    assert left("give_back_freed()") < 20 << 20
