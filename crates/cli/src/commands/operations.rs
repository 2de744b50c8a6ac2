//! Commands for running operations.

use crate::Output;
use crate::args::Interrupt;
use crate::client::{self, explain};
use crate::output::{self, distance};
use crate::settings::Target;
use anyhow::Result;
use session_core::{Clock, SystemClock};
use session_proto::v1;

pub(super) async fn list(target: &Target, output: Output, session_id: String) -> Result<()> {
    let request = v1::ListOperationsRequest { session_id };
    let operations = client::sessions(target)
        .await?
        .list_operations(request)
        .await
        .map_err(explain)?
        .into_inner()
        .operations;
    let now = SystemClock.now();
    let rows = operations
        .iter()
        .map(|operation| {
            vec![
                operation.operation_id.clone(),
                operation.method.clone(),
                distance(operation.started_at.as_ref(), now),
                operation.spark_session_id.clone(),
            ]
        })
        .collect();
    output::rows(
        output,
        &["OPERATION", "METHOD", "RUNS FOR", "SPARK SESSION"],
        rows,
        &operations,
    );
    Ok(())
}

/// An empty list of operations means all.
pub(super) async fn interrupt(target: &Target, output: Output, interrupt: Interrupt) -> Result<()> {
    let request = v1::InterruptOperationsRequest {
        session_id: interrupt.session,
        operation_ids: interrupt.operations,
    };
    let interrupted = client::sessions(target)
        .await?
        .interrupt_operations(request)
        .await
        .map_err(explain)?
        .into_inner()
        .interrupted_operation_ids;
    if interrupted.is_empty() && output == Output::Table {
        output::note("Nothing was interrupted: `berth operation list` lists what runs.");
    }
    let rows = interrupted.iter().map(|id| vec![id.clone()]).collect();
    output::rows(output, &["INTERRUPTED"], rows, &interrupted);
    Ok(())
}
