//! Metrics as plain atomics, rendered in the Prometheus text format.
//!
//! A program keeps its families in one struct, made from a [`Registry`] at
//! start. Label values are enums ([`Label`]), so the number of series is fixed
//! and all of them exist, at zero, from the first scrape on. The exception are
//! gauges about what operators define, such as clusters: [`Series`].

use parking_lot::Mutex;
use std::fmt::Write as _;
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

/// An enum of label values; see [`crate::labels!`].
pub trait Label: Copy + Send + Sync + 'static {
    /// The label's name.
    const NAME: &'static str;
    /// Every value, in declaration order.
    const ALL: &'static [Self];
    /// The value's text.
    fn as_str(self) -> &'static str;
    /// Index in [`Self::ALL`].
    fn index(self) -> usize;
}

/// Declares an enum of label values:
/// `labels! { /// Docs. pub enum Side("side") { Client => "client", Backend => "backend" } }`
#[macro_export]
macro_rules! labels {
    ($(#[$doc:meta])* $vis:vis enum $name:ident($label:literal) { $($(#[$vdoc:meta])* $variant:ident => $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        $vis enum $name { $($(#[$vdoc])* $variant),+ }

        impl $crate::metrics::Label for $name {
            const NAME: &'static str = $label;
            const ALL: &'static [Self] = &[$(Self::$variant),+];

            fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }

            fn index(self) -> usize {
                self as usize
            }
        }
    };
}

/// A combination of zero to three [`Label`]s.
pub trait LabelSet: Copy + Send + Sync + 'static {
    /// Number of series.
    const COUNT: usize;
    /// Index of this combination.
    fn place(self) -> usize;
    /// Labels of the combination with this index.
    fn write(place: usize, out: &mut Vec<(&'static str, &'static str)>);
}

impl LabelSet for () {
    const COUNT: usize = 1;

    fn place(self) -> usize {
        0
    }

    fn write(_: usize, _: &mut Vec<(&'static str, &'static str)>) {}
}

impl<A: Label> LabelSet for A {
    const COUNT: usize = A::ALL.len();

    fn place(self) -> usize {
        self.index()
    }

    fn write(place: usize, out: &mut Vec<(&'static str, &'static str)>) {
        out.push((A::NAME, A::ALL[place].as_str()));
    }
}

impl<A: Label, B: Label> LabelSet for (A, B) {
    const COUNT: usize = A::ALL.len() * B::ALL.len();

    fn place(self) -> usize {
        self.0.index() * B::ALL.len() + self.1.index()
    }

    fn write(place: usize, out: &mut Vec<(&'static str, &'static str)>) {
        A::write(place / B::ALL.len(), out);
        B::write(place % B::ALL.len(), out);
    }
}

impl<A: Label, B: Label, C: Label> LabelSet for (A, B, C) {
    const COUNT: usize = A::ALL.len() * B::ALL.len() * C::ALL.len();

    fn place(self) -> usize {
        (self.0, self.1).place() * C::ALL.len() + self.2.index()
    }

    fn write(place: usize, out: &mut Vec<(&'static str, &'static str)>) {
        <(A, B)>::write(place / C::ALL.len(), out);
        C::write(place % C::ALL.len(), out);
    }
}

/// Number of shards of a metric. A thread records in one of them, so that the workers
/// of a program do not wait for each other's cache lines.
const SHARDS: usize = 8;

/// A value in each shard.
#[derive(Debug, Default)]
struct Sharded<T>([CacheLine<T>; SHARDS]);

/// A value that shares its cache line with no other.
#[derive(Debug, Default)]
#[repr(align(64))]
struct CacheLine<T>(T);

impl<T> Sharded<T> {
    fn new(make: impl Fn() -> T) -> Self {
        Self(std::array::from_fn(|_| CacheLine(make())))
    }

    /// The value in the shard of this thread.
    fn of_thread(&self) -> &T {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static SHARD: usize = THREADS.fetch_add(1, Relaxed) % SHARDS;
        }
        // During the end of a thread there is no thread-local value.
        &self.0[SHARD.try_with(|shard| *shard).unwrap_or_default()].0
    }

    fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|line| &line.0)
    }
}

impl Sharded<AtomicU64> {
    fn sum(&self) -> u64 {
        self.iter().map(|shard| shard.load(Relaxed)).sum()
    }
}

/// A monotonic counter.
#[derive(Debug, Default)]
pub struct Counter(Sharded<AtomicU64>);

impl Counter {
    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.of_thread().fetch_add(n, Relaxed);
    }

    /// The count.
    pub fn get(&self) -> u64 {
        self.0.sum()
    }
}

