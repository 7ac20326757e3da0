"""Parquet files with an image per row."""

from functools import lru_cache
from typing import Any, Literal
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from raysep.config.data import SourceConfig
from raysep.data.columns import class_names, column_problems, names_in
from raysep.data.files import left_out, tables_among, visible
from raysep.data.source import Record, Remarks, Source, source
from raysep.errors import ConfigError
from raysep.storage.retries import is_transient
from raysep.storage.store import Storage

# Row groups that a worker caches, so that consecutive rows of a group cost one read.
GROUPS_CACHED = 2


@source
class ParquetImages(Source):
    """One Parquet file, or all Parquet files below a directory or URI, with a column of encoded images.

    The image_id is the row and the file's path relative to the root, so files may be added but not rewritten before a
    run is resumed.

    Args:
        config: path and columns.
    """

    class Config(SourceConfig):
        """Parquet files with a column of encoded images and one of labels."""

        kind: Literal["parquet"] = "parquet"
        path: str = Field(description="a file, or a directory or URI of files; relative to the working directory")
        image_column: str = Field(
            "image", description="column of images: bytes, or a struct with a field `bytes` as Hugging Face writes it"
        )
        label_column: str = Field("label", description="column of class names, text or integers")

    def __init__(self, config: Config) -> None:
        self.storage = Storage(config.path)
        # Absolute, because workers have another working directory.
        self._config = config.model_copy(update={"path": self.storage.full_uri})
        self._single = self.storage.is_file()
        self._remarks = Remarks()
        self._image_group = lru_cache(GROUPS_CACHED)(self._read_group)
        self._group_sizes = lru_cache(None)(self._read_group_sizes)

    def __reduce__(self) -> tuple[type["ParquetImages"], tuple[Config]]:
        return ParquetImages, (self._config,)

    def records(self) -> list[Record]:
        """List all rows of all files. Reads only the label column."""
        if not self.storage.exists():
            raise ConfigError([f"data.source.path: no file or directory at {self.storage.display()}"])
        # A single file is its own root.
        files = [""] if self._single else self._listed()
        name = self.storage.root.rpartition("/")[2]
        if not files:
            others = "".join(f"; {sentence}" for sentence in self._remarks.left_out)
            raise ConfigError([f"data.source.path: no *.parquet file below {self.storage.display()}{others}"])
        problems: list[str] = []
        records: list[Record] = []
        # An example file with class names for integer labels (True), and one without (False).
        named: dict[bool, str] = {}
        for file in files:
            labels = self._labels(file, problems, named)
            records += [
                Record(f"{file or name}#{row:08d}", label, path=file, row=row) for row, label in enumerate(labels)
            ]
        if len(named) > 1:
            one, other = (self.storage.display(named[has]) for has in (True, False))
            problems.append(
                f"data.source: {one} has class names for the integers of column {self._config.label_column}, {other} "
                "has none: write all files with the same class names"
            )
        if problems:
            raise ConfigError(problems)
        if not records:
            raise ConfigError([f"data.source.path: the files below {self.storage.display()} have no rows"])
        return sorted(records, key=lambda record: record.image_id)

    def read(self, path: str | None, row: int | None) -> bytes:
        """Read the image column of a row."""
        assert path is not None
        assert row is not None
        try:
            return self._content(path, row)
        except pa.ArrowException as error:
            raise OSError(f"{self.storage.display(path)} is damaged: {' '.join(str(error).split())}") from None

    def remarks(self) -> Remarks:
        """Remarks on ignored files, by suffix."""
        return self._remarks

    def _listed(self) -> list[str]:
        """Paths of Parquet files, recognized by suffix or content."""
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

    def _labels(self, file: str, problems: list[str], named: dict[bool, str]) -> list[str]:
        """The class name of each row of a file. Appends to `problems` if the file is unusable.

        Args:
            named: output: holds the file under the key True if its integer labels have class names, else under the key
                False.
        """
        image, label = self._config.image_column, self._config.label_column
        where = f"data.source: {self.storage.display(file)}"
        try:
            metadata, schema = self.storage.read_with(file, _schemas_of)
            partition = None if label in schema.names else _partition_of(file, label)
            column_errors = column_problems(schema, image, None if partition is not None else label)
            if not column_errors and _is_empty(metadata, f"{image}.bytes"):
                column_errors = [f"no row of column {image} has `bytes`: save the data set with embedded images"]
            if column_errors:
                problems += [f"{where}: {problem}" for problem in column_errors]
                return []
            if partition is not None:
                names_of_rows: list[str | None] = [partition or None] * metadata.num_rows
            else:
                read = self.storage.read_with(file, lambda opened: pq.ParquetFile(opened).read(columns=[label]))
                names = names_in(schema, label)
                if names is not None or pa.types.is_integer(schema.field(label).type):
                    named.setdefault(names is not None, file)
                names_of_rows = class_names(read[label], names)
        except (pa.ArrowException, OSError) as error:
            if is_transient(error):
                raise
            problems.append(f"{where}: damaged, or not a Parquet file ({' '.join(str(error).split())})")
            return []
        if unlabelled := names_of_rows.count(None):
            problems.append(f"{where}: column {label} has {unlabelled} rows without a value or class name")
        return [name for name in names_of_rows if name is not None]


def _schemas_of(opened: Any) -> tuple[Any, pa.Schema]:
    file = pq.ParquetFile(opened)
    return file.metadata, file.schema_arrow


def _partition_of(file: str, column: str) -> str | None:
    """The value of a Hive partition column, as in `label=heron/part-0.parquet`; empty for null, None if absent.

    >>> _partition_of("a=1/label=grey%20heron/part-0.parquet", "label"), _partition_of("label.parquet", "label")
    ('grey heron', None)
    """
    values = [part.partition("=")[2] for part in file.split("/")[:-1] if part.startswith(f"{column}=")]
    if not values:
        return None
    return "" if values[-1] == "__HIVE_DEFAULT_PARTITION__" else unquote(values[-1])


def _is_empty(metadata: Any, column: str) -> bool:
    """Whether a column is null in all rows, by the file's statistics."""
    nulls = 0
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        chunks = [row_group.column(number) for number in range(row_group.num_columns)]
        statistics = [chunk.statistics for chunk in chunks if chunk.path_in_schema == column]
        if not statistics or statistics[0] is None or statistics[0].null_count is None:
            return False
        nulls += statistics[0].null_count
    return bool(metadata.num_rows) and nulls == metadata.num_rows
