//! The promises of the client matrix, kept by the crate `apache-spark-connect`.

use spark_connect::SparkSession;
use spark_connect::row::{Row, Value};
use spark_connect::types::DataType;
use trial::{Kept, check};

fn main() {
    let args = trial::args();
    let spark = SparkSession::builder()
        .remote(&args.url)
        .get_or_create()
        .expect("a session");
    if args.leave {
        alive(&spark).expect("a query");
        return;
    }
    trial::begin("apache-spark-connect", "4.2.0");
    let of = |keep: fn(&SparkSession) -> Kept| {
        let spark = spark.clone();
        move || keep(&spark)
    };
    trial::promise("select", of(select));
    trial::promise("large-result", of(large_result));
    trial::promise("temp-view", of(temp_view));
    trial::promise("error-class", of(error_class));
    trial::promise("interrupt", of(interrupt));
    trial::promise("tags", of(tags));
    trial::promise("streaming", of(streaming));
    trial::promise("artifacts", of(artifacts));
    trial::promise("clone", of(clone));
    let url = args.url.clone();
    trial::promise("exit-without-stop", move || trial::leaves(&url));
    trial::not_offered(&["udf"]);
    spark.stop().expect("stop");
}

fn alive(spark: &SparkSession) -> Kept {
    let rows = spark.sql("SELECT 1")?.collect()?;
    check(
        rows[0].get_unchecked(0).as_i64() == Some(1),
        "the session afterwards",
    )
}

fn select(spark: &SparkSession) -> Kept {
    let rows = spark.sql("SELECT 1 AS one, 'zwei' AS two")?.collect()?;
    let [row] = rows.as_slice() else {
        return check(false, format!("{} rows", rows.len()));
    };
    let fine = row.get_unchecked(0).as_i64() == Some(1) && row.get_unchecked(1).as_str() == Some("zwei");
    check(fine, format!("{row:?}"))
}

fn large_result(spark: &SparkSession) -> Kept {
    let rows = spark.sql(trial::LARGE)?.collect()?;
    let right = rows.iter().all(|row| {
        let text = row
            .get_unchecked(0)
            .as_i64()
            .map(|id| format!("a-value-of-some-length-{id}"));
        text.as_deref() == row.get_unchecked(1).as_str()
    });
    check(
        right && rows.len() == trial::LARGE_ROWS,
        format!("{} rows", rows.len()),
    )
}

fn temp_view(spark: &SparkSession) -> Kept {
    let row = |name: &str| Row::new(vec!["name".into()], vec![Value::String(name.into())]);
    let people = vec![row("ada"), row("bob")];
    spark
        .create_dataframe(people, DataType::from_ddl("name STRING")?)?
        .create_or_replace_temp_view("people")?;
    let rows = spark.sql("SELECT name FROM people WHERE name > 'b'")?.collect()?;
    check(
        rows.len() == 1 && rows[0].get_unchecked(0).as_str() == Some("bob"),
        format!("{rows:?}"),
    )
}

fn error_class(spark: &SparkSession) -> Kept {
    let failed = spark.sql(trial::MISSING).and_then(|frame| frame.collect());
    let Err(error) = failed else {
        return check(false, "a query of a table that is not there succeeds");
    };
    alive(spark)?;
    trial::has_class(error.get_condition().as_deref(), &error.to_string())
}

fn long(spark: &SparkSession) -> impl FnOnce() -> Kept + Send + 'static {
    let spark = spark.clone();
    move || Ok(spark.sql(trial::LONG)?.collect().map(drop)?)
}

fn interrupt(spark: &SparkSession) -> Kept {
    trial::ended_by(long(spark), || Ok(spark.interrupt_all().map(drop)?))?;
    alive(spark)
}

fn tags(spark: &SparkSession) -> Kept {
    spark.add_tag("matrix")?;
    let ended = trial::ended_by(long(spark), || {
        spark.interrupt_tag("another")?;
        Ok(spark.interrupt_tag("matrix").map(drop)?)
    });
    spark.clear_tags();
    ended?;
    alive(spark)
}

fn streaming(spark: &SparkSession) -> Kept {
    let rate = spark
        .read_stream()
        .format("rate")
        .option("rowsPerSecond", "50")
        .load(None);
    let query = rate
        .write_stream()
        .format("memory")
        .query_name("ticks")
        .output_mode("append")
        .start("")?;
    let rows = trial::until("50 rows", || Ok(spark.table("ticks")?.count()? >= 50));
    query.stop()?;
    rows?;
    check(!query.is_active()?, "active after its stop")
}

fn artifacts(spark: &SparkSession) -> Kept {
    Ok(spark.add_artifact(&trial::upload()?)?)
}

fn clone(spark: &SparkSession) -> Kept {
    spark
        .sql("SELECT 1 AS id")?
        .create_or_replace_temp_view("shared_view")?;
    let copy = spark.clone_session();
    check(copy.table("shared_view")?.count()? == 1, "the view in the clone")
}
