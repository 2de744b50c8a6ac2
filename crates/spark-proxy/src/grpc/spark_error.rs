//! Errors in Apache Spark's form. Clients act upon their class.

use std::collections::HashMap;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// An error of this class. It has no `errorId`, so that clients do not request details.
pub(crate) fn spark_error(class: &str, text: &str) -> Status {
    spark_error_with_state(class, text, "HY000")
}

pub(crate) fn spark_error_with_state(class: &str, text: &str, sql_state: &str) -> Status {
    let metadata = HashMap::from([
        ("errorClass".to_owned(), class.to_owned()),
        ("sqlState".to_owned(), sql_state.to_owned()),
        (
            "classes".to_owned(),
            r#"["org.apache.spark.SparkException","java.lang.Exception"]"#.to_owned(),
        ),
    ]);
    let details =
        ErrorDetails::with_error_info("org.apache.spark.SparkException", "org.apache.spark", metadata);
    Status::with_error_details(
        Code::Internal,
        format!("[{class}] {text} SQLSTATE: {sql_state}"),
        details,
    )
}

/// A Spark session id in `field` is not a UUID.
pub(crate) fn invalid_handle(field: &str) -> Status {
    spark_error(
        "INVALID_HANDLE.FORMAT",
        &format!("{field} is not a UUID. It must have the form 01234567-89ab-cdef-0123-456789abcdef."),
    )
}
