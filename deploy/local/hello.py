"""The quickstart's query: real PySpark through Berth, against the sample catalog.

    SPARK_REMOTE=CONNECTION_STRING python hello.py

The connection string holds a token, so it is never an argument: every user of a
machine can read those.
"""

import faulthandler

from pyspark.sql import SparkSession

# A wrong address makes PySpark retry silently for minutes; say where it hangs instead.
faulthandler.dump_traceback_later(120, exit=True)

spark = SparkSession.builder.getOrCreate()
try:
    print("SHOW TABLES, in the session's default catalog:")
    spark.sql("SHOW TABLES").show()
    print("Orders by customer, the largest five:")
    spark.sql(
        """
        SELECT c.name, count(*) AS orders, round(sum(o.amount), 2) AS amount
        FROM orders o JOIN customers c ON o.customer_id = c.id
        GROUP BY c.name ORDER BY amount DESC LIMIT 5
        """
    ).show()
finally:
    spark.stop()
