//! All keys of the store are built in this module.
//!
//! Data that one step writes is in one hash slot: all keys of an organization have the
//! tag `{pNN}` of its partition, all global keys the tag `{g}`. The tag is the first
//! brace of a key, so braces in names cannot change it. Names that users choose are
//! last, after parts that cannot contain a colon, so keys are unique.

use crate::spark_bindings::SparkSession;
use crate::{Error, Kind};
use session_core::id::fnv1a;
use session_core::{ClusterName, OrgId, PrincipalId, Session, SessionKey, Status};

/// All partitions.
pub(in crate::redis) fn partitions() -> impl Iterator<Item = u8> {
    0..OrgId::PARTITIONS
}

/// Keys that are on one server: those of a partition, or the global ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::redis) enum Slot {
    /// Keys of the organizations of a partition.
    Partition(u8),
    /// Keys of no organization.
    Global,
}

impl Slot {
    /// All slots, in the order of [`Slot::index`].
    pub(in crate::redis) fn all() -> impl Iterator<Item = Self> {
        partitions().map(Self::Partition).chain([Self::Global])
    }

    /// Index among all slots.
    pub(in crate::redis) fn index(self) -> usize {
        usize::from(match self {
            Self::Partition(partition) => partition,
            Self::Global => OrgId::PARTITIONS,
        })
    }

    /// Hash tag of its keys.
    pub(in crate::redis) fn tag(self) -> String {
        match self {
            Self::Partition(partition) => format!("{{p{partition:02}}}"),
            Self::Global => "{g}".to_owned(),
        }
    }

    /// The slot of a key; `None` for a foreign key.
    pub(in crate::redis) fn of_key(key: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(key).ok()?;
        let (_, rest) = text.split_once('{')?;
        let (tag, _) = rest.split_once("}:")?;
        if tag == "g" {
            return Some(Self::Global);
        }
        let partition = tag.strip_prefix('p')?.parse().ok()?;
        (partition < OrgId::PARTITIONS).then_some(Self::Partition(partition))
    }
}

/// Number of hashes for the holders of Spark sessions: with a million ids each is still
/// small enough for the compact encoding of Redis. Fixed, because stored keys contain
/// it.
const HOLDER_SHARES: u64 = 16_384;

/// The two parts of a session index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::redis) enum IndexPart {
    /// Live sessions.
    Live,
    /// Ended sessions.
    Past,
}

impl IndexPart {
    /// The part with the sessions in `status`.
    pub(in crate::redis) const fn of(status: Status) -> Self {
        if status.is_terminal() {
            Self::Past
        } else {
            Self::Live
        }
    }

    const fn of_owner(self) -> &'static str {
        match self {
            Self::Live => "owner:",
            Self::Past => "past-owner:",
        }
    }

    const fn of_cluster(self) -> &'static str {
        match self {
            Self::Live => "cluster:",
            Self::Past => "past-cluster:",
        }
    }
}

/// Separator of organization and id in index members. It sorts before every character
/// of either, so members sort as [`SessionKey`]s do.
const MEMBER_SEPARATOR: char = ',';

/// A session as a member of an index over several organizations.
pub(in crate::redis) fn member(key: &SessionKey) -> String {
    format!("{}{MEMBER_SEPARATOR}{}", key.org, key.id)
}

/// Parses a result of [`member`].
pub(in crate::redis) fn parse_member(member: &str) -> Result<SessionKey, Error> {
    let parsed = member.split_once(MEMBER_SEPARATOR).and_then(|(org, id)| {
        Some(SessionKey {
            org: org.parse().ok()?,
            id: id.parse().ok()?,
        })
    });
    parsed.ok_or_else(|| Error::Corrupt(format!("{member:?} names no session")))
}

/// Parses members with their values; returns those that name a session, and the
/// dangling ones.
pub(in crate::redis) fn parse_members<T>(
    members: impl IntoIterator<Item = (String, T)>,
) -> (Vec<(SessionKey, T)>, Vec<String>) {
    let (mut named, mut dangling) = (Vec::new(), Vec::new());
    for (member, value) in members {
        match parse_member(&member) {
            Ok(key) => named.push((key, value)),
            Err(_) => dangling.push(member),
        }
    }
    (named, dangling)
}

