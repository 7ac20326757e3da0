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
    """One split of a data set: a name on the hub, a directory of `save_to_disk`, or a directory of data files.

    Needs the extra `raysep[huggingface]`. The hub is queried only if `path` is not a local directory.

    Args:
        config: path, split and columns.
    """

    class Config(SourceConfig):
        """A data set of Hugging Face `datasets` (extra `huggingface`): a name on the hub, or a local directory."""

        kind: Literal["huggingface"] = "huggingface"
        path: str = Field(description="name on the hub, or a directory for `load_from_disk` or `load_dataset`")
        subset: str | None = Field(None, description="the data set's configuration, if it has several")
        split: str = Field("train", description="name of the split in the data set")
        image_column: str = Field("image", description="name of the column of images")
        label_column: str = Field("label", description="name of the column of classes")

    def __init__(self, config: Config) -> None:
        # Local paths become absolute, because workers have another working directory.
        local = Path(config.path).expanduser()
        self._config = config.model_copy(update={"path": str(local.resolve())}) if local.exists() else config

    def __getstate__(self) -> dict[str, Any]:
        return {"_config": self._config}

    def records(self) -> list[Record]:
        """List all rows. Class names come from a ClassLabel column, else from the labels as text."""
        config, data = self._config, self._data
        schema = data.features.arrow_schema
        if problems := column_problems(schema, config.image_column, config.label_column):
            raise ConfigError([f"data.source: {config.path}: {problem}" for problem in problems])
        values = data.select_columns(config.label_column).with_format("arrow")[:][config.label_column]
        # On the hub, -1 marks unlabelled images.
        names = class_names(pa.chunked_array(values), names_in(schema, config.label_column))
        if unlabelled := names.count(None):
            raise ConfigError([f"data.source: {unlabelled} rows of {config.path} have no label"])
        return [Record(f"{config.split}#{row:08d}", name or "", row=row) for row, name in enumerate(names)]

    def read(self, path: str | None, row: int | None) -> bytes:  # noqa: ARG002  (rows only)
        """Read the stored image of a row. An encoded image is not decoded."""
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
                    # `train` is the default, so it may mean an unset split.
                    raise ConfigError(
                        [
                            f"data.source: {config.path} was saved from the split {data.split} alone, and has no split "
                            f"{config.split}: remove `split`"
                        ]
                    )
            else:
                data = datasets.load_dataset(config.path, config.subset, split=config.split)
        except ConfigError:
            raise
        # The library raises its own errors, those of the hub and the file system, and anything from data set scripts.
        except Exception as error:
            raise ConfigError(
                [
                    f"data.source: {config.path}, split {config.split}, can't be loaded: "
                    f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
                ]
            ) from error
        if isinstance(data.features.get(config.image_column), datasets.Image):
            # Encoded bytes: `raysep.data.decoding` decodes the images of all sources.
            data = data.cast_column(config.image_column, datasets.Image(decode=False))
        return data
