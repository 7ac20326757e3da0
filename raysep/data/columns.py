"""Validation of image and label columns of Arrow tables, and class names from label columns.

Images are encoded files: binary, or a struct with a field `bytes` as Hugging Face's `datasets` writes it. Labels are
text, integers or booleans (`true`, `false`), also as categories (Arrow's dictionaries). Integer labels take their
class names from the metadata of `datasets`, if any.
"""

import json
from collections.abc import Sequence

import pyarrow as pa

# Advice for unsupported column types.
_TO_LABEL = "expected text or integers, convert it"
_TO_IMAGE = "expected encoded images: binary, or a struct with a field `bytes`"
_TEXT = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)


def column_problems(schema: pa.Schema, image: str, label: str | None) -> list[str]:
    """Problems of the image and label columns, a sentence each, with advice.

    Args:
        schema: schema of the table.
        image, label: column names; `label` is None if the labels are not in a column.
    """
    problems = []
    wanted = {"image_column": image, **({"label_column": label} if label is not None else {})}
    missing = {key: name for key, name in wanted.items() if name not in schema.names}
    if missing:
        keys = " and ".join(f"data.source.{key}" for key in missing)
        problems.append(
            f"no column {', '.join(missing.values())}; there are {', '.join(schema.names) or 'none'} (set {keys})"
        )
    problems += [f"column {name} occurs twice" for name in wanted.values() if schema.names.count(name) > 1]
    if problems:
        return problems
    if label is not None and (advice := _label_problem(schema.field(label).type)):
        problems.append(f"column {label} holds {schema.field(label).type}, {advice}")
    if advice := _image_problem(schema.field(image).type):
        problems.append(f"column {image} holds {schema.field(image).type}, {advice}")
    return problems


def class_names(values: pa.ChunkedArray, names: Sequence[str] | None) -> list[str | None]:
    """The class name of each row; None for a missing or empty label, or an integer without a name.

    Args:
        values: a label column that passed `column_problems`.
        names: class names of the integers from 0, as `names_in` returns them; -1 then means "no label".
    """
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if names is not None and pa.types.is_integer(values.type):
        return [names[value] if value is not None and 0 <= value < len(names) else None for value in values.to_pylist()]
    return [name or None for name in values.cast(pa.string()).to_pylist()]


def names_in(schema: pa.Schema, label: str) -> list[str] | None:
    """The class names of an integer label column as Hugging Face `datasets` wrote them; None if absent."""
    try:
        plain = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        names = plain["info"]["features"][label]["names"]
    except (ValueError, KeyError, TypeError):
        return None
    return [str(name) for name in names] if isinstance(names, list) and names else None


def holds_bytes(kind: pa.DataType) -> bool:
    """Whether an Arrow type can hold encoded images: binary, or a struct with a binary field `bytes`."""
    if pa.types.is_dictionary(kind):
        return holds_bytes(kind.value_type)
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and holds_bytes(kind.field(index).type)
    binary = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
    return any(of_type(kind) for of_type in binary)


def _label_problem(kind: pa.DataType) -> str:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if any(of_type(kind) for of_type in (*_TEXT, pa.types.is_integer, pa.types.is_boolean)):
        return ""
    if any(of_type(kind) for of_type in _LISTS):
        return "expected text or integers: one label per row, not a list"
    if pa.types.is_null(kind):
        return "expected text or integers, but no row has a label"
    if pa.types.is_floating(kind):
        return f"{_TO_LABEL} (pandas writes integers as floats if a row has no label)"
    return _TO_LABEL


def _image_problem(kind: pa.DataType) -> str:
    if holds_bytes(kind):
        return ""
    if any(of_type(kind) for of_type in _TEXT):
        return (
            f"{_TO_IMAGE}; if the text is file paths, save the file contents instead "
            "(datasets: cast_column(name, datasets.Image()))"
        )
    if any(of_type(kind) for of_type in _LISTS) or isinstance(kind, pa.BaseExtensionType):
        return f"{_TO_IMAGE}; save pixel arrays as PNG (datasets: cast_column(name, datasets.Image()))"
    return _TO_IMAGE
