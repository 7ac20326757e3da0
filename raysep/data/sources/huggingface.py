"""Data sets of Hugging Face `datasets`."""

from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field

from raysep.config.data import SourceConfig
from raysep.data.columns import class_names, column_problems, names_in
from raysep.data.source import Record, Source, encode, source
from raysep.errors import ConfigError


@source
class HuggingFace(Source):
    """One split of a data set: a name on the hub, a directory of `save_to_disk`, or one of data files.

    Needs the extra `raysep[huggingface]`. The hub is asked only for a path that is no local directory.

    Args:
        config: path, split and columns.
    """

    class Config(SourceConfig):
        """A data set of Hugging Face `datasets` (extra `huggingface`): a name on the hub, or a local directory."""

        kind: Literal["huggingface"] = "huggingface"
        path: str = Field(description="name on the hub, or a directory that `save_to_disk` or `load_dataset` knows")
        subset: str | None = Field(None, description="the data set's configuration, where it has several")
        split: str = Field("train", description="name of the split in the data set")
        image_column: str = Field("image", description="name of the column of images")
        label_column: str = Field("label", description="name of the column of classes")

    def __init__(self, config: Config) -> None:
        # A local path is absolute from here on: workers have another working directory.
        local = Path(config.path).expanduser()
        self._config = config.model_copy(update={"path": str(local.resolve())}) if local.exists() else config

    def __getstate__(self) -> dict[str, Any]:
        return {"_config": self._config}

    def records(self) -> list[Record]:
        """Every row. Labels of a ClassLabel column have their names, others are taken as text."""
        config, data = self._config, self._data
        schema = data.features.arrow_schema
        if wrong := column_problems(schema, config.image_column, config.label_column):
            raise ConfigError([f"data.source: {config.path}: {problem}" for problem in wrong])
        values = data.select_columns(config.label_column).with_format("arrow")[:][config.label_column]
        # The hub marks images without a label with -1.
        found = class_names(pa.chunked_array(values), names_in(schema, config.label_column))
        if without := found.count(None):
            raise ConfigError([f"data.source: {without} rows of {config.path} have no label"])
        return [Record(f"{config.split}#{row:08d}", name or "", row=row) for row, name in enumerate(found)]

    def read(self, path: str | None, row: int | None) -> bytes:  # noqa: ARG002  (rows only)
        """The image of a row as it is stored, without decoding it."""
        value = self._data[row][self._config.image_column]
        if isinstance(value, dict):
            if value.get("bytes"):
                content: bytes = value["bytes"]
                return content
            return Path(value.get("path") or "").read_bytes()
        if isinstance(value, bytes):
            return value
        if value is None:
            raise OSError(f"row {row} has no image")
        return encode(value)

    @cached_property
    def _data(self) -> Any:
        try:
            import datasets
        except ImportError:
            raise ConfigError(
                ["data.source: kind `huggingface` needs the package `datasets`: pip install 'raysep[huggingface]'"]
            ) from None
        config = self._config
        try:
            if (Path(config.path) / "dataset_dict.json").is_file() or (Path(config.path) / "state.json").is_file():
                data = datasets.load_from_disk(config.path)
                if isinstance(data, datasets.DatasetDict):
                    if config.split not in data:
                        raise ConfigError(
                            [f"data.source: {config.path} has no split {config.split}; there are {', '.join(data)}"]
                        )
                    data = data[config.split]
                elif config.split not in {"train", str(data.split)}:
                    # `train` is what a configuration says that says nothing.
                    raise ConfigError(
                        [
                            f"data.source: {config.path} is one data set, saved from the split {data.split}: it has no "
                            f"split {config.split}; leave `split` out"
                        ]
                    )
            else:
                data = datasets.load_dataset(config.path, config.subset, split=config.split)
        except ConfigError:
            raise
        # The library raises its own errors, the hub's, those of the file system and of its builders.
        except Exception as error:
            raise ConfigError(
                [
                    f"data.source: {config.path}, split {config.split}, can't be loaded: "
                    f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
                ]
            ) from error
        if isinstance(data.features.get(config.image_column), datasets.Image):
            # Bytes as they are: decoding is done where all sources' images are decoded.
            data = data.cast_column(config.image_column, datasets.Image(decode=False))
        return data
