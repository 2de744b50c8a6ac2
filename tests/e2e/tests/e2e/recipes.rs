//! The recipes of docs/recipes.md run as they are written.

use anyhow::{Context, Result, ensure};
use e2e::{Client, Engine, Stack, binary, installed, repo};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(240);

/// A section of the page with its files, its commands, and lines of their output.
#[derive(Debug, Default)]
struct Recipe {
    title: String,
    files: Vec<(String, String)>,
    commands: String,
    output: Vec<String>,
}

impl Recipe {
    fn read(section: &str) -> Result<Self> {
        let mut recipe = Self {
            title: section.lines().next().unwrap_or_default().to_owned(),
            ..Self::default()
        };
        // Every second part is a block.
        for block in section.split("```").skip(1).step_by(2) {
            let (kind, text) = block.split_once('\n').context("an empty block")?;
            match kind.split_once(' ') {
                Some((_, file)) => recipe.files.push((file.to_owned(), text.to_owned())),
                None if kind == "sh" => recipe.commands += text,
                None => recipe.output.extend(text.lines().map(ToOwned::to_owned)),
            }
        }
        ensure!(
            !recipe.commands.is_empty() && !recipe.output.is_empty(),
            "{} has no commands or no output",
            recipe.title
        );
        Ok(recipe)
    }

    /// The folders with packages that a reader installs.
    fn packages(&self) -> Result<Option<PathBuf>> {
        match self.title.as_str() {
            "dbt" => installed("client-dbt").map(Some),
            "ibis" => installed("client-ibis").map(Some),
            "SQLMesh" => installed("client-sqlmesh").map(Some),
            "Airflow" => installed("client-airflow").map(Some),
            _ => Ok(None),
        }
    }

    async fn run(&self, stack: &Stack, session: &str, dir: &Path) -> Result<()> {
        for (file, text) in &self.files {
            let path = dir.join(file);
            std::fs::create_dir_all(path.parent().context("a folder")?)?;
            std::fs::write(path, text)?;
        }
        let packages = self.packages()?;
        let mut path = vec![
            binary("berth")?.parent().context("a folder")?.to_owned(),
            installed("venv-sail/bin")?,
        ];
        path.extend(packages.iter().map(|folder| folder.join("bin")));
        path.extend(std::env::split_paths(&std::env::var_os("PATH").context("PATH")?));
        let mut command = tokio::process::Command::new("bash");
        command
            .args(["-euo", "pipefail", "-c", &self.commands])
            .current_dir(dir)
            .env("SESSION", session)
            .env("PATH", std::env::join_paths(path)?)
            .env("CLASSPATH", Client::ScalaNew.class_path()?)
            .env("BERTH_MANAGER", &stack.manager_uri)
            .env("BERTH_ISSUER", stack.issuer_uri())
            .env("BERTH_KEY", stack.key_of("ada"))
            .env("BERTH_CONFIG_DIR", dir.join("berth-config"))
            .env("DBT_SEND_ANONYMOUS_USAGE_STATS", "false")
            .env("SQLMESH__DISABLE_ANONYMIZED_ANALYTICS", "true")
            .env("AIRFLOW__CORE__LOAD_EXAMPLES", "false")
            .env("SPARK_LOCAL_IP", "127.0.0.1")
            .env_remove("PYTHONPATH")
            .env_remove("SPARK_REMOTE")
            .envs(packages.map(|folder| ("PYTHONPATH", folder)))
            .kill_on_drop(true);
        let output = tokio::time::timeout(LIMIT, command.output())
            .await
            .context("it hangs")??;
        let text = String::from_utf8_lossy(&output.stdout);
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}\n{text}\n{stderr}", output.status);
        for line in &self.output {
            ensure!(text.contains(line.as_str()), "no {line:?} in {text}\n{stderr}");
        }
        Ok(())
    }
}

/// Runs the recipes of the page that `wanted` names.
async fn run(wanted: impl Fn(&Recipe) -> bool, at_least: usize) -> Result<()> {
    let page = std::fs::read_to_string(repo().join("docs/recipes.md"))?;
    let sections = page.split("\n## ").skip(1);
    let mut recipes: Vec<Recipe> = sections.map(Recipe::read).collect::<Result<_>>()?;
    recipes.retain(wanted);
    ensure!(recipes.len() >= at_least, "recipes are missing: {recipes:?}");
    let stack = Stack::start().await?;
    let session = stack.session("ada", Engine::Sail, &[])?;
    for (at, recipe) in recipes.iter().enumerate() {
        let dir = stack.dir.path().join(format!("recipe-{at}"));
        std::fs::create_dir_all(&dir)?;
        let begun = Instant::now();
        recipe
            .run(&stack, &session, &dir)
            .await
            .with_context(|| recipe.title.clone())?;
        println!("{}: {:.0} s", recipe.title, begun.elapsed().as_secs_f64());
    }
    Ok(())
}

#[tokio::test]
async fn run_as_they_are_written() -> Result<()> {
    run(|recipe| recipe.title != "Airflow", 5).await
}

#[tokio::test]
#[ignore = "make test-recipes runs it, and installs Airflow: a minute, 0.25 GB"]
async fn airflow_runs_as_it_is_written() -> Result<()> {
    run(|recipe| recipe.title == "Airflow", 1).await
}
