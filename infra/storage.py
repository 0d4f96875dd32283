"""Folders of an object store, gs://bucket/run or s3://...: whole objects read and written through fsspec."""

import contextlib
import posixpath
from collections.abc import Iterator
from pathlib import Path

import fsspec

from msm.infra.errors import UserError

DRIVERS = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "abfs": "adlfs"}  # packages that fsspec wants


def is_url(name: str) -> bool:
    return "://" in name


class Bucket:
    """The objects below a URL. An object is always whole: what is being written is not seen until it is complete.

    Every method raises UserError, in one line, where the store cannot be reached or refuses.
    """

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        scheme = url.partition("://")[0]
        with self._telling("reach"):
            try:
                made = {"auto_mkdir": True} if scheme == "file" else {}  # in buckets there are no folders to make
                self._fs, self._root = fsspec.core.url_to_fs(self.url, **made)
            except ImportError as error:
                raise UserError(
                    f"{url}: {scheme}:// needs a package: pip install {DRIVERS.get(scheme, scheme)}"
                ) from error
            except ValueError as error:
                known = ", ".join(f"{name}://" for name in DRIVERS)
                raise UserError(f"{url}: {scheme}:// is no storage that is known ({known}), or a folder") from error

    def names(self) -> dict[str, int]:
        """{name below the URL: size} of every object."""
        with self._telling("read"):
            self._fs.invalidate_cache()
            try:
                found = self._fs.find(self._root, detail=True)
            except FileNotFoundError:  # nothing there yet; a bucket that does not exist is told at the first write
                return {}
            return {
                posixpath.relpath(path, self._root): info["size"]
                for path, info in found.items()
                if info["type"] == "file" and posixpath.relpath(path, self._root) != "."
            }

    def get(self, name: str, path: Path) -> None:
        """Downloads an object into a file, whose folder is made."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._telling("read"):
            self._fs.get_file(self._path(name), str(path))

    def put(self, path: Path, name: str) -> None:
        """Uploads a file; the object is the old one until all is there."""
        with self._telling("write"):
            self._fs.put_file(str(path), self._path(name))

    def read(self, name: str) -> bytes | None:
        """The content of an object, None if there is none."""
        with self._telling("read"):
            self._fs.invalidate_cache()
            try:
                return self._fs.cat_file(self._path(name))
            except FileNotFoundError:
                return None

    def write(self, name: str, content: bytes) -> None:
        """Replaces an object."""
        with self._telling("write"):
            self._fs.pipe_file(self._path(name), content)

    def create(self, name: str, content: bytes) -> bool:
        """Makes an object; False where there is one already, of two who try at once for all but one."""
        with self._telling("write"):
            try:
                self._fs.pipe_file(self._path(name), content, mode="create")
            except FileExistsError:
                return False
            return True

    def delete(self, name: str) -> None:
        with self._telling("write"), contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._path(name))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextlib.contextmanager
    def _telling(self, what: str) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # every driver has its own
            text = " ".join(str(error).split())[:200]
            raise UserError(
                f"cannot {what} {self.url} ({type(error).__name__}: {text}): see that the bucket exists, that this "
                "account may read and write it, and that the network is up; the same command goes on from what is there"
            ) from error
