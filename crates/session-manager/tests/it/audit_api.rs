//! AuditService: who may read which records and sums, filters, pages and bounds.

use crate::clusters::{define, delete};
use crate::support::{Manager, WithKey, on, until};
use session_core::{Actor, AuditAction, AuditRecord, OrgId, Reason, SessionKey, Timestamp};
use session_proto::convert::timestamp;
use session_proto::error::reason_of;
use session_proto::v1::audit_service_client::AuditServiceClient;
use session_proto::v1::{self, ListAuditRecordsRequest, ListUsageRequest};
use session_store::prelude::*;
use session_store::{AuditSource, Report, UsageDelta};
use std::time::Duration;
use tonic::Status;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;

type Client = AuditServiceClient<InterceptedService<Channel, WithKey>>;

async fn page(
    mut client: Client,
    request: ListAuditRecordsRequest,
) -> Result<v1::ListAuditRecordsResponse, Status> {
    client
        .list_audit_records(request)
        .await
        .map(tonic::Response::into_inner)
}

/// All records of a request, and the number of its pages.
async fn all(client: &Client, mut request: ListAuditRecordsRequest) -> (Vec<v1::AuditRecord>, usize) {
    let (mut records, mut pages) = (Vec::new(), 0);
    loop {
        let answer = page(client.clone(), request.clone()).await.unwrap();
        records.extend(answer.records);
        pages += 1;
        if answer.next_page_token.is_empty() {
            return (records, pages);
        }
        request.page_token = answer.next_page_token;
    }
}

fn of_org(org: &str) -> ListAuditRecordsRequest {
    ListAuditRecordsRequest {
        org: org.to_owned(),
        ..Default::default()
    }
}

/// The records of the store, newest first.
async fn stored(manager: &Manager) -> Vec<AuditRecord> {
    let mut all = Vec::new();
    for partition in 0..OrgId::PARTITIONS {
        let records = manager
            .store
            .read_audit_before(AuditSource::Partition(partition), None, 100_000);
        all.extend(records.await.unwrap());
    }
    all.sort_unstable_by_key(|(place, _)| std::cmp::Reverse(*place));
    all.into_iter().map(|(_, record)| record).collect()
}

/// Reads of the trail by the manager so far.
fn reads(manager: &Manager) -> u64 {
    let calls = manager.recording.calls();
    calls.get("read_audit_before").copied().unwrap_or_default()
}

#[track_caller]
fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, reason: Reason) -> Status {
    let status = answer.unwrap_err();
    assert_eq!(reason_of(&status), Some(reason), "{status:?}");
    status
}

#[tokio::test]
async fn org_admins_read_their_own_trail_and_platform_admins_all() {
    let manager = Manager::start_with(
        "limits.failures_per_minute_per_address = 0\nlimits.calls_per_second_per_principal = 0",
    )
    .await;
    for _ in 0..4 {
        let key = manager.create("ada").await;
        manager.close("ada", &key).await;
    }
    manager.create_in("umbrella", "eve").await;
    let unknown = v1::ListSessionsRequest::default();
    manager
        .sessions_with("berth_sa_wrong")
        .list_sessions(unknown)
        .await
        .unwrap_err();
    until("the unknown caller is recorded", async || {
        stored(&manager).await.iter().any(|record| record.org.is_none())
    })
    .await;

    let count = |org: &str| {
        let org: OrgId = org.parse().unwrap();
        move |record: &&AuditRecord| record.org.as_ref() == Some(&org)
    };
    let trail = stored(&manager).await;
    let in_pages = ListAuditRecordsRequest {
        page_size: 3,
        ..Default::default()
    };
    let (own, pages) = all(&manager.audit("olga"), in_pages.clone()).await;
    assert_eq!(own.len(), trail.iter().filter(count("acme")).count());
    assert!(
        pages > 2 && own.iter().all(|record| record.org == "acme"),
        "{pages}"
    );
    let expected: Vec<_> = trail
        .iter()
        .filter(count("acme"))
        .map(session_proto::convert::audit_record)
        .collect();
    assert_eq!(own, expected, "the order of the trail, newest first");

    // All partitions at once, in the order of their writes.
    let (everything, _) = all(&manager.audit("pat"), in_pages).await;
    let expected: Vec<_> = trail.iter().map(session_proto::convert::audit_record).collect();
    assert_eq!(everything, expected);
    assert!(
        everything
            .iter()
            .any(|record| record.org.is_empty() && record.reason == "CALLER_UNKNOWN")
    );
    let (theirs, _) = all(&manager.audit("pat"), of_org("umbrella")).await;
    assert_eq!(theirs.len(), trail.iter().filter(count("umbrella")).count());
    assert!(!theirs.is_empty() && theirs.iter().all(|record| record.org == "umbrella"));

    for (who, org) in [
        ("olga", "umbrella"),
        ("ada", ""),
        ("ada", "acme"),
        ("eve", "acme"),
        ("tom", ""),
    ] {
        refused(page(manager.audit(who), of_org(org)).await, Reason::NotAuthorized);
    }
    manager.stop().await;
}

