// Program promises is how the Go client keeps the promises of the client matrix
// (../promises.toml): promises --url URL. It prints one JSON line per promise, as promises.py does.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime/debug"
	"time"

	"github.com/apache/spark-connect-go/spark/sparkerrors"
	"github.com/apache/spark-connect-go/spark/sql"
	"github.com/apache/spark-connect-go/spark/sql/types"
)

// limit is for each promise.
const limit = 150 * time.Second

const largeRows = 1_000_000

type promise struct {
	name string
	keep func(ctx context.Context, spark sql.SparkSession) error
}

var promises = []promise{
	{"select", selectOne},
	{"large-result", largeResult},
	{"temp-view", tempView},
	{"error-class", errorClass},
	{"exit-without-stop", exitWithoutStop},
}

var notOffered = []string{"udf", "interrupt", "tags", "streaming", "artifacts", "clone"}

func main() {
	if len(os.Args) < 3 || os.Args[1] != "--url" {
		fmt.Fprintln(os.Stderr, "usage: promises --url URL")
		os.Exit(2)
	}
	ctx := context.Background()
	spark, err := sql.NewSessionBuilder().Remote(os.Args[2]).Build(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if len(os.Args) > 3 && os.Args[3] == "--leave" {
		if _, err := rows(ctx, spark, "SELECT 1"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	printLine(map[string]string{"client": "go", "release": release()})
	for _, promise := range promises {
		outcome, detail := "passed", ""
		if err := try(ctx, spark, promise); err != nil {
			outcome, detail = "failed", err.Error()
		}
		printLine(map[string]string{"promise": promise.name, "outcome": outcome, "detail": detail})
	}
	for _, name := range notOffered {
		printLine(map[string]string{"promise": name, "outcome": "not offered", "detail": "the Go client has no such call"})
	}
	if err := spark.Stop(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func try(ctx context.Context, spark sql.SparkSession, promise promise) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return promise.keep(ctx, spark)
}

// release is the version of the client's module.
func release() string {
	info, _ := debug.ReadBuildInfo()
	for _, module := range info.Deps {
		if module.Path == "github.com/apache/spark-connect-go" {
			return module.Version
		}
	}
	return "unknown"
}

func printLine(line map[string]string) {
	text, err := json.Marshal(line)
	if err != nil {
		panic(err)
	}
	fmt.Println(string(text))
}

func rows(ctx context.Context, spark sql.SparkSession, query string) ([]types.Row, error) {
	frame, err := spark.Sql(ctx, query)
	if err != nil {
		return nil, err
	}
	return frame.Collect(ctx)
}

func selectOne(ctx context.Context, spark sql.SparkSession) error {
	seen, err := rows(ctx, spark, "SELECT 1 AS one, 'zwei' AS two")
	if err != nil {
		return err
	}
	if len(seen) != 1 || fmt.Sprint(seen[0].Values()) != "[1 zwei]" {
		return fmt.Errorf("wrong result: %v", seen)
	}
	return nil
}

func largeResult(ctx context.Context, spark sql.SparkSession) error {
	query := "SELECT id, concat('a-value-of-some-length-', id) AS text FROM range(0, %d, 1, 8)"
	frame, err := spark.Sql(ctx, fmt.Sprintf(query, largeRows))
	if err != nil {
		return err
	}
	var count, sum int64
	for row, err := range frame.All(ctx) {
		if err != nil {
			return err
		}
		id, fine := row.At(0).(int64)
		if !fine || row.At(1) != fmt.Sprintf("a-value-of-some-length-%d", id) {
			return fmt.Errorf("wrong row: %v", row)
		}
		count++
		sum += id
	}
	if count != largeRows || sum != largeRows*(largeRows-1)/2 {
		return fmt.Errorf("wrong result: %d rows", count)
	}
	return nil
}

func tempView(ctx context.Context, spark sql.SparkSession) error {
	schema := types.StructOf(types.NewStructField("name", types.STRING))
	frame, err := spark.CreateDataFrame(ctx, [][]any{{"ada"}, {"bob"}, {"cyd"}}, schema)
	if err != nil {
		return err
	}
	if err := frame.CreateOrReplaceTempView(ctx, "people"); err != nil {
		return err
	}
	seen, err := rows(ctx, spark, "SELECT name FROM people WHERE name > 'b' ORDER BY name")
	if err != nil {
		return err
	}
	if len(seen) != 2 || seen[1].At(0) != "cyd" {
		return fmt.Errorf("wrong result: %v", seen)
	}
	return nil
}

func errorClass(ctx context.Context, spark sql.SparkSession) error {
	_, err := rows(ctx, spark, "SELECT * FROM no_such_table_here")
	if err == nil {
		return errors.New("a query of a table that is not there succeeds")
	}
	if _, err := rows(ctx, spark, "SELECT 1"); err != nil {
		return fmt.Errorf("the session afterwards: %w", err)
	}
	var spoken *sparkerrors.SparkError
	if !errors.As(err, &spoken) {
		return fmt.Errorf("no error of the engine: %w", err)
	}
	if spoken.ErrorClass != "TABLE_OR_VIEW_NOT_FOUND" {
		return fmt.Errorf("an error without class: %w", err)
	}
	return nil
}

func exitWithoutStop(ctx context.Context, _ sql.SparkSession) error {
	ctx, cancel := context.WithTimeout(ctx, 120*time.Second)
	defer cancel()
	output, err := exec.CommandContext(ctx, os.Args[0], "--url", os.Args[2], "--leave").CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, output)
	}
	return nil
}