/// An owner as a member of an index over several organizations.
pub(in crate::redis) fn owner_member(org: &OrgId, owner: &PrincipalId) -> String {
    format!("{org}{MEMBER_SEPARATOR}{owner}")
}

/// Parses a result of [`owner_member`].
pub(in crate::redis) fn parse_owner(member: &str) -> Option<(OrgId, PrincipalId)> {
    let (org, owner) = member.split_once(MEMBER_SEPARATOR)?;
    Some((org.parse().ok()?, owner.parse().ok()?))
}

/// Builds keys under one prefix.
#[derive(Debug, Clone)]
pub(in crate::redis) struct Keys {
    /// Prefix of the keys of each slot, in the order of [`Slot::index`].
    prefixes: Vec<String>,
}

impl Keys {
    /// Keys under `prefix`; `None` if it contains braces, which would become the hash
    /// tag.
    pub(in crate::redis) fn new(prefix: &str) -> Option<Self> {
        (!prefix.contains(['{', '}'])).then(|| Self {
            prefixes: Slot::all()
                .map(|slot| format!("{prefix}{}:", slot.tag()))
                .collect(),
        })
    }

    /// Allocates once, because a change needs about 25 keys.
    fn in_slot(&self, slot: Slot, rest: &[&str]) -> String {
        let prefix = self.prefixes.get(slot.index()).map_or("", String::as_str);
        let mut key = String::with_capacity(prefix.len() + rest.iter().map(|part| part.len()).sum::<usize>());
        key.push_str(prefix);
        key.extend(rest.iter().copied());
        key
    }

    fn in_partition(&self, partition: u8, what: &str, name: &str) -> String {
        self.in_slot(Slot::Partition(partition), &[what, name])
    }

    fn of_org(&self, org: &OrgId, what: &str, name: &str) -> String {
        let slot = Slot::Partition(org.partition());
        self.in_slot(slot, &["org:", org.as_str(), ":", what, name])
    }

    fn of_session(&self, what: &str, key: &SessionKey) -> String {
        let slot = Slot::Partition(key.org.partition());
        self.in_slot(slot, &[what, ":", key.org.as_str(), ":", key.id.as_str()])
    }

    fn global(&self, what: &str, name: &str) -> String {
        self.in_slot(Slot::Global, &[what, name])
    }

    /// String: record, usage, history and tokens of a session; see `record.lua`.
    pub(in crate::redis) fn record(&self, key: &SessionKey) -> String {
        self.of_session("session", key)
    }

    /// String: tokens of an ended session; expires with the last of them.
    pub(in crate::redis) fn tokens(&self, key: &SessionKey) -> String {
        self.of_session("tokens", key)
    }

    /// Hash: busy leases of a session by proxy; expires with the last of them.
    pub(in crate::redis) fn leases(&self, key: &SessionKey) -> String {
        self.of_session("leases", key)
    }

    /// Sorted set: sessions by due time.
    pub(in crate::redis) fn due(&self, partition: u8) -> String {
        self.in_partition(partition, "due", "")
    }

    /// Stream: all changes of the partition.
    pub(in crate::redis) fn changes(&self, partition: u8) -> String {
        self.in_partition(partition, "changes", "")
    }

    /// Stream: audit trail of the partition. Its scripts store lists beside it: this
    /// name, a colon and the organization.
    pub(in crate::redis) fn audit(&self, partition: u8) -> String {
        self.in_partition(partition, "audit", "")
    }

    /// Sorted set by name: organizations with live sessions on a cluster.
    pub(in crate::redis) fn orgs_on_cluster(&self, partition: u8, cluster: &ClusterName) -> String {
        self.in_partition(partition, "cluster:", cluster.as_str())
    }

