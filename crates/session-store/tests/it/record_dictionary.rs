//! Creates the compression dictionary of records in Redis from the histories of many
//! sessions. Run it with `--ignored` after a change of the record that should be in a
//! dictionary, and give the file the next number. The present dictionary stays
//! unchanged, because records were written with it.

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use session_core::machine::{self, Cause, Event, NewSession, Observation, Transition};
use session_core::route::Secret;
use session_core::{
    Activity, Actor, ChangeReason, Engine, IdlePolicy, Route, Session, SessionId, SessionPolicy, Timestamp,
    TokenId,
};
use std::collections::BTreeMap;
use std::time::Duration;

/// Larger ones save little and cost time.
const BYTES: usize = 4096;
const SESSIONS: usize = 4000;
const MINUTE: u64 = 60;

struct Life {
    random: StdRng,
    samples: Vec<Vec<u8>>,
}

#[test]
#[ignore = "writes a file for a new form of records; takes some seconds"]
fn make_a_dictionary() {
    let mut life = Life {
        random: StdRng::seed_from_u64(1),
        samples: Vec::new(),
    };
    for _ in 0..SESSIONS {
        life.live();
    }
    let dictionary = zstd::dict::from_samples(&life.samples, BYTES).unwrap();
    let file = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("new.dictionary");
    std::fs::write(&file, dictionary).unwrap();
    println!("{} samples, {}", life.samples.len(), file.display());
}

impl Life {
    fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.random.random_range(0..of.len())].clone()
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.random.random_range(0..100) < percent
    }

    fn word(&mut self) -> String {
        let length = self.random.random_range(3..10);
        (0..length)
            .map(|_| char::from(self.random.random_range(b'a'..=b'z')))
            .collect()
    }

    fn owner(&mut self) -> String {
        let number: u64 = self.random.random();
        match self.random.random_range(0..4) {
            0 => format!("sa|{}-{}", self.word(), number % 1000),
            1 => format!("{}|{}.{}@example.com", self.word(), self.word(), self.word()),
            2 => format!("idp|{:08x}-{:04x}", number & 0xffff_ffff, number >> 48),
            _ => format!("idp|{}", self.word()),
        }
    }

    fn route(&mut self, engine: Engine, dedicated: bool) -> Route {
        let number: u32 = self.random.random();
        let [a, b, c, _] = number.to_be_bytes();
        let endpoint = match self.random.random_range(0..3) {
            0 => format!("127.0.0.1:{}", 30_000 + number % 30_000),
            1 => format!("10.{a}.{b}.{c}:15002"),
            _ => format!("{}.example:15002", self.word()),
        };
        let secret: u128 = self.random.random();
        Route {
            endpoint,
            tls_server_name: None,
            credential: (engine == Engine::Spark).then(|| Secret::new(format!("{secret:032x}"))),
            engine,
            engine_version: self
                .pick(&["0.7.2", "4.0.1", "4.1.3", "4.2.0", "3.5.9"])
                .to_owned(),
            dedicated,
            host: None,
        }
    }

    fn sample(&mut self, change: &Transition) {
        self.samples.push(serde_json::to_vec(&change.session).unwrap());
        self.samples.push(serde_json::to_vec(&change.record).unwrap());
    }

    fn live(&mut self) {
        let seconds = self.random.random_range(0..10_000_000_000_u64);
        let mut now = Timestamp::from_millis(1_764_000_000_000 + seconds);
        let dedicated = self.chance(70);
        let engine = self.pick(&[Engine::Sail, Engine::Spark]);
        let on_idle = self.pick(&[IdlePolicy::Release, IdlePolicy::Keep]);
        let owner = self.owner();
        let org = self.word();
        let name = self
            .chance(50)
            .then(|| format!("{} {}", self.word(), self.word()));
        let team = self.chance(25).then(|| self.word());
        let labels = if self.chance(40) {
            BTreeMap::from([(self.word(), self.word())])
        } else {
            BTreeMap::new()
        };
        let catalog = self.chance(20).then(|| self.word().parse().unwrap());
        let idle_minutes = self.pick(&[15, 15, 15, 6, 30, 60, 480]);
        let policy = SessionPolicy {
            idle_timeout: Duration::from_secs(idle_minutes * MINUTE),
            close_after_idle: Duration::from_secs(self.pick(&[60, 60, 60, 0, 1440]) * MINUTE),
            max_lifetime: Duration::from_secs(self.pick(&[24, 24, 24, 8, 168]) * 60 * MINUTE),
            provisioning_deadline: Duration::from_secs(self.pick(&[120, 120, 120, 300])),
            on_idle,
            wake: Default::default(),
            dedicated,
        };
        let new = NewSession {
            id: SessionId::generate(now, self.random.random()),
            org: org.parse().unwrap(),
            owner: owner.parse().unwrap(),
            name,
            team,
            labels,
            cluster: self.pick(&["local", "spark", "sail", "main"]).parse().unwrap(),
            catalog,
            profile: None,
            policy,
        };
        let created = machine::create(new, now);
        self.sample(&created);
        let mut session = created.session;
        for _ in 0..self.random.random_range(1..12) {
            now = now.after(Duration::from_millis(self.random.random_range(50..30_000)));
            let Some(change) = self.next(&session, engine, dedicated, &mut now) else {
                continue;
            };
            self.sample(&change);
            session = change.session;
            if session.status().is_terminal() {
                break;
            }
        }
    }

    fn next(
        &mut self,
        session: &Session,
        engine: Engine,
        dedicated: bool,
        now: &mut Timestamp,
    ) -> Option<Transition> {
        let owner = Actor::Principal(session.owner.clone());
        let event = match self.random.random_range(0..12) {
            0..=3 => {
                let ready = Observation::Ready {
                    route: self.route(engine, dedicated),
                };
                return machine::step(session, Some(&ready), Activity::Unknown, *now).transition;
            }
            4 | 5 => {
                let silence =
                    session.policy.idle_timeout + Duration::from_millis(self.random.random_range(0..5000));
                *now = now.after(silence);
                let quiet = Activity::Quiet {
                    last_activity_at: session.active_at.unwrap_or_default(),
                };
                return machine::step(session, None, quiet, *now).transition;
            }
            6 => {
                let failed = Observation::Failed {
                    cause: Cause {
                        text: format!("the engine ended with code {}", self.random.random_range(1..3)),
                        detail: self.word(),
                    },
                    permanent: self.chance(20),
                };
                return machine::step(session, Some(&failed), Activity::Unknown, *now).transition;
            }
            7 => {
                return machine::step(session, Some(&Observation::Missing), Activity::Unknown, *now)
                    .transition;
            }
            8 => Event::Update {
                name: Some(Some(self.word())),
                labels: None,
            },
            9 => Event::Wake,
            10 if self.chance(50) => Event::RevokeToken {
                id: TokenId::generate(*now, self.random.random()),
                until: now.after(Duration::from_secs(3600)),
            },
            _ => Event::Close {
                reason: ChangeReason::CloseRequested,
            },
        };
        machine::apply(session, &event, &owner, *now).ok().flatten()
    }
}
