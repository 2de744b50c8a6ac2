//! Lists of an organization, and of a cluster.

use crate::common::{Draft, Store, activate, close, commit, org, principal};
use session_core::{Session, SessionKey, Status};
use session_store::{Error, ListQuery, PAGE_READ_LIMIT, Scope};
use std::collections::{BTreeMap, BTreeSet};

fn all() -> ListQuery {
    ListQuery::of_org(org("acme"), 1000)
}

/// Every page of `query`, joined.
async fn walk(store: &Store, mut query: ListQuery) -> Vec<Session> {
    let mut sessions = Vec::new();
    loop {
        let page = store.list(&query).await.unwrap();
        assert!(page.sessions.len() <= query.page_size);
        sessions.extend(page.sessions);
        query.page_token = page.next;
        if query.page_token.is_none() {
            return sessions;
        }
    }
}

/// Sessions of several owners, clusters, teams and statuses, newest first.
async fn populate(store: &Store) -> Vec<Session> {
    let mut sessions = Vec::new();
    for i in 0..24 {
        let draft = Draft {
            owner: format!("sa|user-{}", i % 3),
            cluster: ["c1", "c2"][i % 2],
            team: [None, Some("data"), Some("ml:x")][i / 2 % 3],
            labels: BTreeMap::from([("n".to_owned(), (i % 5).to_string())]),
            ..Draft::default()
        };
        let mut session = draft.store(store).await;
        if i % 4 > 0 {
            session = commit(store, activate(&session)).await;
        }
        if i % 4 > 1 {
            session = commit(store, close(&session)).await;
        }
        sessions.push(session);
    }
    Draft::of("other", "sa|user-1").store(store).await;
    sessions.reverse();
    sessions
}

pub(crate) async fn every_filter_selects(store: Store) {
    let sessions = populate(&store).await;
    let owner = Some(principal("sa|user-1"));
    let cluster = Some("c2".parse().unwrap());
    let team = Some("ml:x".to_owned());
    let live = BTreeSet::from([Status::Pending, Status::Active]);
    let queries = [
        all(),
        ListQuery {
            statuses: BTreeSet::from([Status::Closed]),
            ..all()
        },
        ListQuery {
            statuses: live.clone(),
            ..all()
        },
        ListQuery {
            statuses: BTreeSet::from([Status::Failed]),
            ..all()
        },
        ListQuery {
            owner: owner.clone(),
            ..all()
        },
        ListQuery {
            owner: owner.clone(),
            statuses: live.clone(),
            ..all()
        },
        ListQuery {
            cluster: cluster.clone(),
            ..all()
        },
        ListQuery {
            team: team.clone(),
            ..all()
        },
        ListQuery {
            labels: BTreeMap::from([("n".to_owned(), "3".to_owned())]),
            ..all()
        },
        ListQuery {
            owner,
            cluster,
            team,
            statuses: live,
            ..all()
        },
        ListQuery {
            owner: Some(principal("sa|nobody")),
            ..all()
        },
    ];
    for query in queries {
        let expected: Vec<_> = sessions.iter().filter(|s| query.matches(s)).cloned().collect();
        assert_eq!(walk(&store, query.clone()).await, expected, "{query:?}");
        let paged = ListQuery {
            page_size: 3,
            ..query
        };
        assert_eq!(walk(&store, paged).await, expected);
    }
}

pub(crate) async fn scope_hides_what_a_caller_may_not_see(store: Store) {
    let sessions = populate(&store).await;
    let scope = |teams: &[&str]| Scope::OwnAndTeams {
        owner: principal("sa|user-1"),
        teams: teams.iter().map(|&team| team.to_owned()).collect(),
    };
    let live = BTreeSet::from([Status::Pending, Status::Active]);
    for scope in [scope(&[]), scope(&["data"]), scope(&["data", "ml:x"])] {
        for query in [
            ListQuery {
                scope: scope.clone(),
                ..all()
            },
            ListQuery {
                scope: scope.clone(),
                owner: Some(principal("sa|user-1")),
                ..all()
            },
            ListQuery {
                scope: scope.clone(),
                owner: Some(principal("sa|user-2")),
                ..all()
            },
            ListQuery {
                scope: scope.clone(),
                team: Some("data".to_owned()),
                ..all()
            },
            ListQuery {
                scope: scope.clone(),
                cluster: Some("c1".parse().unwrap()),
                ..all()
            },
            ListQuery {
                scope: scope.clone(),
                statuses: live.clone(),
                page_size: 2,
                ..all()
            },
        ] {
            let expected: Vec<_> = sessions
                .iter()
                .filter(|s| scope.matches(s) && query.matches(s))
                .cloned()
                .collect();
            assert_eq!(walk(&store, query.clone()).await, expected, "{query:?}");
        }
    }
}