    /// Sorted set by id: sessions in a status; every session is in one.
    pub(in crate::redis) fn status(&self, org: &OrgId, status: Status) -> String {
        self.of_org(org, "status:", status.as_str())
    }

    /// Sorted set by id: live sessions of an owner, whose number the quota limits, or
    /// the ended ones.
    pub(in crate::redis) fn owner(&self, org: &OrgId, owner: &PrincipalId, part: IndexPart) -> String {
        self.of_org(org, part.of_owner(), owner.as_str())
    }

    /// Sorted set by id: live or ended sessions on a cluster.
    pub(in crate::redis) fn cluster(&self, org: &OrgId, cluster: &ClusterName, part: IndexPart) -> String {
        self.of_org(org, part.of_cluster(), cluster.as_str())
    }

    /// Sorted set by id: sessions of a team.
    pub(in crate::redis) fn team(&self, org: &OrgId, team: &str) -> String {
        self.of_org(org, "team:", team)
    }

    /// Sorted set: ended sessions by end time.
    pub(in crate::redis) fn ended(&self, org: &OrgId) -> String {
        self.of_org(org, "ended", "")
    }

    /// Sorted set: ended sessions of an owner by end time.
    pub(in crate::redis) fn ended_of_owner(&self, org: &OrgId, owner: &PrincipalId) -> String {
        self.of_org(org, "ended-owner:", owner.as_str())
    }

    /// Sorted set: organizations by the end time of their first ended session.
    pub(in crate::redis) fn ended_since(&self, partition: u8) -> String {
        self.in_partition(partition, "ended-since", "")
    }

    /// Sorted set: organizations by number of ended sessions.
    pub(in crate::redis) fn ended_by_org(&self, partition: u8) -> String {
        self.in_partition(partition, "ended-by-org", "")
    }

    /// Sorted set: [`owner_member`]s by number of ended sessions.
    pub(in crate::redis) fn ended_by_owner(&self, partition: u8) -> String {
        self.in_partition(partition, "ended-by-owner", "")
    }

    /// The keys of `ended.lua`, in its order.
    pub(in crate::redis) fn ended_of(&self, session: &Session) -> [String; 5] {
        let (org, partition) = (&session.org, session.org.partition());
        [
            self.ended(org),
            self.ended_of_owner(org, &session.owner),
            self.ended_since(partition),
            self.ended_by_org(partition),
            self.ended_by_owner(partition),
        ]
    }

    /// String: a minute and the number of an owner's creates in it; expires with the
    /// minute.
    pub(in crate::redis) fn creates(&self, org: &OrgId, owner: &PrincipalId) -> String {
        self.of_org(org, "creates:", owner.as_str())
    }

    /// Hash: the session that a request created. Owner and id are free text, so the
    /// length of the owner separates them.
    pub(in crate::redis) fn request(&self, org: &OrgId, owner: &PrincipalId, id: &str) -> String {
        self.of_org(org, "request:", &format!("{}:{owner}:{id}", owner.as_str().len()))
    }

    /// Set: sessions that are assigned to a server.
    pub(in crate::redis) fn server_holders(&self, server: &str) -> String {
        self.global("place:", server)
    }

    /// Set: servers to which a session is assigned.
    pub(in crate::redis) fn placements(&self, holder: &SessionKey) -> String {
        self.global("places-of:", &member(holder))
    }

    /// Hash: holders of the Spark sessions in one share of all ids.
    pub(in crate::redis) fn holders(&self, spark: &SparkSession) -> String {
        let share = fnv1a(spark.id.as_str().bytes()) % HOLDER_SHARES;
        self.global("holders:", &share.to_string())
    }

    /// String: exists while a Spark session id is reserved; expires.
    pub(in crate::redis) fn reserved_id(&self, spark: &SparkSession) -> String {
        self.global("kept-id:", &format!("{}:{}", spark.id, spark.server))
    }

    /// String: bindings of a session, one per line; see `bindings.lua`.
    pub(in crate::redis) fn bindings(&self, holder: &SessionKey) -> String {
        self.global("bindings:", &member(holder))
    }

