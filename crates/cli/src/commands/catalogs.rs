//! Catalog commands: list for all users, define and test for org admins.

use crate::args::CatalogCommand;
use crate::client::{self, explain};
use crate::settings::Target;
use crate::{Output, definition, output};
use anyhow::{Result, bail};
use serde_json::json;
use session_proto::{json, v1};
use std::path::Path;

pub(super) async fn run(target: &Target, output: Output, command: CatalogCommand) -> Result<()> {
    match command {
        CatalogCommand::List => list(target, output).await,
        CatalogCommand::Describe { name } => {
            let catalog = describe(target, name).await?;
            show_catalog(output, &catalog);
            Ok(())
        }
        CatalogCommand::Create { file } => {
            let request = v1::CreateCatalogRequest {
                catalog: Some(definition::catalog(&file)?),
            };
            let created = client::catalogs(target)
                .await?
                .create_catalog(request)
                .await
                .map_err(explain)?
                .into_inner();
            show_catalog(output, &created.catalog.unwrap_or_default());
            Ok(())
        }
        CatalogCommand::Update { file } => update(target, output, &file).await,
        CatalogCommand::Delete { name, force } => {
            let request = v1::DeleteCatalogRequest {
                name: name.clone(),
                force,
            };
            client::catalogs(target)
                .await?
                .delete_catalog(request)
                .await
                .map_err(explain)?;
            output::fields(output, &[("deleted", name.clone())], &json!({"deleted": name}));
            Ok(())
        }
        CatalogCommand::Test { name, cluster } => test(target, output, name, cluster).await,
    }
}

async fn describe(target: &Target, name: String) -> Result<v1::Catalog> {
    let described = client::catalogs(target)
        .await?
        .describe_catalog(v1::DescribeCatalogRequest { name })
        .await
        .map_err(explain)?
        .into_inner();
    Ok(described.catalog.unwrap_or_default())
}

/// A concurrent change between read and write wins; then this update fails.
async fn update(target: &Target, output: Output, file: &Path) -> Result<()> {
    let catalog = definition::catalog(file)?;
    let stored = describe(target, catalog.name.clone()).await?;
    let catalog = v1::Catalog {
        version: stored.version,
        ..catalog
    };
    let updated = client::catalogs(target)
        .await?
        .update_catalog(v1::UpdateCatalogRequest {
            catalog: Some(catalog),
        })
        .await
        .map_err(explain)?
        .into_inner();
    show_catalog(output, &updated.catalog.unwrap_or_default());
    Ok(())
}

async fn test(target: &Target, output: Output, name: String, cluster: String) -> Result<()> {
    let request = v1::TestCatalogRequest {
        name: name.clone(),
        cluster: cluster.clone(),
    };
    let tested = client::catalogs(target)
        .await?
        .test_catalog(request)
        .await
        .map_err(explain)?
        .into_inner();
    // A failed test is an error; JSON output also contains the result.
    if tested.usable || output == Output::Json {
        let usable = if tested.usable { "yes" } else { "no" };
        output::fields(
            output,
            &[("usable", usable.to_owned()), ("message", tested.message.clone())],
            &tested,
        );
    }
    if !tested.usable {
        bail!(
            "catalog {name} cannot be used on cluster {cluster}: {}",
            tested.message
        );
    }
    Ok(())
}

fn show_catalog(output: Output, catalog: &v1::Catalog) {
    let properties = json::value(catalog)["properties"].to_string();
    let fields = [
        ("catalog", catalog.name.clone()),
        ("organization", catalog.org.clone()),
        ("engine", output::engine(catalog.engine())),
        ("database", catalog.default_database.clone()),
        ("properties", properties),
        ("teams", catalog.allowed_teams.join(", ")),
        ("declared", output::declared(catalog.managed_by_config)),
    ];
    output::fields(output, &fields, catalog);
}

/// Page size of one call: the maximum of the API.
const PAGE_SIZE: i32 = 1000;

async fn list(target: &Target, output: Output) -> Result<()> {
    let mut client = client::catalogs(target).await?;
    let (mut catalogs, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = v1::ListCatalogsRequest {
            page_size: PAGE_SIZE,
            page_token,
        };
        let page = client.list_catalogs(request).await.map_err(explain)?.into_inner();
        catalogs.extend(page.catalogs);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    let rows = catalogs
        .iter()
        .map(|catalog| {
            vec![
                catalog.name.clone(),
                output::engine(catalog.engine()),
                catalog.default_database.clone(),
            ]
        })
        .collect();
    output::rows(output, &["CATALOG", "ENGINE", "DATABASE"], rows, &catalogs);
    Ok(())
}
