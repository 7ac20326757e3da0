"""Images in the rows of Parquet files."""

from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raysep.config import ParquetSource
from raysep.data.files import left_out, tables_among, visible
from raysep.data.sources.base import Record, Remarks, Source
from raysep.errors import ConfigError
from raysep.storage import Storage

# Row groups whose images a worker keeps: consecutive rows of one group are read from storage once.
GROUPS_KEPT = 2


class ParquetImages(Source):
    """A Parquet file, or all of them below a directory or URI, with a column of encoded images.

    An image_id is the file's path below the root and the row in it, so files may be added but not
    rewritten between two calls of a run.

    Args:
        config: root and columns.
    """

    def __init__(self, config: ParquetSource) -> None:
        self.storage = Storage(config.path)
        # Absolute from here on: workers have another working directory.
        self._config = config.model_copy(update={"path": self.storage.full_uri})
        self._single = self.storage.is_file()
        self._remarks = Remarks()
        self._image_group = lru_cache(GROUPS_KEPT)(self._read_group)
        self._group_sizes = lru_cache(None)(self._read_group_sizes)

    def __reduce__(self) -> tuple[type["ParquetImages"], tuple[ParquetSource]]:
        return ParquetImages, (self._config,)

    def records(self) -> list[Record]:
        """Every row of every file. Reads the label column only."""
        if not self.storage.exists():
            raise ConfigError([f"data.source.path: nothing at {self.storage.display()}"])
        # A single file is its own root.
        files = [""] if self._single else self._listed()
        name = self.storage.root.rpartition("/")[2]
        if not files:
            found = "".join(f"; {sentence}" for sentence in self._remarks.left_out)
            raise ConfigError([f"data.source.path: no *.parquet file below {self.storage.display()}{found}"])
        problems: list[str] = []
        records: list[Record] = []
        for file in files:
            labels = self._labels(file, problems)
            records += [
                Record(f"{file or name}#{row:08d}", str(label), path=file, row=row) for row, label in enumerate(labels)
            ]
        if problems:
            raise ConfigError(problems)
        if not records:
            raise ConfigError([f"data.source.path: the files below {self.storage.display()} have no rows"])
        return sorted(records, key=lambda record: record.image_id)

    def read(self, path: str | None, row: int | None) -> bytes:
        """The bytes in a row's image column."""
        assert path is not None
        assert row is not None
        try:
            return self._content(path, row)
        except pa.ArrowException as error:
            raise OSError(f"{self.storage.display(path)} is damaged: {' '.join(str(error).split())}") from None

    def remarks(self) -> Remarks:
        """Files that are no Parquet files, by suffix."""
        return self._remarks

    def _listed(self) -> list[str]:
        """Parquet files by suffix or content."""
        shown, hidden = visible(self.storage.files())
        files, others = tables_among(self.storage, shown)
        self._remarks = Remarks(left_out(others, hidden, "Parquet files"))
        return files

    def _content(self, path: str, row: int) -> bytes:
        for group, rows in enumerate(self._group_sizes(path)):
            if row < rows:
                value = self._image_group(path, group)[row].as_py()
                content = value.get("bytes") if isinstance(value, dict) else value
                if not isinstance(content, bytes):
                    raise OSError(f"row has no image in column {self._config.image_column!r}")
                return content
            row -= rows
        raise OSError(f"{self.storage.display(path)} has fewer rows than when it was listed")

    def _read_group_sizes(self, path: str) -> list[int]:
        metadata = self.storage.read_with(path, lambda opened: pq.ParquetFile(opened).metadata)
        return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]

    def _read_group(self, path: str, group: int) -> Any:
        image = self._config.image_column
        return self.storage.read_with(path, lambda opened: pq.ParquetFile(opened).read_row_group(group, [image]))[image]

    def _labels(self, file: str, problems: list[str]) -> list[Any]:
        image, label = self._config.image_column, self._config.label_column
        where = f"data.source: {self.storage.display(file)}"
        try:
            schema = self.storage.read_with(file, lambda opened: pq.ParquetFile(opened).schema_arrow)
            missing = [name for name in (image, label) if name not in schema.names]
            if missing:
                problems.append(f"{where}: no column {', '.join(missing)}; there are {', '.join(schema.names)}")
                return []
            kind = schema.field(label).type
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)):
                problems.append(f"{where}: column {label} holds {kind}, expected text or integers")
                return []
            if not _holds_images(content := schema.field(image).type):
                problems.append(f"{where}: column {image} holds {content}, expected binary, or a struct with `bytes`")
                return []
            values = self.storage.read_with(file, lambda opened: pq.ParquetFile(opened).read(columns=[label]))[label]
        except (pa.ArrowInvalid, OSError) as error:
            problems.append(f"{where}: not a whole Parquet file ({' '.join(str(error).split())})")
            return []
        if values.null_count:
            problems.append(f"{where}: column {label} has {values.null_count} rows without a value")
        found: list[Any] = values.to_pylist()
        return found


def _holds_images(kind: pa.DataType) -> bool:
    """Whether a column can have encoded images: as they are, or as Hugging Face's data sets have them."""
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _holds_images(kind.field(index).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))
