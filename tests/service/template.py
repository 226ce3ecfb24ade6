"""A process that has imported everything and forks servers on request: real processes, started in tenths of a second.

``python -m tests.service.template`` reads one line of JSON after the other. An object starts a server: the arguments
of ``python -m service``, the environment, the file for its output and, if its disk shall fail, how; with code, that is
run in the server's place, as by ``python -c``; the answer is its process id. The id of one that has been started asks
how it ended; the answer is its exit status, null while it runs.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from service.__main__ import main
from service.models.served import load_model


def serve(asked: dict[str, Any]) -> None:
    """In the child: become the server."""
    os.setsid()
    if sys.platform == "linux":  # PR_SET_PDEATHSIG: a server that a test lost ends with the template
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
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
        status = run(asked["code"], asked["arguments"]) if "code" in asked else main(asked["arguments"])
    finally:
        os._exit(status)


def run(code: str, arguments: list[str]) -> int:
    """A program; its exit status."""
    sys.argv[1:] = arguments
    try:
        exec(code, {"__name__": "__main__"})
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 0
    except Exception:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
    return 0


def work() -> None:
    """Fork until there is nothing more to read."""
    load_model(Path(sys.argv[1]))  # tries the model, so that compiled loops are loaded once, here
    # Looking for garbage, each server would write to, and so copy, every object that it has from this process.
    gc.collect()
    gc.freeze()
    answer("ready")
    for line in sys.stdin:
        asked = json.loads(line)
        if isinstance(asked, int):
            ended, status = os.waitpid(asked, os.WNOHANG)
            answer(os.waitstatus_to_exitcode(status) if ended else None)
            continue
        child = os.fork()
        if not child:
            serve(asked)
        answer(child)


def answer(said: Any) -> None:
    """One line."""
    sys.stdout.write(json.dumps(said) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    work()