pub(crate) async fn pages_continue_and_end(store: Store) {
    let mut keys = Vec::new();
    for _ in 0..10 {
        keys.insert(0, Draft::default().store(&store).await.id);
    }
    let mut query = ListQuery {
        page_size: 4,
        ..all()
    };
    let first = store.list(&query).await.unwrap();
    // Sessions that are created meanwhile are newer than the end of the page.
    let newest = Draft::default().store(&store).await.id;
    query.page_token = first.next;
    let second = store.list(&query).await.unwrap();
    query.page_token = second.next;
    let third = store.list(&query).await.unwrap();
    assert!(third.next.is_none());
    let ids: Vec<_> = [first.sessions, second.sessions, third.sessions]
        .concat()
        .into_iter()
        .map(|s| s.id)
        .collect();
    assert_eq!(ids, keys);
    let exact = store
        .list(&ListQuery {
            page_size: 11,
            ..all()
        })
        .await
        .unwrap();
    assert_eq!(exact.sessions[0].id, newest);
    assert!(
        exact.next.is_none(),
        "a page that ends with the last session is the last page"
    );
    let empty = store
        .list(&ListQuery {
            org: org("empty"),
            ..all()
        })
        .await
        .unwrap();
    assert!(empty.sessions.is_empty() && empty.next.is_none());
}

pub(crate) async fn a_page_reads_a_bounded_number_of_records(store: Store) {
    let wanted = BTreeMap::from([("rare".to_owned(), "yes".to_owned())]);
    let rare = Draft {
        labels: wanted.clone(),
        ..Draft::default()
    };
    let oldest = rare.store(&store).await;
    for _ in 0..PAGE_READ_LIMIT + 50 {
        Draft::default().store(&store).await;
    }
    let mut query = ListQuery {
        labels: wanted,
        page_size: 10,
        ..all()
    };
    let first = store.list(&query).await.unwrap();
    assert!(first.sessions.is_empty(), "short");
    assert!(first.next.is_some(), "and yet there is more");
    query.page_token = first.next;
    let second = store.list(&query).await.unwrap();
    assert_eq!(second.sessions, [oldest]);
    assert!(second.next.is_none());
}

pub(crate) async fn page_tokens_of_others_are_refused(store: Store) {
    for token in [
        "",
        "1.",
        "x",
        "s-01jdq8aaaaaaaaaaaaaa",
        "1.s-01jdq8",
        "2.s-01jdq8aaaaaaaaaaaaaa",
    ] {
        let query = ListQuery {
            page_token: Some(token.to_owned()),
            ..all()
        };
        assert!(
            matches!(store.list(&query).await, Err(Error::BadPageToken)),
            "{token}"
        );
    }
}

pub(crate) async fn clusters_list_their_live_sessions_in_order(store: Store) {
    // Names that a wrong separator would sort differently.
    let orgs = ["a", "a-b", "a0", "ab", "b", "acme", "local"];
    let mut expected = Vec::new();
    for i in 0..21 {
        let draft = Draft {
            org: orgs[i % orgs.len()],
            cluster: ["c1", "c2"][i % 2],
            ..Draft::default()
        };
        let session = draft.store(&store).await;
        if i % 5 == 0 {
            commit(&store, close(&session)).await;
        } else if i % 2 == 0 {
            expected.push(session.key());
        }
    }
    expected.sort();
    let cluster = "c1".parse().unwrap();
    let mut found: Vec<SessionKey> = Vec::new();
    loop {
        let next = store
            .list_live_on_cluster(&cluster, found.last(), 3)
            .await
            .unwrap();
        assert!(next.len() <= 3);
        if next.is_empty() {
            break;
        }
        found.extend(next);
    }
    assert_eq!(found, expected);
    assert_eq!(
        store.list_live_on_cluster(&cluster, None, 100).await.unwrap(),
        expected
    );
    let orgs: BTreeSet<_> = expected.iter().map(|key| key.org.clone()).collect();
    assert_eq!(store.list_orgs_on_cluster(&cluster).await.unwrap(), orgs);
    for key in expected.iter().filter(|key| key.org == expected[0].org) {
        let session = store.get(key).await.unwrap().unwrap();
        commit(&store, close(&session)).await;
    }
    let left = store.list_orgs_on_cluster(&cluster).await.unwrap();
    assert!(
        !left.contains(&expected[0].org) && left.len() + 1 == orgs.len(),
        "{left:?}"
    );

    let none = "none".parse().unwrap();
    assert!(
        store
            .list_live_on_cluster(&none, None, 10)
            .await
            .unwrap()
            .is_empty()
    );
    assert!(store.list_orgs_on_cluster(&none).await.unwrap().is_empty());
}

pub(crate) async fn sessions_are_counted_by_status(store: Store) {
    let sessions = populate(&store).await;
    let counts = store.count_by_status(&org("acme")).await.unwrap();
    for status in Status::ALL {
        let expected = sessions.iter().filter(|session| session.status() == status);
        assert_eq!(counts[&status], expected.count() as u64, "{status:?}");
    }
    let nobody = store.count_by_status(&org("nobody")).await.unwrap();
    assert!(nobody.values().all(|count| *count == 0));
}
