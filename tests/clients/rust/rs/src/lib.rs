//! The promises of the client matrix, kept by the crate `spark-connect-rs`.

use arrow::array::{ArrayRef, RecordBatch, StringArray};
use spark_connect_rs::streaming::OutputMode;
use spark_connect_rs::{SparkSession, SparkSessionBuilder};
use std::future::Future;
use std::sync::Arc;
use tokio::runtime::Handle;
use trial::{Kept, check};

/// Tries them.
#[tokio::main]
pub async fn run() {
    let args = trial::args();
    let spark = SparkSessionBuilder::remote(&args.url)
        .build()
        .await
        .expect("a session");
    if args.leave {
        alive(spark).await.expect("a query");
        return;
    }
    trial::begin("spark-connect-rs", "0.0.2");
    promise("select", select, &spark).await;
    promise("large-result", large_result, &spark).await;
    promise("temp-view", temp_view, &spark).await;
    promise("error-class", error_class, &spark).await;
    promise("interrupt", interrupt, &spark).await;
    promise("tags", tags, &spark).await;
    promise("streaming", streaming, &spark).await;
    let url = args.url.clone();
    let leaves = || trial::promise("exit-without-stop", move || trial::leaves(&url));
    tokio::task::spawn_blocking(leaves).await.expect("a promise");
    trial::not_offered(&["udf", "artifacts", "clone"]);
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
    let batch = spark.sql("SELECT 1").await?.collect().await?;
    check(batch.num_rows() == 1, "the session afterwards")
}

async fn select(spark: SparkSession) -> Kept {
    let batch = spark
        .sql("SELECT 1 AS one, 'zwei' AS two")
        .await?
        .collect()
        .await?;
    let seen = format!("{batch:?}");
    check(batch.num_rows() == 1 && seen.contains("zwei"), seen)
}

async fn large_result(spark: SparkSession) -> Kept {
    let rows = spark.sql(trial::LARGE).await?.collect().await?.num_rows();
    check(rows == trial::LARGE_ROWS, format!("{rows} rows"))
}

async fn temp_view(spark: SparkSession) -> Kept {
    let names: ArrayRef = Arc::new(StringArray::from(vec!["ada", "bob"]));
    let people = RecordBatch::try_from_iter([("name", names)])?;
    let frame = spark.create_dataframe(&people)?;
    frame.create_or_replace_temp_view("people").await?;
    let batch = spark
        .sql("SELECT name FROM people WHERE name > 'b'")
        .await?
        .collect()
        .await?;
    let seen = format!("{batch:?}");
    check(seen.contains("\"bob\"") && !seen.contains("\"ada\""), seen)
}

async fn error_class(spark: SparkSession) -> Kept {
    let failed = match spark.sql(trial::MISSING).await {
        Ok(frame) => frame.collect().await.map(drop),
        Err(error) => Err(error),
    };
    let Err(error) = failed else {
        return check(false, "a query of a table that is not there succeeds");
    };
    alive(spark).await?;
    trial::has_class(None, &error.to_string())
}

/// Waits on a thread for blocking work.
async fn ended_by<F>(query: SparkSession, interrupt: F) -> Kept
where
    F: Future<Output = Kept> + Send + 'static,
{
    let (runtime, another) = (Handle::current(), Handle::current());
    let long = async move { Ok(query.sql(trial::LONG).await?.collect().await.map(drop)?) };
    let work = move || trial::ended_by(move || runtime.block_on(long), || another.block_on(interrupt));
    tokio::task::spawn_blocking(work).await?
}

async fn interrupt(spark: SparkSession) -> Kept {
    let other = spark.clone();
    ended_by(spark.clone(), async move {
        Ok(other.interrupt_all().await.map(drop)?)
    })
    .await?;
    alive(spark).await
}

async fn tags(spark: SparkSession) -> Kept {
    let mut tagged = spark.clone();
    tagged.add_tag("matrix")?;
    let other = spark.clone();
    let ended = ended_by(tagged, async move {
        other.interrupt_tag("another").await?;
        Ok(other.interrupt_tag("matrix").await.map(drop)?)
    });
    ended.await?;
    alive(spark).await
}

async fn streaming(spark: SparkSession) -> Kept {
    let rate = spark
        .clone()
        .read_stream()
        .format("rate")
        .option("rowsPerSecond", "50")
        .load(None)?;
    let writer = rate
        .write_stream()
        .format("memory")
        .query_name("ticks")
        .output_mode(OutputMode::Append);
    let query = writer.start(None).await?;
    let (other, runtime) = (spark.clone(), Handle::current());
    let rows = move || {
        let count = || runtime.block_on(async { other.table("ticks")?.count().await });
        trial::until("50 rows", || Ok(count()? >= 50))
    };
    let rows = tokio::task::spawn_blocking(rows).await?;
    query.stop().await?;
    rows?;
    check(!query.is_active().await?, "active after its stop")
}