    /// String: generation up to which new bindings of a session are rejected; expires.
    pub(in crate::redis) fn binding_seal(&self, holder: &SessionKey) -> String {
        self.global("binding-seal:", &member(holder))
    }

    /// Hash: stored Spark sessions of a session by id; expires.
    pub(in crate::redis) fn spark_sessions(&self, key: &SessionKey) -> String {
        self.of_session("spark", key)
    }

    /// String: holder of a lease; expires with it.
    pub(in crate::redis) fn lease(&self, name: &str) -> String {
        self.global("lease:", name)
    }

    /// String: last fencing number of all leases.
    pub(in crate::redis) fn lease_fence(&self) -> String {
        self.global("lease-fence", "")
    }

    /// Hash: definitions of a kind by name, in one hash per organization for those that
    /// organizations create.
    pub(in crate::redis) fn definitions(&self, kind: Kind, org: Option<&str>) -> String {
        let kind = kind_name(kind);
        match org {
            None => self.global("definitions:", kind),
            Some(org) => self.global("definitions:", &format!("{kind}/{org}")),
        }
    }

    /// Hash: bytes of each organization's definitions of a kind.
    pub(in crate::redis) fn definition_bytes(&self, kind: Kind) -> String {
        self.global("definition-bytes:", kind_name(kind))
    }

    /// Sorted set: proxies by their last report.
    pub(in crate::redis) fn proxies(&self) -> String {
        self.global("proxies", "")
    }

    /// Hash: sequence number of each proxy's last report.
    pub(in crate::redis) fn proxy_sequences(&self) -> String {
        self.global("proxy-sequences", "")
    }

    /// Hash: export position of each partition's audit trail.
    pub(in crate::redis) fn audit_exported(&self) -> String {
        self.global("audit-exported", "")
    }

    /// Hash: state of the signing keys.
    pub(in crate::redis) fn signing_keys(&self) -> String {
        self.global("signing-keys", "")
    }

    /// Hash: the store epoch and its lineage.
    pub(in crate::redis) fn epoch(&self) -> String {
        self.global("store-epoch", "")
    }

    /// String: a counter that every manager increments every second.
    pub(in crate::redis) fn heartbeat(&self, slot: Slot) -> String {
        self.in_slot(slot, &["pulse"])
    }
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Cluster => "cluster",
        Kind::Catalog => "catalog",
        Kind::Org => "org",
        Kind::Disabled => "disabled",
        Kind::InstallationId => "install",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use session_core::{SessionId, Timestamp};
    use std::collections::BTreeSet;

    fn key(org: &str, n: u64) -> SessionKey {
        SessionKey {
            org: org.parse().unwrap(),
            id: SessionId::generate(Timestamp::from_millis(n), n),
        }
    }

    /// The part between the first brace and the next closing one, as Redis Cluster reads it.
    fn hash_tag(key: &str) -> &str {
        let (_, rest) = key.split_once('{').unwrap();
        rest.split_once('}').unwrap().0
    }

    fn organization_keys(keys: &Keys, session: &SessionKey) -> Vec<String> {
        let org = &session.org;
        let owner: PrincipalId = "idp|{x}:a".parse().unwrap();
        let cluster: ClusterName = "c".parse().unwrap();
        let mut all = vec![
            keys.record(session),
            keys.tokens(session),
            keys.leases(session),
            keys.due(org.partition()),
            keys.changes(org.partition()),
            keys.audit(org.partition()),
            keys.orgs_on_cluster(org.partition(), &cluster),
            keys.owner(org, &owner, IndexPart::Live),
            keys.owner(org, &owner, IndexPart::Past),
            keys.cluster(org, &cluster, IndexPart::Live),
            keys.cluster(org, &cluster, IndexPart::Past),
            keys.team(org, "{team}"),
            keys.creates(org, &owner),
            keys.request(org, &owner, "a:b"),
            keys.request(org, &"idp|{x}:a:a".parse().unwrap(), "b"),
            keys.ended(org),
            keys.ended_of_owner(org, &owner),
            keys.ended_since(org.partition()),
            keys.ended_by_org(org.partition()),
            keys.ended_by_owner(org.partition()),
            keys.heartbeat(Slot::Partition(org.partition())),
            keys.spark_sessions(session),
        ];
        all.extend(Status::ALL.map(|status| keys.status(org, status)));
        all
    }