/// A gauge.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    /// Sets the value.
    pub fn set(&self, value: i64) {
        self.0.store(value, Relaxed);
    }

    /// Adds `delta`, which may be negative.
    pub fn add(&self, delta: i64) {
        self.0.fetch_add(delta, Relaxed);
    }

    /// The value.
    pub fn get(&self) -> i64 {
        self.0.load(Relaxed)
    }

    /// Adds one until the guard is dropped.
    pub fn guard(self: &Arc<Self>) -> GaugeGuard {
        self.add(1);
        GaugeGuard(Arc::clone(self))
    }
}

/// A duration that goes up and down; shown in seconds.
#[derive(Debug, Default)]
pub struct DurationGauge(AtomicU64);

impl DurationGauge {
    /// Now it is `value`.
    pub fn set(&self, value: Duration) {
        let nanos = u64::try_from(value.as_nanos()).unwrap_or(u64::MAX);
        self.0.store(nanos, Relaxed);
    }

    /// The duration.
    pub fn get(&self) -> Duration {
        Duration::from_nanos(self.0.load(Relaxed))
    }
}

/// Takes one off its gauge when dropped.
#[derive(Debug)]
pub struct GaugeGuard(Arc<Gauge>);

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.0.add(-1);
    }
}

/// Bucket bounds in seconds, from a tenth of a millisecond to minutes.
pub const SECONDS: &[f64] = &[
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
    30.0, 60.0, 300.0,
];

/// A histogram of durations with fixed buckets, observed in seconds.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [f64],
    shards: Sharded<Observations>,
}

#[derive(Debug)]
struct Observations {
    /// By bucket, not cumulative; the last one has no bound.
    counts: Box<[AtomicU64]>,
    nanos: AtomicU64,
}

impl Histogram {
    fn new(bounds: &'static [f64]) -> Self {
        let shards = Sharded::new(|| Observations {
            counts: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(),
            nanos: AtomicU64::new(0),
        });
        Self { bounds, shards }
    }

    /// Records an observation.
    pub fn observe(&self, value: Duration) {
        let seconds = value.as_secs_f64();
        let place = self.bounds.partition_point(|bound| *bound < seconds);
        let nanos = u64::try_from(value.as_nanos()).unwrap_or(u64::MAX);
        let shard = self.shards.of_thread();
        shard.counts[place].fetch_add(1, Relaxed);
        shard.nanos.fetch_add(nanos, Relaxed);
    }

    /// Number of observations.
    pub fn count(&self) -> u64 {
        (0..=self.bounds.len()).map(|place| self.bucket(place)).sum()
    }

    /// Number of observations in a bucket.
    fn bucket(&self, place: usize) -> u64 {
        let shards = self.shards.iter();
        shards.map(|shard| shard.counts[place].load(Relaxed)).sum()
    }

    fn total(&self) -> Duration {
        let nanos = self.shards.iter().map(|shard| shard.nanos.load(Relaxed));
        Duration::from_nanos(nanos.fold(0, u64::wrapping_add))
    }
}

/// A metric family: one series per value of `L`.
#[derive(Debug)]
pub struct Family<L, M> {
    series: Box<[Arc<M>]>,
    labels: PhantomData<fn(L)>,
}

impl<L: LabelSet, M> Family<L, M> {
    fn new(make: impl Fn() -> M) -> Self {
        Self {
            series: (0..L::COUNT).map(|_| Arc::new(make())).collect(),
            labels: PhantomData,
        }
    }

    /// The series with these label values.
    pub fn at(&self, labels: L) -> &Arc<M> {
        &self.series[labels.place()]
    }
}

impl<M> Deref for Family<(), M> {
    type Target = Arc<M>;

    fn deref(&self) -> &Arc<M> {
        &self.series[0]
    }
}

/// Gauges whose label values are names of what operators define. A series exists
/// while what it is about does. At most [`MAX_SERIES`] are kept.
#[derive(Debug, Default)]
pub struct Series(Mutex<Vec<(Vec<String>, f64)>>);

/// Most series of one [`Series`].
pub const MAX_SERIES: usize = 2000;

impl Series {
    /// Replaces all series: for each the values of the labels, in their order at the
    /// registration, and the value.
    pub fn set(&self, mut series: Vec<(Vec<String>, f64)>) {
        series.truncate(MAX_SERIES);
        *self.0.lock() = series;
    }
}

type Show = Box<dyn Fn(&mut String) + Send + Sync>;

/// All metric families of a program.
#[derive(Clone, Default)]
pub struct Registry {
    shown: Arc<Mutex<Vec<(&'static str, Show)>>>,
}

impl Registry {
    /// An empty registry.
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers counters; the name should end in `_total`.
    pub fn counter<L: LabelSet>(&self, name: &'static str, help: &'static str) -> Arc<Family<L, Counter>> {
        self.family(
            name,
            help,
            "counter",
            Counter::default,
            move |counter, labels, out| {
                sample(out, name, "", labels, None, counter.get() as f64);
            },
        )
    }