#[tokio::test]
async fn filters_select_and_wrong_ones_are_named() {
    let manager = Manager::start().await;
    let (first, second) = (manager.create("ada").await, manager.create("bob").await);
    manager.close("olga", &first).await;
    let olga = manager.audit("olga");
    let select = async |change: fn(&mut ListAuditRecordsRequest)| {
        let mut request = ListAuditRecordsRequest::default();
        change(&mut request);
        all(&olga, request).await.0
    };
    let by_bob = select(|request| request.principal = "sa|bob".to_owned()).await;
    assert!(by_bob.iter().all(|record| record.actor == "sa|bob"));
    assert_eq!(by_bob[0].session_id, second.id.to_string());
    let by_system = select(|request| request.principal = "system".to_owned()).await;
    assert!(by_system.iter().all(|record| record.actor == "system"));
    let created = select(|request| request.actions = vec!["session.created".to_owned()]).await;
    assert_eq!(created.len(), 2);
    let mut request = ListAuditRecordsRequest {
        session_id: first.id.to_string(),
        ..Default::default()
    };
    let (of_first, _) = all(&olga, request.clone()).await;
    assert!(
        of_first.len() > 1
            && of_first
                .iter()
                .all(|record| record.session_id == request.session_id)
    );
    assert_eq!(of_first[0].to, i32::from(v1::SessionStatus::Closed));
    // The end of the time is exclusive, its start is not.
    let newest = of_first[0].at;
    request.until = newest;
    let (older, _) = all(&olga, request.clone()).await;
    assert!(older.len() < of_first.len());
    (request.since, request.until) = (newest, None);
    let (newer, _) = all(&olga, request).await;
    assert_eq!(newer.len() + older.len(), of_first.len());

    let at = |second: u64| Some(timestamp(Timestamp::from_millis(second * 1000)));
    type Change = fn(&mut ListAuditRecordsRequest);
    let wrong: [(&str, Change); 7] = [
        ("org", |request| request.org = "no org".to_owned()),
        ("principal", |request| request.principal = "nobody".to_owned()),
        ("actions", |request| {
            request.actions = vec!["session.gone".to_owned()]
        }),
        ("actions", |request| {
            request.actions = vec!["org.created".to_owned(); 33]
        }),
        ("session_id", |request| request.session_id = "x".to_owned()),
        ("page_size", |request| request.page_size = 1001),
        ("page_token", |request| request.page_token = "1-2".to_owned()),
    ];
    for (field, change) in wrong {
        let mut request = ListAuditRecordsRequest::default();
        change(&mut request);
        let status = refused(page(olga.clone(), request).await, Reason::InvalidArgument);
        assert!(status.message().starts_with(field), "{field}: {status}");
    }
    let backwards = ListAuditRecordsRequest {
        since: at(7),
        until: at(7),
        ..Default::default()
    };
    let status = refused(page(olga.clone(), backwards).await, Reason::InvalidArgument);
    assert!(status.message().starts_with("until"), "{status}");
    manager.stop().await;
}

