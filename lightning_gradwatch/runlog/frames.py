"""Records as pandas DataFrames. pandas is an extra, so nothing else in
the package needs this module.
"""

# pandas ships no complete types
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning_gradwatch.runlog.records import Fields, Record

if TYPE_CHECKING:
    import pandas as pd

# By the name of a field's check: a column keeps its type when it is
# empty, or when a value is missing.
_REQUIRED = {"_count": "int64", "_integer": "int64"}
_OPTIONAL = {"_count": "Int64", "_integer": "Int64", "_number": "float64", "_flag": "boolean"}


def to_frame(records: list[Record], fields: tuple[Fields, Fields]) -> pd.DataFrame:
    """One row per record, one column per field: first those that the format knows, then
    those that a newer minor added.

    Raises:
        ImportError: pandas is missing.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise ImportError(
            "`profiles`, `events` and `steps` are pandas DataFrames, and pandas is not installed. "
            "Install the extra: pip install 'lightning-gradwatch[pandas]'"
        ) from error
    known = {**fields[0], **fields[1]}
    added = dict.fromkeys(name for record in records for name in record if name not in known)
    columns: dict[str, Any] = {}
    for name in (*known, *added):
        types = _REQUIRED if name in fields[0] else _OPTIONAL
        check = known.get(name)
        values = [record.get(name) for record in records]
        columns[name] = pd.Series(values, dtype=types.get(check.__name__, "object") if check else "object")
    return pd.DataFrame(columns)