    /// Registers gauges.
    pub fn gauge<L: LabelSet>(&self, name: &'static str, help: &'static str) -> Arc<Family<L, Gauge>> {
        self.family(name, help, "gauge", Gauge::default, move |gauge, labels, out| {
            sample(out, name, "", labels, None, gauge.get() as f64);
        })
    }

    /// A family of gauges of durations; the name should end in `_seconds`.
    pub fn duration_gauge<L: LabelSet>(
        &self,
        name: &'static str,
        help: &'static str,
    ) -> Arc<Family<L, DurationGauge>> {
        let make = DurationGauge::default;
        self.family(name, help, "gauge", make, move |gauge, labels, out| {
            sample(out, name, "", labels, None, gauge.get().as_secs_f64());
        })
    }

    /// A family of histograms; the name should end in `_seconds`.
    pub fn histogram<L: LabelSet>(
        &self,
        name: &'static str,
        help: &'static str,
        bounds: &'static [f64],
    ) -> Arc<Family<L, Histogram>> {
        let make = move || Histogram::new(bounds);
        self.family(name, help, "histogram", make, move |histogram, labels, out| {
            let mut count = 0;
            for place in 0..=bounds.len() {
                count += histogram.bucket(place);
                let bound = bounds.get(place).copied().unwrap_or(f64::INFINITY);
                sample(out, name, "_bucket", labels, Some(bound), count as f64);
            }
            let sum = histogram.total().as_secs_f64();
            sample(out, name, "_sum", labels, None, sum);
            sample(out, name, "_count", labels, None, count as f64);
        })
    }

    /// Registers a gauge whose value is computed at each scrape.
    pub fn gauge_fn(
        &self,
        name: &'static str,
        help: &'static str,
        read: impl Fn() -> f64 + Send + Sync + 'static,
    ) {
        self.show(
            name,
            help,
            "gauge",
            Box::new(move |out| sample(out, name, "", &[], None, read())),
        );
    }

    /// Registers gauges with these labels, whose values are names of any kind.
    pub fn series(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &'static [&'static str],
    ) -> Arc<Series> {
        let series = Arc::new(Series::default());
        let shown = Arc::clone(&series);
        let each = move |out: &mut String| {
            for (values, value) in shown.0.lock().iter() {
                let values: Vec<String> = values.iter().map(|text| escaped(text)).collect();
                let pairs: Vec<(&'static str, &str)> = labels
                    .iter()
                    .copied()
                    .zip(values.iter().map(String::as_str))
                    .collect();
                sample(out, name, "", &pairs, None, *value);
            }
        };
        self.show(name, help, "gauge", Box::new(each));
        series
    }

    /// All metrics in the Prometheus text format, sorted by name.
    pub fn render(&self) -> String {
        let mut out = String::with_capacity(16 * 1024);
        for (_, show) in self.shown.lock().iter() {
            show(&mut out);
        }
        out
    }

    fn family<L: LabelSet, M: Send + Sync + 'static>(
        &self,
        name: &'static str,
        help: &'static str,
        kind: &'static str,
        make: impl Fn() -> M,
        write: impl Fn(&M, &[(&'static str, &'static str)], &mut String) + Send + Sync + 'static,
    ) -> Arc<Family<L, M>> {
        let family = Arc::new(Family::<L, M>::new(make));
        let shown = Arc::clone(&family);
        let each = move |out: &mut String| {
            for (place, series) in shown.series.iter().enumerate() {
                let mut labels = Vec::with_capacity(3);
                L::write(place, &mut labels);
                write(series, &labels, out);
            }
        };
        self.show(name, help, kind, Box::new(each));
        family
    }

    /// A duplicate name is a programming error; the second family is not
    /// rendered.
    fn show(&self, name: &'static str, help: &'static str, kind: &'static str, body: Show) {
        let mut shown = self.shown.lock();
        match shown.binary_search_by_key(&name, |(known, _)| *known) {
            Ok(_) => debug_assert!(false, "metric {name} is registered twice"),
            Err(place) => {
                let head = format!("# HELP {name} {help}\n# TYPE {name} {kind}\n");
                let whole = move |out: &mut String| {
                    out.push_str(&head);
                    body(out);
                };
                shown.insert(place, (name, Box::new(whole)));
            }
        }
    }
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Registry")
    }
}

/// A label value as the text format writes it.
fn escaped(text: &str) -> String {
    text.replace('\\', r"\\")
        .replace('"', "\\\"")
        .replace('\n', r"\n")
}

