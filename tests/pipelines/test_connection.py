"""The door to MLflow: stores that are there, that are not, that are no stores, and what goes wrong behind it."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
import sqlite3
import threading
import time
from contextlib import closing, suppress
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException

from forecaster import InputError
from pipelines.connection import ARTIFACTS, RegistryError, connect, mlflow_errors
from pipelines.loading import load_model
from pipelines.tracking import start_run


def test_a_store_is_opened_by_one_process_at_a_time(tracking_uri: str, tmp_path: Path) -> None:
    """Of two that made its tables at once, one failed."""
    other = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    opening = threading.Thread(target=connect, args=(tracking_uri,))

    opening.start()
    opening.join(0.5)
    waits = opening.is_alive()
    os.close(other)
    opening.join()

    assert waits


def test_a_file_that_is_no_database_is_one_clear_sentence(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"rubbish" * 100)

    with pytest.raises(RegistryError, match=r"^MLflow at .* cannot be opened: file is not a database"):
        connect(f"sqlite:///{tmp_path}/mlflow.db")


@pytest.mark.parametrize("uri", ["nowhere://someone:secret@host/place", "./mlruns", "file:///mlruns"])
def test_a_store_that_mlflow_does_not_open_is_bad_input(uri: str) -> None:
    with pytest.raises(InputError, match=r"opens no store like [^@]+, expected sqlite:///FILE") as refused:
        connect(uri, create=True)

    assert "secret" not in str(refused.value)


def test_a_database_without_its_driver_is_bad_input() -> None:
    with pytest.raises(InputError, match=r"^package pyodbc is needed for the MLflow store mssql://host/db$"):
        connect("mssql://someone:secret@host/db")


def test_asking_a_store_that_is_not_there_does_not_create_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no MLflow store"):
        load_model("models:/demand@champion", f"sqlite:///{tmp_path}/nowhere.db")

    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.usefixtures("empty_database")  # MLflow is imported by now, and so it is in a process forked from this one
@pytest.mark.parametrize("tables", [0, 3, 20])
def test_a_store_whose_making_was_cut_short_is_made_anew(tmp_path: Path, tables: int) -> None:
    """Killed while the tables were made: MLflow would neither open such a file nor go on."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    for _ in range(5):
        making = multiprocessing.get_context("fork").Process(target=connect, args=(uri,), kwargs={"create": True})
        making.start()
        while making.is_alive() and _tables(tmp_path) <= tables:
            time.sleep(0.001)
        making.kill()
        making.join()
        if making.exitcode == -signal.SIGKILL:
            break
        (tmp_path / "mlflow.db").unlink()  # it was done before it was killed
    else:
        pytest.fail("it was never killed in time")

    assert [found.name for found in connect(uri, create=True).search_experiments()] == ["Default"]
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]


def _tables(folder: Path) -> int:
    """The most tables of a database in a folder, or in one in it."""
    most = 0
    for path in folder.rglob("*.db"):
        with (
            suppress(sqlite3.Error),
            closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as store,
        ):
            most = max(most, store.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])
    return most


def test_artifacts_that_cannot_be_written_are_one_clear_sentence(tracking_uri: str, tmp_path: Path) -> None:
    (tmp_path / ARTIFACTS).write_text("in the way")

    with (
        pytest.raises(RegistryError, match=r"^the environment cannot be logged: .*mlartifacts"),
        start_run(connect(tracking_uri), "full", tracking_uri=tracking_uri) as run,
    ):
        run.log_environment()


@pytest.mark.parametrize("kind", [OSError, MlflowException])
def test_a_servers_password_is_in_no_sentence(kind: type[Exception]) -> None:
    with pytest.raises(RegistryError) as told, mlflow_errors("a page cannot be logged"):
        raise kind("404 Client Error: Not Found for url: http://me:secret@mlflow:5000/api")

    assert str(told.value).endswith("for url: http://mlflow:5000/api")


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_waits_for_what_is_being_written_but_not_the_second_time() -> None:
    """Amid a transaction it left the database locked, and the run could not be marked as killed."""
    written = []

    def write(interrupts: int) -> None:
        with mlflow_errors("nothing"):
            for _ in range(interrupts):
                signal.raise_signal(signal.SIGINT)
            written.append(interrupts)

    with pytest.raises(KeyboardInterrupt):
        write(1)
    with pytest.raises(KeyboardInterrupt):
        write(2)
    assert written == [1]
    with pytest.raises(RegistryError, match="nothing: it broke"), mlflow_errors("nothing"):
        raise MlflowException("it broke")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
