// How each client connects: programs to paste, and what each client does about TLS.

/** Where and how a client connects. */
export interface Target {
  /** The connection string; with a placeholder while no token was generated. */
  url: string;
  sessionId: string;
  tls: boolean;
  /** Whether the certificate of the proxy is of a private authority. */
  privateCa: boolean;
  engine: string;
}

export interface Snippet {
  id: string;
  name: string;
  /** Commands to run before. */
  install?: string;
  code: string;
  notes: string[];
  /** Set if this client cannot connect to this installation. */
  impossible?: string;
}

/** The release of PySpark that fits Sail's own Python environment. */
const PYSPARK_4 = "4.1.3";

const GRPC_ROOTS = "Private certificate authority: set GRPC_DEFAULT_SSL_ROOTS_FILE_PATH to its file before Python starts.";
const NO_PLAINTEXT = "This client uses TLS whenever it has a token, and this installation serves plaintext on loopback only. Use PySpark 4, or give the proxy a certificate.";

function query(url: string): string {
  return `from pyspark.sql import SparkSession

spark = SparkSession.builder.remote("${url}").getOrCreate()
spark.sql("SHOW TABLES").show()
spark.stop()
`;
}

function withTls(target: Target, plaintext: string, tls: string): string[] {
  return target.tls ? [tls] : [plaintext];
}

function privateCa(target: Target, note: string): string[] {
  return target.tls && target.privateCa ? [note] : [];
}

const LOCALHOST_ONLY = "This installation serves plaintext: the address must be the literal localhost, because this client uses TLS for every other host, 127.0.0.1 included.";
const URL_HAS_TLS = "The connection string contains use_ssl=true; do not remove it.";

const SIGNED_IN = "Sign in once with berth login, or set a service-account key in BERTH_KEY; BERTH_MANAGER and BERTH_ISSUER, or a context, have the addresses of the APIs.";

function pythonPackage(target: Target): Snippet {
  return {
    id: "python",
    name: "Python package",
    install: `pip install berth-*.whl 'pyspark-client==${PYSPARK_4}' 'pandas<3'`,
    code: `import berth

spark = berth.connect(session="${target.sessionId}")
spark.sql("SHOW TABLES").show()
`,
    notes: [
      "The program needs no token: the package gets one and renews it for as long as it runs, also in a notebook.",
      "The wheel is built by make wheel; ask your platform team for it. PySpark 3.5 works too.",
      'berth.connect(cluster="…", name="etl") creates a session of this name, or finds it again.',
      SIGNED_IN,
    ],
  };
}

function forwarder(target: Target): Snippet {
  return {
    id: "connect",
    name: "berth connect",
    code: `berth connect ${target.sessionId}    # forwards 127.0.0.1:15002 to the session; Ctrl-C ends it
`,
    notes: [
      "It prints a connection string without token and TLS, which works in every client of these tabs, PySpark 3.5 and Go included.",
      "The token is renewed, and an idle session is woken.",
      SIGNED_IN,
    ],
  };
}

function exec(target: Target): Snippet {
  return {
    id: "exec",
    name: "berth exec",
    code: `berth exec ${target.sessionId} -- python my_program.py
`,
    notes: [
      "The program gets SPARK_REMOTE, which SparkSession.builder.getOrCreate(), dbt, SQLMesh and ibis read; the token is renewed while it runs.",
      "--default-port is for programs with sc://localhost:15002 in their code.",
      SIGNED_IN,
    ],
  };
}

function pyspark4(target: Target): Snippet {
  return {
    id: "pyspark4",
    name: "PySpark 4.x",
    install: `pip install 'pyspark-client==${PYSPARK_4}' 'pandas<3'`,
    code: query(target.url),
    notes: [...withTls(target, LOCALHOST_ONLY, URL_HAS_TLS), ...privateCa(target, GRPC_ROOTS), "Call stop() at the end, and before you connect with another string in the same program."],
  };
}

function pyspark3(target: Target): Snippet {
  return {
    id: "pyspark3",
    name: "PySpark 3.x",
    install: "pip install 'pyspark[connect]==3.5.9' 'pandas==2.2.3' 'pyarrow==17.0.0'",
    code: query(target.url),
    notes: [...(target.tls ? [URL_HAS_TLS] : []), ...privateCa(target, GRPC_ROOTS)],
    ...(target.tls ? {} : { impossible: NO_PLAINTEXT }),
  };
}

function notebook(target: Target): Snippet {
  return {
    id: "notebook",
    name: "Notebook",
    install: `%pip install 'pyspark-client==${PYSPARK_4}' 'pandas<3'`,
    code: `from getpass import getpass
from pyspark.sql import SparkSession

# Paste the connection string into the prompt, so that the token is not stored in the notebook.
spark = SparkSession.builder.remote(getpass("Connection string: ")).getOrCreate()
spark.sql("SHOW TABLES").show()
`,
    notes: [...withTls(target, LOCALHOST_ONLY, URL_HAS_TLS), ...privateCa(target, GRPC_ROOTS), "The session becomes idle when nothing runs; the next cell wakes it."],
  };
}

