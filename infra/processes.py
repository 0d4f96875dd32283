"""Several processes of one run: how they join, tell each other, wait for each other, and leave.

A run has one process unless --coordinator says otherwise; `jax.distributed` is then never initialised. With several,
every process is given the same command but for --process_id:

  --coordinator=HOST:PORT --num_processes=N --process_id=I    HOST is that of process 0, PORT any free one there
  --coordinator=auto                                          TPU pods, SLURM, Open MPI, Kubernetes: JAX asks them
"""

import contextlib
import os
import socket
import sys
import threading
import traceback
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from msm.infra.errors import Stopped, UserError
from msm.infra.peers import Peers, open_peers

AUTO = "auto"
LEAVE_TIMEOUT_S = 30  # how long a process that ends waits for the others, which `wait_for_all` brought to their end too
HEARTBEAT_S = 50  # JAX's own, by which it notices a process that is frozen: a death `peers` notices at once
MESSAGE_BYTES = 2000
NEWS_S = 2.0  # how long an error waits for the news that another process is gone, whose consequence it may be
STATUS_OF_MISTAKE = 2
_peers: Peers | None = None


def join(coordinator: str, count: int | None, index: int | None, timeout: float) -> None:
    """Initialises `jax.distributed` if `coordinator` is not empty; before anything else asks JAX for its devices.

    Args:
      coordinator: '' for a run of one process, 'auto', or HOST:PORT.
      count: number of processes, with HOST:PORT only.
      index: which of them this one is, from 0, with HOST:PORT only.
      timeout: seconds until the others must be there; then the program ends with status 2 and one line.

    Raises UserError for arguments that do not fit each other, a cluster that JAX does not know, or a port in use.
    """
    problem = _problem(coordinator, count, index, timeout)
    if problem:
        raise UserError(problem)
    if not coordinator:
        return
    if index == 0:
        _check_port(coordinator)
    arguments = {} if coordinator == AUTO else {"coordinator_address": coordinator, "num_processes": count}
    who = f"process {index} of {count}" if coordinator != AUTO else "this process"
    alarm = threading.Timer(timeout, _give_up, [f"{who}: not all processes met at {coordinator} within {timeout:g} s"])
    alarm.daemon = True
    alarm.start()  # at its own time-out JAX aborts the program with a stack trace of C++
    try:
        jax.distributed.initialize(
            **arguments, process_id=index, cluster_detection_method="deactivate" if arguments else None,
            initialization_timeout=int(timeout) + 60, shutdown_timeout_seconds=LEAVE_TIMEOUT_S,
            heartbeat_timeout_seconds=HEARTBEAT_S,
        )  # fmt: skip
    except ValueError as error:
        raise UserError(
            f"--coordinator=auto: JAX finds no cluster that it knows ({error}); give --coordinator=HOST:PORT, "
            "--num_processes and --process_id"
        ) from error
    finally:
        alarm.cancel()
    global _peers
    if jax.process_count() > 1:
        share = lambda text: gather_texts(text)[0]  # noqa: E731
        _peers = open_peers(jax.process_index(), jax.process_count(), _coordinator_host(coordinator), share)


def _coordinator_host(coordinator: str) -> str:
    if coordinator == AUTO:  # what JAX found out from the cluster, which it tells nobody
        coordinator = jax._src.distributed.global_state.coordinator_address or ""  # pyright: ignore
    return coordinator.rpartition(":")[0].strip("[]")


def _problem(coordinator: str, count: int | None, index: int | None, timeout: float) -> str | None:
    host, _, port = coordinator.rpartition(":")
    if coordinator in ("", AUTO):
        if (count, index) == (None, None):
            return None
        given = f"--coordinator is {coordinator!r}" if coordinator else "there is no --coordinator"
        return f"--num_processes and --process_id are of no use where {given}: set it to HOST:PORT, or leave them out"
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        return f"--coordinator is {coordinator!r}: it must be HOST:PORT, e.g. 10.0.0.1:8476, or {AUTO}"
    if count is None or index is None:
        return f"--coordinator={coordinator} needs both --num_processes and --process_id"
    if count < 1:
        return f"--num_processes is {count}: it must be at least 1"
    if not 0 <= index < count:
        return f"--process_id is {index}: it must be from 0 to {count - 1}, as --num_processes is {count}"
    return None if timeout > 0 else f"--join_timeout is {timeout:g}: it must be more than 0 seconds"


def _check_port(coordinator: str) -> None:
    """Raises UserError where this process, the coordinator, cannot listen; JAX itself would crash."""
    try:
        socket.create_server(("", int(coordinator.rpartition(":")[2]))).close()
    except OSError as error:
        raise UserError(f"--coordinator={coordinator}: cannot listen at this port ({error}); take another") from error


def _give_up(problem: str) -> None:
    mend = "start every process with the same --coordinator and --num_processes, and see that its port can be reached"
    print(f"error: {problem}: {mend}", file=sys.stderr, flush=True)
    os._exit(2)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Makes a UserError that the block raises on one process one of all, so that none waits for it in vain.

    The block itself must not communicate. A process where all went well raises what the first other one tells.
    """
    if jax.process_count() == 1:
        yield
        return
    problem = None
    try:
        yield
    except UserError as error:
        problem = error
    told = gather_texts("" if problem is None else str(problem)[:MESSAGE_BYTES])
    if problem is None:
        problem = next((UserError(f"process {i} of {len(told)}: {text}") for i, text in enumerate(told) if text), None)
    if problem is not None:
        problem.everywhere = True
        raise problem


def gather_texts(text: str) -> list[str]:
    """What every process gives, in order, on every process."""
    if jax.process_count() == 1:
        return [text]
    mine = np.frombuffer(text.encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.int32(mine.size)))
    width = -(-int(sizes.max()) // MESSAGE_BYTES) * MESSAGE_BYTES  # few widths, as each is compiled
    if not width:
        return [""] * len(sizes)
    padded = multihost_utils.process_allgather(np.pad(mine, (0, width - mine.size)))
    return [bytes(row[:size]).decode() for row, size in zip(np.asarray(padded), sizes, strict=True)]


def wait_for_all() -> None:
    """Returns when every process has called it: at the end, process 0 writes its report while the others wait here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("end")
        leave_peers()


def leave_peers() -> None:
    """Says that this process ends as all do: the others need not mind."""
    if _peers is not None:
        _peers.leave()


@contextlib.contextmanager
def telling_why() -> Iterator[None]:
    """Tells the other processes in one line of an error that ends this one; that of a loss gives way to its reason.

    Where another process is gone, what JAX raises here is a consequence: the line about that process ends the program.
    """
    try:
        yield
    except Stopped:
        leave_peers()
        raise
    except (Exception, KeyboardInterrupt) as error:
        if _peers is None or getattr(error, "everywhere", False):
            raise
        mistake = isinstance(error, UserError)
        if not mistake:
            _peers.wait_for_news(NEWS_S)
        _peers.fail(STATUS_OF_MISTAKE if mistake else 1, _one_line(error))
        if mistake:
            raise
        traceback.print_exc()  # and out: waiting for the others at the interpreter's end, JAX would abort
        leave(1, everywhere=False)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def leave(status: int, everywhere: bool) -> None:
    """Ends the program; where other processes go on (not `everywhere`), without waiting for them: `peers` end them."""
    if everywhere or not jax.distributed.is_initialized():
        leave_peers()
        sys.exit(status)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
