//! Parser of `/proc/<pid>/stat`; also a module of `berth-supervise`.

/// Returns state, parent and process group. The second field is the program's name in
/// parentheses, which can contain any character.
pub(crate) fn parse(stat: &str) -> Option<(&str, i32, i32)> {
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    let group = fields.next()?.parse().ok()?;
    Some((state, parent, group))
}