function scala(target: Target): Snippet {
  return {
    id: "scala",
    name: "Scala",
    install: `libraryDependencies += "org.apache.spark" %% "spark-connect-client-jvm" % "${PYSPARK_4}"`,
    code: `import org.apache.spark.sql.SparkSession

val spark = SparkSession.builder().remote("${target.url}").getOrCreate()
spark.sql("SHOW TABLES").show()
spark.stop()
`,
    notes: [
      "Scala 2.13. On Java 17 start the JVM with --add-opens=java.base/java.nio=ALL-UNNAMED.",
      ...withTls(target, LOCALHOST_ONLY, URL_HAS_TLS),
      ...privateCa(target, "Private certificate authority: -Djavax.net.ssl.trustStore=… with a trust store that contains it."),
    ],
  };
}

function jdbc(target: Target): Snippet {
  return {
    id: "jdbc",
    name: "JDBC",
    code: `Connection spark = DriverManager.getConnection("jdbc:${target.url}");
try (ResultSet tables = spark.createStatement().executeQuery("SHOW TABLES")) {
    while (tables.next()) System.out.println(tables.getString(2));
}
`,
    notes: [
      "The driver is spark-connect-client-jdbc_2.13 of Spark 4.3, with the Scala client on the class path.",
      "On Java 17 start the JVM with --add-opens=java.base/java.nio=ALL-UNNAMED.",
      ...withTls(target, LOCALHOST_ONLY, URL_HAS_TLS),
      ...privateCa(target, "Private certificate authority: -Djavax.net.ssl.trustStore=… with a trust store that contains it."),
    ],
  };
}

function go(target: Target): Snippet {
  return {
    id: "go",
    name: "Go",
    install: "go get github.com/apache/spark-connect-go",
    code: `ctx := context.Background()
spark, err := sql.NewSessionBuilder().Remote("${target.url}").Build(ctx)
if err != nil {
    log.Fatal(err)
}
defer spark.Stop()
tables, err := spark.Sql(ctx, "SHOW TABLES")
if err != nil {
    log.Fatal(err)
}
tables.Show(ctx, 20, false)
`,
    notes: ["Import github.com/apache/spark-connect-go/spark/sql. Messages are limited to 4 MiB.", ...privateCa(target, "Private certificate authority: set SSL_CERT_FILE to its file.")],
    ...(target.tls ? {} : { impossible: NO_PLAINTEXT }),
  };
}

function rust(target: Target): Snippet {
  return {
    id: "rust",
    name: "Rust",
    install: `spark-connect-rs = { version = "0.0.2"${target.tls ? ', features = ["tls"]' : ""} }`,
    code: `use spark_connect_rs::SparkSessionBuilder;

let spark = SparkSessionBuilder::remote("${target.url}")
    .build()
    .await?;
spark.sql("SHOW TABLES").await?.show(Some(20), None, None).await?;
`,
    notes: [
      ...withTls(target, "This installation serves plaintext: use it on loopback only, because the token is sent unencrypted.", "Without the feature tls this client sends the token unencrypted."),
      "The crate apache-spark-connect accepts the same connection string and larger messages.",
      ...privateCa(target, "Private certificate authority: spark-connect-rs uses the authorities of the system; apache-spark-connect reads SSL_CERT_FILE."),
    ],
  };
}

function dbt(target: Target): Snippet {
  return {
    id: "dbt",
    name: "dbt",
    install: "pip install 'dbt-spark[session]'",
    code: `# profiles.yml
berth:
  target: dev
  outputs:
    dev:
      type: spark
      method: session
      host: NA
      schema: default

# in the shell; the session method connects to SPARK_REMOTE
export SPARK_REMOTE="${target.url}"
dbt run
`,
    notes: [...withTls(target, LOCALHOST_ONLY, URL_HAS_TLS), ...privateCa(target, GRPC_ROOTS), "Choose a lifetime of the token that is longer than the run."],
  };
}

function airflow(target: Target): Snippet {
  return {
    id: "airflow",
    name: "Airflow",
    install: `pip install 'pyspark-client==${PYSPARK_4}' 'pandas<3'    # on the workers
airflow variables set berth_spark_remote '${target.url}'`,
    code: `from airflow.decorators import task
from airflow.models import Variable


@task
def tables():
    from pyspark.sql import SparkSession

    spark = SparkSession.builder.remote(Variable.get("berth_spark_remote")).getOrCreate()
    try:
        return [row.tableName for row in spark.sql("SHOW TABLES").collect()]
    finally:
        spark.stop()
`,
    notes: [
      "Keep the variable in a secrets backend: it contains the token.",
      ...withTls(target, `${LOCALHOST_ONLY} Workers on other machines need a proxy with a certificate.`, URL_HAS_TLS),
      ...privateCa(target, GRPC_ROOTS),
    ],
  };
}

function cli(target: Target): Snippet {
  return {
    id: "cli",
    name: "CLI",
    code: `eval "$(berth env ${target.sessionId} --ttl 8h)"    # issues a token and sets SPARK_REMOTE
python my_program.py    # SparkSession.builder.getOrCreate() reads SPARK_REMOTE

berth doctor ${target.sessionId}    # names what is wrong with a connection
`,
    notes: [SIGNED_IN],
  };
}

/** All clients, those first that most people use. */
export function snippets(target: Target): Snippet[] {
  return [pythonPackage, pyspark4, pyspark3, notebook, scala, go, rust, jdbc, dbt, airflow, exec, forwarder, cli].map((make) => make(target));
}
