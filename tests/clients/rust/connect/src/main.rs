//! The promises of the client matrix, kept by the crate `spark-connect`.

use spark_connect::SparkSession;
use spark_connect::row::{Row, Value};
use spark_connect::types::DataType;
use std::future::Future;
use tokio::runtime::Handle;
use trial::{Kept, check};

#[tokio::main]
async fn main() {
    let args = trial::args();
    let spark = SparkSession::builder()
        .remote(&args.url)
        .get_or_create()
        .await
        .expect("a session");
    if args.leave {
        alive(spark).await.expect("a query");
        return;
    }
    trial::begin("spark-connect", "0.3.0");
    promise("select", select, &spark).await;
    promise("large-result", large_result, &spark).await;
    promise("temp-view", temp_view, &spark).await;
    promise("error-class", error_class, &spark).await;
    promise("interrupt", interrupt, &spark).await;
    promise("tags", tags, &spark).await;
    promise("streaming", streaming, &spark).await;
    promise("artifacts", artifacts, &spark).await;
    promise("clone", clone, &spark).await;
    let url = args.url.clone();
    let leaves = || trial::promise("exit-without-stop", move || trial::leaves(&url));
    tokio::task::spawn_blocking(leaves).await.expect("a promise");
    trial::not_offered(&["udf"]);
    spark.stop().await.expect("stop");
}

async fn promise<F>(
    name: &'static str,
    keep: impl FnOnce(SparkSession) -> F + Send + 'static,
    spark: &SparkSession,
) where
    F: Future<Output = Kept> + Send + 'static,
{
    let (spark, runtime) = (spark.clone(), Handle::current());
    let run = move || trial::promise(name, move || runtime.block_on(keep(spark)));
    tokio::task::spawn_blocking(run).await.expect("a promise");
}

async fn alive(spark: SparkSession) -> Kept {
    let batches = spark.query("SELECT 1").execute().await?;
    check(
        batches.iter().map(|batch| batch.num_rows()).sum::<usize>() == 1,
        "the session afterwards",
    )
}

async fn select(spark: SparkSession) -> Kept {
    let batches = spark
        .query("SELECT ? AS one, ? AS two")
        .bind(1)
        .bind("zwei")
        .execute()
        .await?;
    let seen = format!("{batches:?}");
    check(
        batches.len() == 1 && batches[0].num_rows() == 1 && seen.contains("zwei"),
        seen,
    )
}

async fn large_result(spark: SparkSession) -> Kept {
    let sum = format!(
        "SELECT count(*) AS c, count(DISTINCT text) AS d FROM ({})",
        trial::LARGE
    );
    let rows: usize = spark
        .query(trial::LARGE)
        .execute()
        .await?
        .iter()
        .map(|batch| batch.num_rows())
        .sum();
    check(rows == trial::LARGE_ROWS, format!("{rows} rows"))?;
    let counted = format!("{:?}", spark.query(&sum).execute().await?);
    check(counted.matches("1000000").count() >= 2, counted)
}

async fn temp_view(spark: SparkSession) -> Kept {
    spark
        .run(|spark| {
            let row = |name: &str| Row::new(vec!["name".into()], vec![Value::String(name.into())]);
            let frame =
                spark.create_dataframe(vec![row("ada"), row("bob")], DataType::from_ddl("name STRING")?)?;
            frame.create_or_replace_temp_view("people")
        })
        .await?;
    let seen = format!(
        "{:?}",
        spark
            .query("SELECT name FROM people WHERE name > 'b'")
            .execute()
            .await?
    );
    check(seen.contains("\"bob\"") && !seen.contains("\"ada\""), seen)
}

async fn error_class(spark: SparkSession) -> Kept {
    let Err(error) = spark.query(trial::MISSING).execute().await else {
        return check(false, "a query of a table that is not there succeeds");
    };
    alive(spark).await?;
    trial::has_class(error.get_condition().as_deref(), &error.to_string())
}

fn long(spark: &SparkSession) -> impl FnOnce() -> Kept + Send + 'static {
    let (spark, runtime) = (spark.clone(), Handle::current());
    move || Ok(runtime.block_on(spark.query(trial::LONG).execute()).map(drop)?)
}

/// Waits on a thread for blocking work.
async fn ended_by<F>(spark: &SparkSession, interrupt: F) -> Kept
where
    F: Future<Output = Kept> + Send + 'static,
{
    let (query, runtime) = (long(spark), Handle::current());
    tokio::task::spawn_blocking(move || trial::ended_by(query, || runtime.block_on(interrupt))).await?
}

async fn interrupt(spark: SparkSession) -> Kept {
    let other = spark.clone();
    ended_by(&spark, async move { Ok(other.interrupt_all().await.map(drop)?) }).await?;
    alive(spark).await
}

async fn tags(spark: SparkSession) -> Kept {
    spark.add_tag("matrix")?;
    let other = spark.clone();
    let ended = ended_by(&spark, async move {
        other.interrupt_tag("another").await?;
        Ok(other.interrupt_tag("matrix").await.map(drop)?)
    });
    let ended = ended.await;
    spark.clear_tags();
    ended?;
    alive(spark).await
}

async fn streaming(spark: SparkSession) -> Kept {
    let query = spark
        .run(|spark| {
            let rate = spark
                .read_stream()
                .format("rate")
                .option("rowsPerSecond", "50")
                .load(None);
            let writer = rate
                .write_stream()
                .format("memory")
                .query_name("ticks")
                .output_mode("append");
            writer.start("")
        })
        .await?;
    let (other, runtime) = (spark.clone(), Handle::current());
    let rows = move || {
        let count = || runtime.block_on(other.run(|spark| spark.table("ticks")?.count()));
        trial::until("50 rows", || Ok(count()? >= 50))
    };
    let rows = tokio::task::spawn_blocking(rows).await?;
    spark.run(move |_| query.stop()).await?;
    rows
}

async fn artifacts(spark: SparkSession) -> Kept {
    Ok(spark.add_artifact(&trial::upload()?).await?)
}

async fn clone(spark: SparkSession) -> Kept {
    spark
        .run(|spark| {
            spark
                .sql("SELECT 1 AS id")?
                .create_or_replace_temp_view("shared_view")
        })
        .await?;
    let copy = spark.clone_session();
    let count = copy.run(|spark| spark.table("shared_view")?.count()).await?;
    check(count == 1, "the view in the clone")
}
