//! What the definition of a process cluster must contain.

use crate::properties::{
    Problems, check_text, cluster_key_problem, is_local_master, is_secret_variable, must_be_absolute,
    not_too_many,
};
use session_core::{Cluster, Engine, Provider};

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
        match (cluster.engine, value) {
            (_, None) => {}
            (Engine::Sail, Some(_)) => problems.add(field, "is only for the engine spark"),
            (Engine::Spark, Some(text)) if field == "driver_memory" => {
                if !is_jvm_size(text) {
                    problems.add(field, "must be a number and m or g, e.g. 2g");
                }
            }
            (Engine::Spark, Some(text)) => must_be_absolute(problems, field, text),
        }
    }
    not_too_many(problems, properties.len());
    for (key, value) in properties {
        if let Some(problem) = cluster_key_problem(cluster.engine, key) {
            problems.add(key, problem);
        }
        check_text(problems, key, value, is_secret_variable);
        if key == "spark.master" && !is_local_master(value) {
            problems.add(key, "must be local[…]: the process provider runs one machine");
        }
    }
}

fn is_jvm_size(text: &str) -> bool {
    let digits = text.trim_end_matches(['m', 'g', 'M', 'G']);
    digits.len() + 1 == text.len() && digits.parse::<u32>().is_ok_and(|n| n > 0)
}
