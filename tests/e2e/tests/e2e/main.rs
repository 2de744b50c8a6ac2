//! One file per promise. Everything is real: Redis, Sail, Apache Spark,
//! PySpark, the services as processes. `make test` installs and builds what
//! they need; `cargo test -p e2e NAME` runs some of them.

mod advice;
mod at_once;
mod canary;
mod catalog;
mod churn;
mod clients;
mod close;
mod command;
mod compressed_requests;
mod config;
mod conformance;
mod connect;
mod console;
mod engine_words;
mod errors;
mod forwarder;
mod fresh_clients;
mod idle;
mod isolation;
mod large;
mod linearizable;
mod login;
mod long_queries;
mod oidc;
mod operations;
mod python_package;
mod quickstart;
mod reattach;
mod recipes;
mod redis_for_real;
mod refusals;
mod replaced;
mod restarts;
mod revocation;
mod sail_streams;
mod select;
mod shared_server;
mod soak;
mod tokens;
mod traces;
mod udfs;
mod who;
