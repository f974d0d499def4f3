"""Columns of a parquet file as lists, checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bezoar.errors import DataError


def read_columns(path: Path, columns: Mapping[str, str]) -> dict[str, list[Any]]:
    """``columns`` (name -> "string" or "list of strings") of the parquet file at ``path``, without nulls."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable parquet file ({error})") from error
    missing = [name for name in columns if name not in table.column_names]
    if missing:
        has = ", ".join(table.column_names) or "no columns"
        raise DataError(f"{path}: has {has}; needs {', '.join(columns)}")
    found = {}
    for name, kind in columns.items():
        column = table.column(name)
        whole, inner = column.type, column.type
        if kind == "list of strings":
            if not (pa.types.is_list(whole) or pa.types.is_large_list(whole)):
                raise DataError(f"{path}: column {name!r} must be a list of strings, is {whole}")
            inner = whole.value_type
        if not (pa.types.is_string(inner) or pa.types.is_large_string(inner)):
            raise DataError(f"{path}: column {name!r} must be a {kind}, is {whole}")
        values = column.to_pylist()
        if any(value is None or (isinstance(value, list) and None in value) for value in values):
            raise DataError(f"{path}: column {name!r} must not have nulls")
        found[name] = values
    return found
