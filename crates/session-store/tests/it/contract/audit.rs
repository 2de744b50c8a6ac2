//! The audit trail and the state of signing keys.

use crate::common::{Draft, FAR, Store, close, commit, principal, report, revoke, token, touch};
use futures::{StreamExt, TryStreamExt, stream};
use session_core::{
    Actor, AuditAction, AuditOutcome, AuditRecord, ChangeReason, OrgId, SessionKey, Status, TokenUse,
};
use session_store::audit_trail::MAX_AUDIT_RECORDS;
use session_store::{AuditPlace, AuditSource, Error, ReportOutcome};

/// Records of one session, oldest first.
async fn of(store: &Store, key: &SessionKey) -> Vec<AuditRecord> {
    let all = store.read_audit(key.org.partition(), "", 1000).await.unwrap();
    all.into_iter()
        .map(|audited| audited.record)
        .filter(|record| record.session.as_ref() == Some(&key.id))
        .collect()
}

pub(crate) async fn every_change_is_in_the_trail_once(store: Store) {
    let session = Draft::default().store(&store).await;
    let key = session.key();
    let renamed = touch(&session);
    let session = commit(&store, renamed.clone()).await;
    // A lost race writes no record.
    assert!(matches!(store.commit(renamed).await, Err(Error::Conflict)));
    let session = commit(&store, revoke(&session)).await;
    let session = commit(&store, close(&session)).await;

    let trail = of(&store, &key).await;
    let events = store.events(&key).await.unwrap();
    let expected: Vec<_> = events
        .iter()
        .map(|event| AuditRecord::of_change(&key, event))
        .collect();
    assert_eq!(trail, expected);
    assert_eq!(trail[0].action, AuditAction::SessionCreated);
    assert_eq!((trail[0].from, trail[0].to), (None, Some(Status::Pending)));
    let last = &trail[3];
    assert_eq!(last.action, AuditAction::SessionChanged);
    assert_eq!(last.reason, ChangeReason::CloseRequested.as_str());
    assert_eq!(
        (last.from, last.to),
        (Some(Status::Pending), Some(Status::Closed))
    );
    assert_eq!(last.version, Some(session.version));
    assert_eq!(last.actor, Some(Actor::System));
}

pub(crate) async fn what_an_idle_clock_decides_is_in_the_trail_too(store: Store) {
    let session = Draft::default().store(&store).await;
    let decided = touch(&session);
    let last_activity = session_core::Timestamp::ZERO;
    store.commit_if_idle(decided, last_activity).await.unwrap();
    assert_eq!(of(&store, &session.key()).await.len(), 2);
}

pub(crate) async fn tokens_are_in_the_trail_when_recorded_and_first_used(store: Store) {
    let session = Draft::default().store(&store).await;
    let key = session.key();
    let issued = token(&store, &session, FAR).await;
    for _ in 0..2 {
        store.record_token(&key, issued.clone(), 2).await.unwrap();
    }
    // A rejected token is not issued.
    let other = token(&store, &session, FAR).await;
    store.record_token(&key, other, 1).await.unwrap_err();
    let now = store.now().await.unwrap();
    let mut used = report("p-1", 1);
    used.token_uses = vec![TokenUse {
        id: issued.id.clone(),
        first: now,
        last: now,
    }];
    for _ in 0..2 {
        let taken = store.apply_report(&key, &used).await.unwrap();
        assert_eq!(taken, ReportOutcome::Live(Status::Pending));
    }

    let trail = of(&store, &key).await;
    let told: Vec<_> = trail.iter().map(|record| record.action).collect();
    assert_eq!(
        told,
        [
            AuditAction::SessionCreated,
            AuditAction::TokenIssued,
            AuditAction::TokenFirstUsed
        ]
    );
    assert!(
        trail[1..]
            .iter()
            .all(|record| record.token.as_ref() == Some(&issued.id))
    );
    assert_eq!(trail[1].actor, Some(Actor::Principal(issued.subject)));
    assert_eq!(trail[1].object, issued.key_id);
}

