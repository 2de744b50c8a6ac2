//! What the kernel tells of a process; also a module of `berth-supervise`.

/// State, parent and process group out of `/proc/<pid>/stat`, whose second
/// field is the program's name in parentheses and may contain anything.
pub(crate) fn parse(stat: &str) -> Option<(&str, i32, i32)> {
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    let group = fields.next()?.parse().ok()?;
    Some((state, parent, group))
}
