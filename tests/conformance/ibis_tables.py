"""A plugin of pytest that gives the tests of ibis small tables instead of the data of its repository.

ibis reads NAME.parquet for each of its test tables from a folder, which is /data in its containers.
The tables here have the columns that ibis expects and rows that follow from their number.
"""

import datetime
import importlib
import pathlib

import pyarrow
import pyarrow.parquet

ROWS = 100
TEXTS = ["0", "1", "2", "a", "b", "Ideal", "Good", None]


def value(kind, row):
    if kind == "boolean":
        return row % 2 == 0
    if kind.startswith("int"):
        return row % 120
    if kind.startswith("float"):
        return row * 1.5
    if kind.startswith("timestamp"):
        return datetime.datetime(2009, 1, 1) + datetime.timedelta(hours=row)
    return TEXTS[row % len(TEXTS)]


def column(name, kind):
    if name == "date_string_col":
        return [f"{1 + row % 12:02}/{1 + row % 28:02}/09" for row in range(ROWS)]
    if name == "string_col":
        return [str(row % 10) for row in range(ROWS)]
    if name == "id":
        return list(range(ROWS))
    return [value(kind, row) for row in range(ROWS)]


def write_tables(folder):
    tables = importlib.import_module("ibis.backends.conftest").TEST_TABLES
    folder.mkdir(exist_ok=True)
    for name, columns in tables.items():
        schema = columns.to_pyarrow()
        arrays = [
            pyarrow.array(column(name, str(kind)), type=schema.field(name).type) for name, kind in columns.items()
        ]
        # Spark reads no nanoseconds.
        table = pyarrow.Table.from_arrays(arrays, schema=schema)
        pyarrow.parquet.write_table(table, folder / f"{name}.parquet", coerce_timestamps="us")


def pytest_collection_finish(session):
    folder = pathlib.Path.cwd() / "tables"
    write_tables(folder)
    backend = importlib.import_module("ibis.backends.pyspark.tests.conftest")
    backend.TestConf.data_volume = str(folder)