pub(crate) async fn other_records_are_read_in_pages(store: Store) {
    let now = store.now().await.unwrap();
    let written: Vec<_> = (0..7)
        .map(|n| {
            AuditRecord::new(now, AuditAction::ClusterUpdated)
                .by(Actor::Principal(principal("sa|pat")))
                .of_org(&"pages".parse().unwrap())
                .on(&format!("c{n}"))
        })
        .collect();
    for record in &written {
        store.append_audit(record).await.unwrap();
    }
    let partition = written[0].partition();
    let (mut read, mut after) = (Vec::new(), String::new());
    loop {
        let page = store.read_audit(partition, &after, 3).await.unwrap();
        assert!(page.len() <= 3);
        let Some(last) = page.last() else { break };
        after = last.position.clone();
        read.extend(page.into_iter().map(|audited| audited.record));
    }
    assert_eq!(read, written);
    // Records without an organization are in the trail too.
    let nobody = AuditRecord::new(now, AuditAction::CallerRefused).denied("CALLER_UNKNOWN");
    store.append_audit(&nobody).await.unwrap();
    let all = store.read_audit(0, "", 1000).await.unwrap();
    let found = all
        .into_iter()
        .map(|audited| audited.record)
        .find(|record| *record == nobody);
    assert_eq!(found.map(|record| record.outcome), Some(AuditOutcome::Denied));
}

pub(crate) async fn the_trail_is_read_backwards_over_partitions(store: Store) {
    let now = store.now().await.unwrap();
    let partitions: Vec<u8> = vec![3, 5, 12];
    let org_in = |partition: u8| {
        let mut names = (0..).map(|n| format!("o{n}").parse::<OrgId>().unwrap());
        names.find(|org| org.partition() == partition).unwrap()
    };
    let orgs: Vec<OrgId> = partitions.iter().map(|partition| org_in(*partition)).collect();
    let record = |n: usize| {
        AuditRecord::new(now, AuditAction::CatalogTested)
            .of_org(&orgs[n % 3])
            .on(&format!("c{n}"))
    };
    for n in 0..12 {
        store.append_audit(&record(n)).await.unwrap();
    }
    let (mut read, mut before) = (Vec::new(), None);
    loop {
        // The newest of the partitions, one at a time.
        let mut newest = Vec::new();
        for partition in &partitions {
            let found = store
                .read_audit_before(AuditSource::Partition(*partition), before, 1)
                .await
                .unwrap();
            assert!(found.len() <= 1);
            newest.extend(found);
        }
        let Some((place, record)) = newest.into_iter().max_by_key(|(place, _)| *place) else {
            break;
        };
        assert!(before.is_none_or(|before| place < before));
        assert_eq!(place.to_string().parse::<AuditPlace>().unwrap(), place);
        before = Some(place);
        read.push(record);
    }
    // Records of one millisecond have no order across partitions.
    for org in &orgs {
        let of_org = |all: Vec<AuditRecord>| -> Vec<AuditRecord> {
            all.into_iter()
                .filter(|record| record.org.as_ref() == Some(org))
                .collect()
        };
        let expected: Vec<_> = (0..12).rev().map(record).collect();
        assert_eq!(of_org(read.clone()), of_org(expected));
    }
    assert_eq!(read.len(), 12);
    assert_eq!(
        store
            .read_audit_before(AuditSource::Partition(partitions[0]), None, 2)
            .await
            .unwrap()
            .len(),
        2
    );
}

/// Neither records nor places of another organization in the partition.
pub(crate) async fn the_trail_of_an_organization_is_read_by_itself(store: Store) {
    let now = store.now().await.unwrap();
    let same: Vec<OrgId> = (0..)
        .map(|n| format!("o{n}").parse::<OrgId>().unwrap())
        .filter(|org| org.partition() == 9)
        .take(2)
        .collect();
    let record = |n: usize| {
        AuditRecord::new(now, AuditAction::CatalogTested)
            .of_org(&same[usize::from(!n.is_multiple_of(3))])
            .on(&format!("c{n}"))
    };
    for n in 0..900 {
        store.append_audit(&record(n)).await.unwrap();
    }
    let source = AuditSource::Org(same[0].clone());
    let (mut read, mut before) = (Vec::new(), None);
    loop {
        let part = store.read_audit_before(source.clone(), before, 70).await.unwrap();
        assert!(part.len() <= 70);
        let Some((place, _)) = part.last() else { break };
        assert!(before.is_none_or(|before| *place < before));
        assert!(place.written_at() >= now);
        before = Some(*place);
        read.extend(part.into_iter().map(|(_, record)| record));
    }
    let expected: Vec<_> = (0..900).rev().filter(|n| n % 3 == 0).map(record).collect();
    assert_eq!(read, expected);

    // Places before all records, also the first possible one.
    for place in ["0-0-9", "0-0-15", "1-0-0"] {
        for source in [source.clone(), AuditSource::Partition(9)] {
            let before: AuditPlace = place.parse().unwrap();
            let none = store.read_audit_before(source, Some(before), 10).await.unwrap();
            assert!(none.is_empty(), "{place}");
        }
    }
    let absent: OrgId = "nothing-here".parse().unwrap();
    let none = store.read_audit_before(AuditSource::Org(absent), None, 10).await;
    assert!(none.unwrap().is_empty());
}

