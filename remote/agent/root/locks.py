"""Files to lock, also where the file system knows no locks: Lustre and others, as clusters mount
them."""

import errno
import fcntl
import hashlib
import os
import tempfile

NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


def open_lock(path: str) -> int:
    """An open file whose lock stands for `path`: itself, or one on this host's own disk."""
    file = _open(path)
    try:
        fcntl.flock(file, fcntl.LOCK_UN)  # a question: nothing is locked by it
    except OSError as error:
        os.close(file)
        if error.errno not in NO_LOCKS:
            raise
        name = hashlib.sha256(os.fsencode(os.path.abspath(path))).hexdigest()[:24]
        return _open(os.path.join(tempfile.gettempdir(), f".lock-{os.getuid()}-{name}"))
    return file


def _open(path: str) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
