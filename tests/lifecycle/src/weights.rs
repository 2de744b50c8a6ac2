//! What the memory of a session is made of: every key of the store by its kind,
//! weighed by Redis itself.

use crate::stage::Stage;
use anyhow::{Context as _, Result, ensure};
use tokio::process::Command;

/// Weighs up to so many keys of a kind, and takes the others to be like them.
const SAMPLES: &str = "2000";

/// Counts keys by the word after their hash tag, or the two words of an
/// organization's index, and adds up their weights.
const WEIGH: &str = "
local kinds, cursor, most = {}, '0', tonumber(ARGV[1])
repeat
  local page = redis.call('SCAN', cursor, 'COUNT', 10000)
  cursor = page[1]
  for _, key in ipairs(page[2]) do
    local name = string.match(key, '}:org:[^:]+:([%a-]+)')
    name = name and 'index ' .. name or string.match(key, '}:([%a-]+)') or 'other'
    local kind = kinds[name] or { number = 0, weighed = 0, bytes = 0 }
    kinds[name] = kind
    kind.number = kind.number + 1
    if kind.weighed < most then
      kind.weighed = kind.weighed + 1
      kind.bytes = kind.bytes + (redis.call('MEMORY', 'USAGE', key, 'SAMPLES', 0) or 0)
    end
  end
until cursor == '0'
local answer = {}
for name, kind in pairs(kinds) do
  answer[#answer + 1] = string.format('%s\\t%.0f', name, kind.bytes / kind.weighed * kind.number)
end
return answer
";

/// Bytes of each kind of key, the heaviest first.
pub(crate) async fn by_kind(stage: &Stage) -> Result<Vec<(String, f64)>> {
    let address = stage.redis.address();
    let answer = Command::new("redis-cli")
        .args(["-h", &address.ip().to_string(), "-p", &address.port().to_string()])
        .args(["EVAL", WEIGH, "0", SAMPLES])
        .output()
        .await
        .context("redis-cli")?;
    let text = String::from_utf8(answer.stdout)?;
    let mut kinds = Vec::new();
    for line in text.lines() {
        let (name, bytes) = line
            .split_once('\t')
            .with_context(|| format!("Redis answered {line:?}"))?;
        kinds.push((name.to_owned(), bytes.parse()?));
    }
    ensure!(!kinds.is_empty(), "Redis weighs no key");
    kinds.sort_by(|a: &(String, f64), b| b.1.total_cmp(&a.1));
    Ok(kinds)
}
