"""Generate the reference tables in Markdown from the schema and the registries: `python -m raysep.config.reference`."""

import json
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from raysep.config.data import source_sections
from raysep.config.registry import METRICS
from raysep.config.run import RunConfig

HEAD = ("| key | type | default | meaning |", "|---|---|---|---|")
BOUNDS = (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
TYPES = {"string": "text", "integer": "whole number", "boolean": "true, false", "object": "mapping"}
# Longer defaults are not shown.
LONGEST_DEFAULT = 40
Schema = dict[str, Any]


def reference() -> str:
    """Tables of the keys of a run, and of each kind of source."""
    parts = ["### A run", "", table(RunConfig)]
    for section in sorted(source_sections(), key=lambda section: str(section.model_fields["kind"].default)):
        kind = section.model_fields["kind"].default
        first = (section.__doc__ or "").strip().splitlines()[0]
        parts += ["", f"### `data.source: {{kind: {kind}}}`", "", first, "", table(section, "data.source.")]
    return "\n".join(parts) + "\n"


def metrics() -> str:
    """Table of the built-in metrics."""
    rows = ["| metric | range | classes need | protocols | meaning |", "|---|---|---|---|---|"]
    for name in METRICS.built_in:
        spec = METRICS[name]
        images = f"{spec.least_images} image{'s' if spec.least_images > 1 else ''}"
        protocols = "alike in both" if spec.shared else "different"
        rows.append(f"| `{name}` | {spec.low:g} to 1 | {images} | {protocols} | {spec.summary} |")
    return "\n".join(rows) + "\n"


def table(section: type[BaseModel], prefix: str = "") -> str:
    """Table of the keys of a section and its subsections: type, default, meaning."""
    schema = section.model_json_schema()
    return "\n".join([*HEAD, *_rows(section, schema, schema.get("$defs", {}), prefix)])


def _rows(section: type[BaseModel] | None, schema: Schema, definitions: Schema, prefix: str) -> Iterator[str]:
    for name, field in schema["properties"].items():
        key, inner = f"{prefix}{name}", _sections_of(field, definitions)
        if name == "kind" and prefix:
            continue
        if "discriminator" in field or any("discriminator" in each for each in field.get("anyOf", ())):
            yield f"| `{key}` | mapping | {_default(section, schema, name)} | one of the sources below |"
        elif inner is not None:
            dots = "[]." if field.get("type") == "array" else "."
            kind = "list of mappings" if field.get("type") == "array" else "mapping"
            text = _text(field.get("description") or inner.get("description", "").split("\n\n")[0])
            yield f"| `{key}` | {kind} | {_default(section, schema, name)} | {text} |"
            yield from _rows(None, inner, definitions, f"{key}{dots}")
        else:
            text = _text(field.get("description", ""))
            yield f"| `{key}` | {_type(field)} | {_default(section, schema, name)} | {text} |"


def _sections_of(field: Schema, definitions: Schema) -> Schema | None:
    """The schema of the section that a field or its items have; None without exactly one."""
    schemas = [field, field.get("items", {}), *field.get("anyOf", ()), *field.get("allOf", ())]
    references = [each["$ref"] for each in schemas if "$ref" in each]
    section: Schema | None = definitions[references[0].rpartition("/")[2]] if len(references) == 1 else None
    return section if section is not None and "properties" in section else None


def _type(field: Schema) -> str:
    if options := field.get("anyOf") or field.get("oneOf"):
        return " or ".join(dict.fromkeys(_type(option) for option in options))
    if "enum" in field or "const" in field:
        return ", ".join(f"`{value}`" for value in field.get("enum", [field.get("const")]))
    if field.get("type") == "array":
        return f"list of {_type(field['items'])}" if len(_type(field.get("items", {}))) < LONGEST_DEFAULT else "list"
    if "$ref" in field:
        return "mapping"
    bounds = " ".join(f"{sign} {field[name]:g}" for name, sign in BOUNDS if name in field)
    kind = field.get("type", "any")
    return f"{TYPES.get(kind, kind)} {bounds}".strip()


def _default(section: type[BaseModel] | None, schema: Schema, name: str) -> str:
    if name in schema.get("required", ()):
        return "required"
    default = schema["properties"][name].get("default", ...)
    if default is ...:
        factory = section.model_fields[name].default_factory if section is not None else None
        default = factory() if callable(factory) else ...  # type: ignore[call-arg]
    if isinstance(default, dict) or default is ...:
        return ""
    text = json.dumps(default).replace('"', "") or "unset"
    return f"`{text}`" if len(text) <= LONGEST_DEFAULT else "all"


def _text(words: str) -> str:
    return " ".join(words.split()).replace("|", "\\|").replace("<", "\\<")


if __name__ == "__main__":
    print(reference(), metrics(), sep="\n", end="")