/// An organization that floods a full partition replaces its own records only.
pub(crate) async fn one_organization_cannot_turn_over_the_trail_of_another(store: Store) {
    let now = store.now().await.unwrap();
    let same: Vec<OrgId> = (0..)
        .map(|n| format!("o{n}").parse::<OrgId>().unwrap())
        .filter(|org| org.partition() == 7)
        .take(2)
        .collect();
    let record = |org: &OrgId, n: usize| {
        AuditRecord::new(now, AuditAction::ClusterUpdated)
            .of_org(org)
            .on(&format!("c{n}"))
    };
    for n in 0..5 {
        store.append_audit(&record(&same[0], n)).await.unwrap();
    }
    stream::iter(0..MAX_AUDIT_RECORDS + 100)
        .map(Ok::<_, Error>)
        .try_for_each_concurrent(64, |n| {
            let (store, record) = (&store, record(&same[1], n));
            async move { store.append_audit(&record).await }
        })
        .await
        .unwrap();
    let all = store.read_audit(7, "", MAX_AUDIT_RECORDS * 2).await.unwrap();
    assert_eq!(all.len(), MAX_AUDIT_RECORDS);
    let (quiet, loud): (Vec<_>, Vec<_>) = all
        .into_iter()
        .map(|audited| audited.record)
        .partition(|record| record.org.as_ref() == Some(&same[0]));
    assert_eq!(quiet, (0..5).map(|n| record(&same[0], n)).collect::<Vec<_>>());
    assert!(!loud.contains(&record(&same[1], 0)), "its own oldest are gone");

    // An organization below its share replaces the oldest record of all.
    store.append_audit(&record(&same[0], 5)).await.unwrap();
    let all = store.read_audit(7, "", MAX_AUDIT_RECORDS * 2).await.unwrap();
    assert_eq!(all.len(), MAX_AUDIT_RECORDS);
    assert_eq!(all[0].record, record(&same[0], 1));
    assert_eq!(all[MAX_AUDIT_RECORDS - 1].record, record(&same[0], 5));
}

pub(crate) async fn the_export_position_is_stored(store: Store) {
    assert_eq!(store.audit_export_position(3).await.unwrap(), "");
    store.set_audit_export_position(3, "7-1").await.unwrap();
    store.set_audit_export_position(4, "9-0").await.unwrap();
    assert_eq!(store.audit_export_position(3).await.unwrap(), "7-1");
}

pub(crate) async fn keys_keep_the_start_of_their_publication(store: Store) {
    let ids = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>();
    let first = store.report_signing_keys(&ids(&["a"]), Some("a")).await.unwrap();
    assert_eq!(first.keys.len(), 1);
    assert_eq!(first.keys[0].published_since, first.now);
    assert_eq!(first.keys[0].signed_at, Some(first.now));
    let both = store.report_signing_keys(&ids(&["b", "a"]), None).await.unwrap();
    let named: Vec<_> = both.keys.iter().map(|key| key.id.as_str()).collect();
    assert_eq!(named, ["b", "a"]);
    assert_eq!(both.keys[0].signed_at, None);
    assert_eq!(both.keys[1].published_since, first.now);
    assert_eq!(both.keys[1].signed_at, Some(first.now));
    // An issuer that reports fewer keys removes none.
    store.report_signing_keys(&[], None).await.unwrap();
    let again = store
        .report_signing_keys(&ids(&["b", "a"]), Some("b"))
        .await
        .unwrap();
    assert_eq!(again.keys[0].published_since, both.now);
    assert_eq!(again.keys[0].signed_at, Some(again.now));
}

pub(crate) async fn the_number_of_stored_keys_is_limited(store: Store) {
    let many: Vec<_> = (0..100).map(|n| format!("k{n}")).collect();
    let known = store.report_signing_keys(&many, None).await.unwrap();
    assert_eq!(known.keys.len(), session_store::signing_keys::MAX_SIGNING_KEYS);
}
