//! What the definition of a process cluster must contain.

use crate::properties::{
    Problems, check_engine_properties, is_jvm_size, must_be_absolute, must_be_for_spark,
};
use session_core::{Cluster, Provider};

/// Adds every field and property that is wrong.
pub(crate) fn check_definition(cluster: &Cluster, problems: &mut Problems) {
    let Provider::Process {
        program,
        java_home,
        properties,
        python,
        driver_memory,
    } = &cluster.provider
    else {
        return;
    };
    must_be_absolute(problems, "program", program);
    let for_spark = [
        ("java_home", java_home),
        ("python", python),
        ("driver_memory", driver_memory),
    ];
    for (field, value) in for_spark {
        let Some(text) = value else {
            continue;
        };
        if !must_be_for_spark(problems, cluster.engine, field) {
            continue;
        }
        if field != "driver_memory" {
            must_be_absolute(problems, field, text);
        } else if !is_jvm_size(text) {
            problems.add(field, "must be a number and m or g, e.g. 2g");
        }
    }
    check_engine_properties(cluster.engine, properties, problems);
}
