"""Room for the files of many domains: each ledger of a simulation stays open, with its write-ahead log.

The usual soft limit of 1,024 open files would end a run of about 340 domains in its middle. A process may raise it up
to the hard limit by itself; where that is too low as well, the run is refused before it starts.
"""

import resource

from isthmus.errors import RunError

_EACH = 3  # of a ledger: the file, its log, and the log's index
_BESIDE = 256  # of everything else: libraries, tables while they are read, the coordinator's log


def allow_open_files(domains: int) -> None:
    """Raise this process's limit of open files, if need be, to what so many domains take.

    Raises:
        RunError: If the hard limit is below that.
    """
    needed = _EACH * domains + _BESIDE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise RunError(
            f"{domains} domains need {needed} open files, and this machine allows a process {hard}. Raise the hard "
            f"limit (`ulimit -Hn`, /etc/security/limits.conf, or the container's), or simulate fewer domains."
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
