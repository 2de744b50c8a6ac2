//! Catalogs: listed by everybody, defined and tested by org admins.

use crate::args::Catalogs;
use crate::client::{self, explain};
use crate::{Output, Target, definition, show};
use anyhow::{Result, bail};
use serde_json::{Value, json};
use session_proto::v1;
use std::path::Path;

pub(super) async fn run(target: &Target, output: Output, command: Catalogs) -> Result<()> {
    match command {
        Catalogs::List => list(target, output).await,
        Catalogs::Show { name } => {
            let catalog = describe(target, name).await?;
            show_catalog(output, &catalog);
            Ok(())
        }
        Catalogs::Create { file } => {
            let request = v1::CreateCatalogRequest {
                catalog: Some(definition::catalog(&file)?),
            };
            let created = client::catalogs(target)?
                .create_catalog(request)
                .await
                .map_err(explain)?
                .into_inner();
            show_catalog(output, &created.catalog.unwrap_or_default());
            Ok(())
        }
        Catalogs::Update { file } => update(target, output, &file).await,
        Catalogs::Delete { name, force } => {
            let request = v1::DeleteCatalogRequest {
                name: name.clone(),
                force,
            };
            client::catalogs(target)?
                .delete_catalog(request)
                .await
                .map_err(explain)?;
            show::fields(output, &[("deleted", name.clone())], &json!({"deleted": name}));
            Ok(())
        }
        Catalogs::Test { name, cluster } => test(target, output, name, cluster).await,
    }
}

async fn describe(target: &Target, name: String) -> Result<v1::Catalog> {
    let described = client::catalogs(target)?
        .describe_catalog(v1::DescribeCatalogRequest { name })
        .await
        .map_err(explain)?
        .into_inner();
    Ok(described.catalog.unwrap_or_default())
}

/// Whoever changes it between our read and our write wins; then it says so.
async fn update(target: &Target, output: Output, file: &Path) -> Result<()> {
    let catalog = definition::catalog(file)?;
    let stored = describe(target, catalog.name.clone()).await?;
    let catalog = v1::Catalog {
        version: stored.version,
        ..catalog
    };
    let updated = client::catalogs(target)?
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
    let tested = client::catalogs(target)?
        .test_catalog(request)
        .await
        .map_err(explain)?
        .into_inner();
    // Of a failure, people read the error; programs get the answer too.
    if tested.usable || output == Output::Json {
        let usable = if tested.usable { "yes" } else { "no" };
        show::fields(
            output,
            &[("usable", usable.to_owned()), ("message", tested.message.clone())],
            &json!({"usable": tested.usable, "message": tested.message}),
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

fn property(value: &v1::PropertyValue) -> Value {
    match &value.value {
        Some(v1::property_value::Value::Text(text)) => json!(text),
        Some(v1::property_value::Value::List(list)) => json!(list.items),
        None => Value::Null,
    }
}

fn properties(catalog: &v1::Catalog) -> serde_json::Map<String, Value> {
    let all = catalog.properties.iter();
    all.map(|(key, value)| (key.clone(), property(value))).collect()
}

fn catalog_json(catalog: &v1::Catalog) -> Value {
    json!({
        "name": catalog.name, "org": catalog.org, "engine": show::engine(catalog.engine()),
        "default_database": catalog.default_database, "properties": properties(catalog),
        "allowed_teams": catalog.allowed_teams, "managed_by_config": catalog.managed_by_config,
        "version": catalog.version,
    })
}

fn show_catalog(output: Output, catalog: &v1::Catalog) {
    let properties = Value::Object(properties(catalog)).to_string();
    let fields = [
        ("catalog", catalog.name.clone()),
        ("organization", catalog.org.clone()),
        ("engine", show::engine(catalog.engine())),
        ("database", catalog.default_database.clone()),
        ("properties", properties),
        ("teams", catalog.allowed_teams.join(", ")),
        ("declared", show::declared(catalog.managed_by_config)),
    ];
    show::fields(output, &fields, &catalog_json(catalog));
}

/// Of one call; the largest that there is.
const PAGE_SIZE: i32 = 1000;

async fn list(target: &Target, output: Output) -> Result<()> {
    let mut client = client::catalogs(target)?;
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
                show::engine(catalog.engine()),
                catalog.default_database.clone(),
            ]
        })
        .collect();
    let json = catalogs.iter().map(catalog_json).collect();
    show::rows(output, &["CATALOG", "ENGINE", "DATABASE"], rows, json);
    Ok(())
}
