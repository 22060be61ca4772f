//! What steps cost the host, read off the engine's metrics.

/// What the host does for a step, as the metrics name it.
const PARTS: [&str; 3] = ["plan", "launch", "fold"];

/// A histogram: sum in seconds, and cumulative counts under their bounds in seconds.
struct Times {
    sum: f64,
    counts: Vec<(f64, u64)>,
}

/// The histograms of all parts at one moment.
pub(crate) struct HostWork(Vec<Times>);

impl HostWork {
    /// From a page of metrics.
    pub(crate) fn read(metrics: &str) -> Self {
        let value = |line: &str| line.rsplit(' ').next().and_then(|v| v.parse::<f64>().ok()).expect("a number");
        let of = |part: &&str| {
            let name = format!("yinian:step_{part}_seconds");
            let lines = |end: &str| {
                let start = format!("{name}_{end}{{");
                metrics.lines().filter(move |line| line.starts_with(&start))
            };
            let bound = |line: &str| line.split("le=\"").nth(1).and_then(|b| b.split('"').next()).map(str::to_owned);
            let counts = lines("bucket").map(|line| {
                let bound = bound(line).and_then(|b| b.parse().ok()).unwrap_or(f64::INFINITY);
                (bound, value(line) as u64)
            });
            Times { sum: lines("sum").map(value).sum(), counts: counts.collect() }
        };
        Self(PARTS.iter().map(of).collect())
    }

    /// Mean, bound of the median and bound of the longest, in microseconds, of the steps since `before`.
    pub(crate) fn since(&self, before: &Self) -> String {
        let parts = PARTS.iter().zip(before.0.iter().zip(&self.0)).map(|(part, (before, after))| {
            let counts: Vec<_> = after.counts.iter().zip(&before.counts).map(|(a, b)| (a.0, a.1 - b.1)).collect();
            let all = counts.last().map_or(0, |c| c.1);
            let bound = |n: u64| 1e6 * counts.iter().find(|c| c.1 >= n).map_or(f64::INFINITY, |c| c.0);
            let mean = 1e6 * (after.sum - before.sum) / all.max(1) as f64;
            format!("{part} {mean:.1}, {:.0}, {:.0}", bound(all.div_ceil(2)), bound(all))
        });
        parts.collect::<Vec<_>>().join("; ")
    }
}