/// An org admin does not learn where platform admins work.
#[tokio::test]
async fn addresses_of_platform_admins_are_for_platform_admins() {
    let manager = Manager::start().await;
    manager.create("ada").await;
    let limits = v1::SetLimitsRequest {
        name: "acme".to_owned(),
        limits: Some(session_proto::convert::limits(&session_core::Limits::default())),
    };
    manager.orgs("pat").set_limits(limits).await.unwrap();
    let address = async |who: &str, action: AuditAction| {
        let request = ListAuditRecordsRequest {
            actions: vec![action.to_string()],
            org: "acme".to_owned(),
            ..Default::default()
        };
        all(&manager.audit(who), request).await.0[0].address.clone()
    };
    assert_eq!(address("olga", AuditAction::SessionCreated).await, "127.0.0.1");
    assert_eq!(address("olga", AuditAction::OrgUpdated).await, "");
    assert_eq!(address("pat", AuditAction::OrgUpdated).await, "127.0.0.1");

    // A forced deletion of a cluster closes the sessions of every organization.
    define(&manager).await;
    let session = manager.create_as("ada", on("lab")).await;
    delete(&manager, true).await.unwrap();
    manager.until_status(&session, v1::SessionStatus::Closed).await;
    let forced = async |who: &str| {
        let request = ListAuditRecordsRequest {
            session_id: session.id.to_string(),
            principal: "sa|pat".to_owned(),
            ..of_org("acme")
        };
        let (records, _) = all(&manager.audit(who), request).await;
        assert_eq!(records[0].reason, "CLUSTER_DESTROYED", "{who}: {records:?}");
        records[0].address.clone()
    };
    assert_eq!(forced("pat").await, "127.0.0.1");
    assert_eq!(forced("olga").await, "");
    manager.stop().await;
}

/// A record that states an early time, as those of late reports do.
fn record(org: &OrgId, n: usize) -> AuditRecord {
    let actor = Actor::Principal("sa|robot".parse().unwrap());
    AuditRecord::new(
        Timestamp::from_millis(1_700_000_000_000),
        AuditAction::CatalogTested,
    )
    .of_org(org)
    .by(actor)
    .on(&format!("c{n}"))
}

#[tokio::test]
async fn one_call_reads_a_bounded_number_of_records() {
    let manager = Manager::start().await;
    let acme: OrgId = "acme".parse().unwrap();
    for n in 0..5000 {
        manager.store.append_audit(&record(&acme, n)).await.unwrap();
    }
    let absent = ListAuditRecordsRequest {
        principal: "sa|nobody".to_owned(),
        ..of_org("acme")
    };
    for who in ["olga", "pat"] {
        let before = reads(&manager);
        let answer = page(manager.audit(who), absent.clone()).await.unwrap();
        assert!(answer.records.is_empty() && !answer.next_page_token.is_empty());
        assert_eq!(reads(&manager) - before, 16, "4096 records, 256 at a time");
    }
    let (none, pages) = all(&manager.audit("olga"), absent.clone()).await;
    assert_eq!((none.len(), pages), (0, 2));
    // All partitions: the empty ones are read too.
    let everywhere = ListAuditRecordsRequest {
        org: String::new(),
        ..absent
    };
    let (none, pages) = all(&manager.audit("pat"), everywhere).await;
    assert_eq!((none.len(), pages), (0, 2));
    // A page of the largest size arrives.
    let request = ListAuditRecordsRequest {
        page_size: 1000,
        ..of_org("acme")
    };
    let (records, pages) = all(&manager.audit("pat"), request.clone()).await;
    assert!((5..=7).contains(&pages), "{pages}");
    assert_eq!(
        records.iter().filter(|record| record.actor == "sa|robot").count(),
        5000
    );
    // Records that were written before the time end the search.
    let recent = ListAuditRecordsRequest {
        since: Some(timestamp(Timestamp::from_millis(1_800_000_000_000))),
        ..request
    };
    let (none, pages) = all(&manager.audit("pat"), recent).await;
    assert_eq!((none.len(), pages), (0, 1));
    manager.stop().await;
}

#[tokio::test]
async fn concurrent_reads_of_an_organization_are_limited() {
    let manager = Manager::start().await;
    manager.create("ada").await;
    *manager.recording.audit_delay.lock().unwrap() = Duration::from_secs(2);
    let calls = (0..6).map(|_| page(manager.audit("olga"), of_org("acme")));
    let answers = futures::future::join_all(calls).await;
    let (good, limited): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
    assert_eq!((good.len(), limited.len()), (2, 4));
    for answer in limited {
        let status = refused(answer, Reason::RateLimited);
        assert!(
            status.message().starts_with("2 calls of your organization"),
            "{status}"
        );
    }
    // The places are free again.
    page(manager.audit("olga"), of_org("acme")).await.unwrap();
    manager.stop().await;
}

