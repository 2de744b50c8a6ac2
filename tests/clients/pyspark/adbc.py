"""One query by the ADBC driver: `adbc.py --url URL` prints one JSON object, as client.py does."""

import argparse
import importlib.metadata
import json

import adbc_driver_spark.dbapi

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--url", required=True)
url = parser.parse_args().url
with adbc_driver_spark.dbapi.connect(url) as connection, connection.cursor() as cursor:
    cursor.execute("SELECT 1 AS one")
    value = cursor.fetchone()[0]
print(json.dumps({"value": value, "client": importlib.metadata.version("adbc-driver-spark")}))
