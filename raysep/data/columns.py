"""Columns of tables with images and labels, whoever wrote them: what is taken, and the class names of their labels.

Images are encoded files: binary, or a struct with a field `bytes` as Hugging Face's `datasets` writes it. Labels are
text, integers or booleans (`true`, `false`), also as categories (Arrow's dictionaries). Where the metadata that
`datasets` writes has names for integers, those are the class names.
"""

import json
from collections.abc import Sequence

import pyarrow as pa

# What to do with columns of other types.
_TO_LABEL = "expected text or integers, convert it"
_TO_IMAGE = "expected binary, or a struct with `bytes` in it: encoded images"
_TEXT = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)


def column_problems(schema: pa.Schema, image: str, label: str | None) -> list[str]:
    """What is wrong with the columns of a table, a sentence each, with what to do.

    Args:
        schema: of the table.
        image, label: names of the columns; None for a label that is no column.
    """
    found = []
    wanted = {"image_column": image, **({"label_column": label} if label is not None else {})}
    missing = {key: name for key, name in wanted.items() if name not in schema.names}
    if missing:
        keys = " and ".join(f"data.source.{key}" for key in missing)
        found.append(
            f"no column {', '.join(missing.values())}; there are {', '.join(schema.names) or 'none'} (set {keys})"
        )
    found += [f"column {name} occurs twice" for name in wanted.values() if schema.names.count(name) > 1]
    if found:
        return found
    if label is not None and (todo := _label_problem(schema.field(label).type)):
        found.append(f"column {label} holds {schema.field(label).type}, {todo}")
    if todo := _image_problem(schema.field(image).type):
        found.append(f"column {image} holds {schema.field(image).type}, {todo}")
    return found


def class_names(values: pa.ChunkedArray, names: Sequence[str] | None) -> list[str | None]:
    """The class name of each row; None where a row has no label, an empty one, or one that has no name.

    Args:
        values: a column that `column_problems` has nothing against.
        names: of integers from 0, as `names_in` gives them. -1 stands for no label then.
    """
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if names is not None and pa.types.is_integer(values.type):
        return [names[value] if value is not None and 0 <= value < len(names) else None for value in values.to_pylist()]
    return [name or None for name in values.cast(pa.string()).to_pylist()]


def names_in(schema: pa.Schema, label: str) -> list[str] | None:
    """The class names that `datasets` keeps in a table's metadata for the integers of a column; None for none."""
    try:
        plain = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        names = plain["info"]["features"][label]["names"]
    except (ValueError, KeyError, TypeError):
        return None
    return [str(name) for name in names] if isinstance(names, list) and names else None


def holds_bytes(kind: pa.DataType) -> bool:
    """Whether values of an Arrow type can be encoded files, as they are or in a field `bytes`."""
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
        return "expected text or integers: one label a row, not several"
    if pa.types.is_null(kind):
        return "expected text or integers: no row has a label"
    if pa.types.is_floating(kind):
        return f"{_TO_LABEL} (rows without a label make pandas write integers as floats)"
    return _TO_LABEL


def _image_problem(kind: pa.DataType) -> str:
    if holds_bytes(kind):
        return ""
    if any(of_type(kind) for of_type in _TEXT):
        return (
            f"{_TO_IMAGE}; where the text is the files' paths, save the files' content instead "
            "(datasets: cast_column(name, datasets.Image()))"
        )
    if any(of_type(kind) for of_type in _LISTS) or isinstance(kind, pa.BaseExtensionType):
        return f"{_TO_IMAGE}; save arrays of pixels as PNG (datasets: cast_column(name, datasets.Image()))"
    return _TO_IMAGE