fn sample(
    out: &mut String,
    name: &str,
    suffix: &str,
    labels: &[(&'static str, &str)],
    le: Option<f64>,
    value: f64,
) {
    let _ = write!(out, "{name}{suffix}");
    let mut opening = '{';
    for (label, text) in labels {
        let _ = write!(out, "{opening}{label}=\"{text}\"");
        opening = ',';
    }
    match le {
        Some(f64::INFINITY) => {
            let _ = write!(out, "{opening}le=\"+Inf\"");
            opening = ',';
        }
        Some(bound) => {
            let _ = write!(out, "{opening}le=\"{bound}\"");
            opening = ',';
        }
        None => {}
    }
    let closing = if opening == ',' { "}" } else { "" };
    let _ = writeln!(out, "{closing} {value}");
}

#[cfg(test)]
mod tests {
    use super::*;

    labels! {
        enum Side("side") { Client => "client", Backend => "backend" }
    }
    labels! {
        enum Outcome("outcome") { Good => "good", Bad => "bad" }
    }

    #[test]
    fn records_of_all_threads_are_added_up() {
        let (counter, histogram) = (Counter::default(), Histogram::new(&[1.0]));
        std::thread::scope(|scope| {
            for _ in 0..2 * SHARDS {
                scope.spawn(|| {
                    counter.add(3);
                    histogram.observe(Duration::from_millis(500));
                    histogram.observe(Duration::from_secs(2));
                });
            }
        });
        let threads = 2 * SHARDS as u64;
        assert_eq!(counter.get(), 3 * threads);
        assert_eq!((histogram.bucket(0), histogram.bucket(1)), (threads, threads));
        assert_eq!(histogram.total(), Duration::from_millis(2500 * threads));
    }

    #[test]
    fn series_of_names_come_and_go() {
        let registry = Registry::new();
        let pods = registry.series("pods", "Pods.", &["cluster", "state"]);
        let head = "# HELP pods Pods.\n# TYPE pods gauge\n";
        assert_eq!(registry.render(), head);
        let labels = |cluster: &str| vec![cluster.to_owned(), "ready".to_owned()];
        pods.set(vec![(labels("a"), 2.0), (labels("\"\\\n"), 1.0)]);
        assert_eq!(
            registry.render(),
            format!(
                "{head}pods{{cluster=\"a\",state=\"ready\"}} 2\n\
                 pods{{cluster=\"\\\"\\\\\\n\",state=\"ready\"}} 1\n"
            )
        );
        pods.set(vec![(labels("a"), 3.0); MAX_SERIES + 1]);
        assert_eq!(registry.render().lines().count(), MAX_SERIES + 2);
        pods.set(Vec::new());
        assert_eq!(registry.render(), head);
    }

    #[test]
    fn every_series_is_there_at_zero_and_counts() {
        let registry = Registry::new();
        let calls = registry.counter::<(Side, Outcome)>("calls_total", "Calls.");
        let open = registry.gauge::<()>("open_calls", "Open calls.");
        registry.gauge_fn("age_seconds", "Age.", || 1.5);
        calls.at((Side::Backend, Outcome::Good)).add(3);
        let guard = open.guard();
        assert_eq!(
            registry.render(),
            "# HELP age_seconds Age.\n# TYPE age_seconds gauge\nage_seconds 1.5\n\
             # HELP calls_total Calls.\n# TYPE calls_total counter\n\
             calls_total{side=\"client\",outcome=\"good\"} 0\n\
             calls_total{side=\"client\",outcome=\"bad\"} 0\n\
             calls_total{side=\"backend\",outcome=\"good\"} 3\n\
             calls_total{side=\"backend\",outcome=\"bad\"} 0\n\
             # HELP open_calls Open calls.\n# TYPE open_calls gauge\nopen_calls 1\n"
        );
        drop(guard);
        assert_eq!(open.get(), 0);
    }

    #[test]
    fn durations_are_shown_in_seconds() {
        let registry = Registry::new();
        let lag = registry.duration_gauge::<()>("lag_seconds", "Lag.");
        lag.set(Duration::from_millis(1250));
        let text = registry.render();
        assert!(
            text.ends_with("# TYPE lag_seconds gauge\nlag_seconds 1.25\n"),
            "{text}"
        );
    }

    #[test]
    fn histograms_are_cumulative_and_bounds_are_inclusive() {
        let registry = Registry::new();
        let wait = registry.histogram::<Side>("wait_seconds", "Wait.", &[0.1, 1.0]);
        for millis in [100, 101, 5000] {
            wait.at(Side::Client).observe(Duration::from_millis(millis));
        }
        let text = registry.render();
        for line in [
            "wait_seconds_bucket{side=\"client\",le=\"0.1\"} 1",
            "wait_seconds_bucket{side=\"client\",le=\"1\"} 2",
            "wait_seconds_bucket{side=\"client\",le=\"+Inf\"} 3",
            "wait_seconds_sum{side=\"client\"} 5.201",
            "wait_seconds_count{side=\"client\"} 3",
            "wait_seconds_count{side=\"backend\"} 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} not in\n{text}");
        }
    }
}
