"""A process that has imported everything and forks servers on request: real processes, started in tenths of a second.

``python -m tests.reliability.template`` reads one JSON object per line, with the arguments of ``python -m service``,
the environment, the file for its output and, if its disk shall fail, how; it answers with the process id.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from typing import Any

import numpy as np
import torch

from forecaster import Forecaster
from service.__main__ import main


def serve(asked: dict[str, Any]) -> None:
    """In the child: become the server."""
    os.setsid()
    if sys.platform == "linux":  # PR_SET_PDEATHSIG: a server that a test lost ends with the template
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    output = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for number in (1, 2):
        os.dup2(output, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(asked["environment"])
    if fault := asked.get("fault"):
        ctypes.CDLL(None).faults_arm(
            fault["folder"].encode(), fault["mode"], ctypes.c_long(fault["at"]), fault["error"]
        )
    status = 70
    try:
        status = main(asked["arguments"])
    finally:
        os._exit(status)


def work() -> None:
    """Fork until there is nothing more to read."""
    # Compiled loops are loaded once, here.
    forecaster = Forecaster.load(sys.argv[1])
    forecaster.observe(forecaster.warm_up([np.array([1.0, 2.0])], [0]), torch.tensor([1.0]))
    # Children that end leave nothing behind.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if not child:
            serve(asked)
        sys.stdout.write(f"{child}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    work()
