"""Watches what a reader does beside reading: it may write nothing, run nothing and ask nobody."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

FORBIDDEN: Final = frozenset(
    {
        *("os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "subprocess.Popen", "pty.spawn"),
        *("socket.connect", "socket.bind", "urllib.Request", "ctypes.dlopen"),
        *(
            "os.rename",
            "os.remove",
            "os.mkdir",
            "os.rmdir",
            "os.link",
            "os.symlink",
            "os.truncate",
            "os.chmod",
        ),
        *("shutil.rmtree", "shutil.copyfile", "shutil.move", "tempfile.mkstemp", "tempfile.mkdtemp"),
    }
)
_WRITES: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Watch:
    """What was seen while the watch was on."""

    def __init__(self) -> None:
        self.on = False
        self.seen: list[str] = []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event in FORBIDDEN or (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES
        ):
            self.seen.append(f"{event} {arguments!r}")

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Nothing may be written or run inside the block.

        Raises:
            AssertionError: when something was.
        """
        self.on = True
        try:
            yield
        finally:
            self.on = False
        seen, self.seen = self.seen, []
        assert not seen, f"a reader did more than read: {seen[:3]}"
