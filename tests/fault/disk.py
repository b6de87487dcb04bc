"""The small disk that the journal of the disturbed server lies on."""

import contextlib
import os
import pathlib
import subprocess

SIZE = "48m"


class Disk:
    """A file system of its own in the folder, where root may mount one; else a plain folder, which cannot be filled up."""

    def __init__(self, folder):
        self.path = pathlib.Path(folder, "disk")
        self.path.mkdir()
        p = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", self.path], capture_output=True)
        self.is_own = p.returncode == 0
        self.journal = self.path / "journal.db"

    def fill(self):
        """Until not a byte more goes on it."""
        assert self.is_own
        with contextlib.suppress(OSError), open(self.path / "filler", "ab", 0) as f:
            for n in (1 << 20, 4096, 1):
                with contextlib.suppress(OSError):
                    while True:
                        f.write(bytes(n))

    def free(self):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path / "filler")

    def log_state(self):
        """(which log it is, its bytes): a log that was copied into the database begins anew with other salts."""
        log = self.path / "journal.db-wal"
        data = log.read_bytes()[:32] if log.exists() else b""
        return data[16:24], log.stat().st_size if data else 0

    def tear_journal(self, rng, before):
        """What was written behind the log_state `before` is cut off or becomes garbage somewhere, as by a loss of power; says which."""
        salts, n = self.log_state()
        first = before[1] if salts == before[0] else 32
        if n <= first:
            return "nothing was written"
        at = rng.randrange(first, n)
        with open(self.path / "journal.db-wal", "r+b") as f:
            if rng.random() < 0.5:
                f.truncate(at)
                return f"the log cut off at byte {at} of {n}"
            f.seek(at)
            f.write(rng.randbytes(min(n - at, 5000)))
            return f"garbage in the log from byte {at} of {n}"

    def close(self):
        if self.is_own:
            subprocess.run(["umount", "-l", self.path], check=True)
