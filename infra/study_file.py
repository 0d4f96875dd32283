"""The SQLite file of a search: opened by its path whatever signs that has, made whole or not at all, told if broken."""

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import optuna

from msm.infra import links
from msm.infra.errors import UserError


def open_storage(path: Path) -> optuna.storages.RDBStorage:
    """Opens a study's file, made if missing; folders too.

    SQLite is given the path itself and no URL, in which '?', '#' and '%' would mean something. A new file has all its
    tables before it gets its name, so that an empty one is never ours.

    Raises UserError for a file that is empty, damaged or no study, and for a link.
    """
    links.check_last(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
        temporary.unlink(missing_ok=True)
        with writing(path):
            close(_storage(temporary))
            os.replace(temporary, path)
    check(path)
    with writing(path):
        return _storage(path)


def _storage(path: Path) -> optuna.storages.RDBStorage:
    return optuna.storages.RDBStorage(
        "sqlite://", engine_kwargs={"creator": lambda: sqlite3.connect(path, check_same_thread=False)}
    )


def close(storage: optuna.storages.RDBStorage) -> None:
    """Lets go of the file."""
    storage.remove_session()
    storage.engine.dispose()


def check(path: Path) -> None:
    """Raises UserError unless the file is a sound one of a study."""
    if not path.stat().st_size:
        raise UserError(
            f"{path} is empty: what was in it is lost; restore it from a backup, or delete it to begin anew"
        )
    connection = sqlite3.connect(path)
    try:
        (answer,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.DatabaseError as error:
        answer, tables = str(error), set()
    finally:
        connection.close()
    if answer != "ok":
        raise UserError(f"{path} is damaged ({answer}): delete it, or choose another tune.folder")
    if not {"studies", "trials"} <= tables:
        raise UserError(f"{path} holds no study: move it away, or choose another tune.folder")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises UserError where SQLite cannot write: Optuna and SQLAlchemy wrap its error in their own."""
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, sqlite3.OperationalError):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        raise UserError(
            f"cannot write {path} ({cause}): make room or mend the permissions, then start the same command again; it "
            "goes on after the last finished trial"
        ) from error
