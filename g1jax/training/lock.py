"""One writer per folder: a lock that the operating system releases when its process ends, however it ends."""

import errno
import fcntl
import os
import socket
import weakref
from pathlib import Path

from g1jax.errors import ExperimentError

LOCK = "run.lock"
_UNKNOWN = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)  # a file system without locks


class FolderLock:
    """Locks a folder for this process, until it is released or garbage-collected."""

    def __init__(self, folder: Path) -> None:
        """Acquires the lock.

        Raises:
            ExperimentError: another process holds it; the message names the process.
            OSError: the folder cannot be written.
        """
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self.release = weakref.finalize(self, os.close, handle)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 200, 0).decode("ascii", "replace").strip() or "another process"
            self.release()
            raise ExperimentError(
                f"{folder} is being written by {holder}: wait for it, stop it, or give another --workdir"
            ) from None
        except OSError as error:
            if error.errno not in _UNKNOWN:
                self.release()
                raise
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode("ascii", "replace"), 0)