    fn global_keys(keys: &Keys, session: &SessionKey) -> Vec<String> {
        let spark = SparkSession {
            server: "{p13}:1".to_owned(),
            id: "00000000-0000-0000-0000-000000000000".parse().unwrap(),
        };
        let kinds = [
            Kind::Cluster,
            Kind::Catalog,
            Kind::Org,
            Kind::Disabled,
            Kind::InstallationId,
        ];
        let mut all = kinds.map(|kind| keys.definitions(kind, None)).to_vec();
        all.extend([
            keys.definitions(Kind::Catalog, Some("{p13}")),
            keys.definition_bytes(Kind::Catalog),
            keys.server_holders("{p13}"),
            keys.placements(session),
            keys.holders(&spark),
            keys.reserved_id(&spark),
            keys.bindings(session),
            keys.binding_seal(session),
            keys.lease("{p13}"),
            keys.lease_fence(),
            keys.epoch(),
            keys.proxies(),
            keys.proxy_sequences(),
            keys.heartbeat(Slot::Global),
            keys.audit_exported(),
            keys.signing_keys(),
        ]);
        all
    }

    #[test]
    fn keys_of_an_organization_share_a_slot_and_none_is_used_twice() {
        let keys = Keys::new("berth:").unwrap();
        let session = key("acme", 1);
        let partition = session.org.partition();
        let tag = format!("p{partition:02}");
        let of_org = organization_keys(&keys, &session);
        for key in &of_org {
            assert_eq!(hash_tag(key), tag, "{key}");
            assert_eq!(Slot::of_key(key.as_bytes()), Some(Slot::Partition(partition)));
        }
        let global = global_keys(&keys, &session);
        for key in &global {
            assert_eq!(hash_tag(key), "g", "{key}");
            assert_eq!(Slot::of_key(key.as_bytes()), Some(Slot::Global));
        }
        for foreign in ["", "{\"g\":1}", "{p99}:x", "{p1", "{x}:y"] {
            assert_eq!(Slot::of_key(foreign.as_bytes()), None, "{foreign}");
        }
        let all = [of_org, global].concat();
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
        assert_eq!(
            keys.record(&session),
            format!("berth:{{{tag}}}:session:acme:{}", session.id)
        );
    }

    #[test]
    fn shares_of_spark_sessions_never_move() {
        let keys = Keys::new("").unwrap();
        let share = |id: &str| {
            let spark = SparkSession {
                server: "a:1".to_owned(),
                id: id.parse().unwrap(),
            };
            keys.holders(&spark)
        };
        assert_eq!(share("00000000-0000-0000-0000-000000000000"), "{g}:holders:6641");
        assert_eq!(share("0b5c2e9e-1f3a-4c6d-8e7f-0123456789ab"), "{g}:holders:3896");
    }

    #[test]
    fn a_prefix_cannot_move_the_slot() {
        assert!(Keys::new("a{b}").is_none());
        assert_eq!(Keys::new("").unwrap().epoch(), "{g}:store-epoch");
    }

    #[test]
    fn members_sort_as_keys_and_parse_back() {
        let mut sessions = [
            key("a-b", 1),
            key("a", 2),
            key("a", 1),
            key("ab", 1),
            key("a0", 3),
        ]
        .to_vec();
        let mut members: Vec<_> = sessions.iter().map(member).collect();
        sessions.sort();
        members.sort();
        let parsed: Vec<_> = members.iter().map(|m| parse_member(m).unwrap()).collect();
        assert_eq!(parsed, sessions);
        assert!(parse_member("a/s-1").is_err());
    }
}