/// Usage, which every member may read, takes no place of the trail; tenants take none of platform admins.
#[tokio::test]
async fn reads_of_usage_leave_room_for_the_trail_and_for_platform_admins() {
    let manager = Manager::start().await;
    manager.create("ada").await;
    *manager.recording.audit_delay.lock().unwrap() = Duration::from_secs(2);
    let read = async |who: &str| usage(&manager, who, ListUsageRequest::default()).await;
    let trail = async |who: &str| page(manager.audit(who), of_org("acme")).await;
    // The first two have the places of the organization when the others come.
    let later = async {
        until("two reads of usage run", async || {
            manager.recording.calls().get("list").copied() >= Some(2)
        })
        .await;
        let own = refused(read("ada").await, Reason::RateLimited);
        assert!(own.message().starts_with("One of your calls"), "{own}");
        let third = refused(read("olga").await, Reason::RateLimited);
        assert!(
            third.message().starts_with("2 calls of your organization"),
            "{third}"
        );
        tokio::join!(trail("olga"), read("pat"), trail("pat"), trail("pat"))
    };
    let (ada, bob, (of_olga, of_pat, pats_trail, pats_third)) = tokio::join!(read("ada"), read("bob"), later);
    ada.unwrap();
    bob.unwrap();
    of_olga.unwrap();
    of_pat.unwrap();
    pats_trail.unwrap();
    let third = refused(pats_third, Reason::RateLimited);
    assert!(third.message().starts_with("2 of your calls"), "{third}");
    manager.stop().await;
}

/// `since` is compared with the time of each record; the search ends by the times of their writes.
#[tokio::test]
async fn a_record_of_an_early_time_hides_no_other() {
    let manager = Manager::start().await;
    let acme: OrgId = "acme".parse().unwrap();
    let session = manager.create("ada").await;
    for n in 0..3 {
        manager.store.append_audit(&record(&acme, n)).await.unwrap();
    }
    let now = manager.store.now().await.unwrap();
    let request = ListAuditRecordsRequest {
        since: Some(timestamp(Timestamp::from_millis(now.as_millis() - 60_000))),
        ..Default::default()
    };
    for (who, org) in [("olga", "acme"), ("pat", "acme"), ("pat", "")] {
        let request = ListAuditRecordsRequest {
            org: org.to_owned(),
            ..request.clone()
        };
        let (records, _) = all(&manager.audit(who), request).await;
        let created = records.iter().find(|record| record.action == "session.created");
        assert_eq!(created.unwrap().session_id, session.id.to_string(), "{who} {org}");
        assert!(records.iter().all(|record| record.actor != "sa|robot"));
    }
    manager.stop().await;
}

/// The records of organizations in one partition are apart, and so are their places.
#[tokio::test]
async fn page_tokens_name_records_of_the_organization() {
    let manager = Manager::start().await;
    let acme: OrgId = "acme".parse().unwrap();
    let neighbour = (0..)
        .map(|n| format!("n{n}").parse::<OrgId>().unwrap())
        .find(|org| org.partition() == acme.partition())
        .unwrap();
    for n in 0..1000 {
        let org = if n % 10 == 0 { &acme } else { &neighbour };
        manager.store.append_audit(&record(org, n)).await.unwrap();
    }
    let partition = AuditSource::Partition(acme.partition());
    let stored = manager
        .store
        .read_audit_before(partition, None, 10_000)
        .await
        .unwrap();
    let own: Vec<String> = stored
        .iter()
        .filter(|(_, record)| record.org.as_ref() == Some(&acme))
        .map(|(place, _)| place.to_string())
        .collect();
    let mut request = ListAuditRecordsRequest {
        page_size: 7,
        ..Default::default()
    };
    let before = reads(&manager);
    let mut records = 0;
    loop {
        let answer = page(manager.audit("olga"), request.clone()).await.unwrap();
        records += answer.records.len();
        if answer.next_page_token.is_empty() {
            break;
        }
        assert!(
            own.contains(&answer.next_page_token),
            "{}",
            answer.next_page_token
        );
        request.page_token = answer.next_page_token;
    }
    assert_eq!(records, own.len());
    assert!(own.len() >= 100);
    assert_eq!(
        reads(&manager) - before,
        own.len().div_ceil(7) as u64,
        "no read of the neighbour's"
    );
    // A place before all records.
    request.page_token = "0-0-15".to_owned();
    for (who, org) in [("olga", "acme"), ("pat", "")] {
        let request = ListAuditRecordsRequest {
            org: org.to_owned(),
            ..request.clone()
        };
        let answer = page(manager.audit(who), request).await.unwrap();
        assert!(
            answer.records.is_empty() && answer.next_page_token.is_empty(),
            "{who}"
        );
    }
    manager.stop().await;
}

