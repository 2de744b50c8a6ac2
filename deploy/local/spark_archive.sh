#!/usr/bin/env bash
# spark_archive.sh DIR: a `java` for Apache Spark in tests, DIR/bin/java, which starts in a quarter of the CPU time.
#
# It compiles with the quick compiler only, and maps the classes of Spark from an archive (class data sharing), which
# this script records from a Spark Connect server that answers one query. A JVM that cannot use the archive starts
# without it.
set -euo pipefail

dir=$1
home=$(dirname "$dir")
spark=$home/venv-spark/spark-home
client=$home/venv-sail/bin/python
archive=$dir/spark.jsa
# Not by its name: Berth starts engines with a PATH of its own.
java=$(command -v java)
flags=(-XX:TieredStopAtLevel=1 -XX:+UseSerialGC)

work=$(mktemp -d)
server=
cleanup() {
  [[ -z $server ]] || kill -KILL "$server" 2>/dev/null || true
  rm -rf "$work"
}
trap cleanup EXIT

opened=()
for package in java.lang java.lang.invoke java.lang.reflect java.io java.net java.nio java.util java.util.concurrent \
  java.util.concurrent.atomic sun.nio.ch sun.nio.cs sun.security.action sun.util.calendar; do
  opened+=("--add-opens=java.base/$package=ALL-UNNAMED")
done

rm -rf "$dir"
mkdir -p "$dir/bin"
cd "$work"
SPARK_HOME=$spark SPARK_LOCAL_IP=127.0.0.1 "$java" "${flags[@]}" "-XX:ArchiveClassesAtExit=$archive" -cp "$spark/jars/*" \
  "${opened[@]}" --add-modules=jdk.incubator.vector -Dio.netty.tryReflectionSetAccessible=true -Xmx1g \
  org.apache.spark.deploy.SparkSubmit --conf spark.master='local[2]' --conf spark.ui.enabled=false \
  --conf spark.driver.host=127.0.0.1 --conf spark.driver.bindAddress=127.0.0.1 \
  --conf spark.connect.grpc.binding.address=127.0.0.1 --conf spark.connect.grpc.binding.port=0 \
  --class org.apache.spark.sql.connect.service.SparkConnectServer spark-internal >server.log 2>&1 &
server=$!

# The server picks its port and logs it.
port=
for _ in $(seq 3000); do
  port=$(sed -n 's/.*Spark Connect server started at: .*:\([0-9]*\)$/\1/p' server.log | head -n 1)
  [[ -z $port ]] || break
  kill -0 "$server" || { cat server.log >&2; exit 1; }
  sleep 0.1
done
[[ -n $port ]] || { tail -n 20 server.log >&2; exit 1; }
timeout 300 "$client" - "$port" >&2 <<'PYTHON'
import sys
from pyspark.sql import SparkSession

spark = SparkSession.builder.remote(f"sc://localhost:{sys.argv[1]}").getOrCreate()
spark.range(1000).selectExpr("id % 7 AS k", "id").groupBy("k").count().orderBy("k").collect()
spark.sql("SELECT current_user(), 1 AS one").collect()
spark.stop()
PYTHON
kill -TERM "$server"
# The archive is written at the end of the JVM.
for _ in $(seq 1200); do
  kill -0 "$server" 2>/dev/null || break
  sleep 0.1
done
[[ -s $archive ]] || { tail -n 20 server.log >&2; exit 1; }
server=

printf '#!/bin/sh\nexec %q %s -XX:SharedArchiveFile=%q -Xshare:auto -Xlog:disable "$@"\n' "$java" "${flags[*]}" "$archive" >"$dir/bin/java"
chmod 755 "$dir/bin/java"