async fn used(manager: &Manager, key: &SessionKey, rpcs: u64) {
    let totals = session_core::Totals {
        rpcs,
        bytes_in: 10 * rpcs,
        bytes_out: 100 * rpcs,
        open_stream_millis: 1000 * rpcs,
    };
    let report = Report {
        proxy: "p-1".parse().unwrap(),
        generation: 1,
        open_calls: Some(0),
        last_activity_at: None,
        operations: Vec::new(),
        usage_delta: Some(UsageDelta { name: 1, totals }),
        token_uses: Vec::new(),
    };
    manager.store.apply_report(key, &report).await.unwrap();
}

async fn usage(
    manager: &Manager,
    who: &str,
    request: ListUsageRequest,
) -> Result<v1::ListUsageResponse, Status> {
    let answer = manager.audit(who).list_usage(request).await?;
    Ok(answer.into_inner())
}

/// Owner, cluster, sessions, live sessions and calls of each row.
fn rows(answer: &v1::ListUsageResponse) -> Vec<(&str, &str, u32, u32, u64)> {
    let row = |row: &'_ v1::UsageRow| row.usage.unwrap().rpcs;
    let rows = answer.rows.iter();
    rows.map(|each| {
        (
            each.owner.as_str(),
            each.cluster.as_str(),
            each.sessions,
            each.live_sessions,
            row(each),
        )
    })
    .collect()
}

#[tokio::test]
async fn use_is_summed_over_what_the_caller_may_see() {
    let manager = Manager::start().await;
    for (who, rpcs) in [("ada", 3), ("ada", 4), ("bob", 5)] {
        let key = manager.create(who).await;
        used(&manager, &key, rpcs).await;
        if rpcs == 4 {
            manager.close(who, &key).await;
        }
    }
    let theirs = manager.create_in("umbrella", "eve").await;
    used(&manager, &theirs, 7).await;

    let own = usage(&manager, "ada", ListUsageRequest::default()).await.unwrap();
    assert_eq!(rows(&own), [("sa|ada", "c", 2, 1, 7)]);
    let used = own.rows[0].usage.unwrap();
    assert_eq!(
        (used.bytes_in, used.bytes_out, used.open_stream_seconds),
        (70, 700, 7)
    );
    let acme = [("sa|ada", "c", 2, 1, 7), ("sa|bob", "c", 1, 1, 5)];
    let of = |org: &str| ListUsageRequest {
        org: org.to_owned(),
        ..Default::default()
    };
    let summed = usage(&manager, "olga", of("")).await.unwrap();
    assert_eq!(
        (rows(&summed), summed.next_page_token.as_str()),
        (acme.to_vec(), "")
    );
    assert_eq!(rows(&usage(&manager, "pat", of("acme")).await.unwrap()), acme);
    let umbrella = usage(&manager, "pat", of("umbrella")).await.unwrap();
    assert_eq!(rows(&umbrella), [("sa|eve", "c", 1, 1, 7)]);
    let of_bob = ListUsageRequest {
        owner: "sa|bob".to_owned(),
        cluster: "c".to_owned(),
        ..Default::default()
    };
    assert_eq!(
        rows(&usage(&manager, "olga", of_bob.clone()).await.unwrap()),
        acme[1..]
    );
    // A colleague's sessions do not count for a member.
    assert!(usage(&manager, "ada", of_bob).await.unwrap().rows.is_empty());

    refused(usage(&manager, "eve", of("acme")).await, Reason::NotAuthorized);
    refused(
        usage(&manager, "olga", of("umbrella")).await,
        Reason::NotAuthorized,
    );
    let wrong = ListUsageRequest {
        page_token: "x".to_owned(),
        ..Default::default()
    };
    let status = refused(usage(&manager, "olga", wrong).await, Reason::InvalidArgument);
    assert!(status.message().starts_with("page_token"), "{status}");
    manager.stop().await;
}
