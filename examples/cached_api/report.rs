//! What the run says in the end.

use std::fmt::Display;
use std::time::Duration;

use crate::fleet::{Caller, Fleet, NODES, Trouble};
use crate::node::NodeStats;

/// One line for each node. `restarted` was killed: what it did between the last look at its counts and its end is not
/// in them.
pub(crate) fn table(fleet: &Fleet, restarted: usize) -> Result<String, Trouble> {
    let mut caller = Caller::new(fleet);
    let mut text = line(&"node", ["answered", "cut off", "memory hits", "Redis hits", "upstream calls", "p50", "p99"]);
    let (mut all, mut answered, mut cut_off) = (NodeStats::default(), 0, 0);
    for node in 0..NODES {
        let stats = caller.stats(node)?.plus(fleet.earlier(node));
        let at = &fleet.nodes[node];
        let times = at.latency.durations();
        let shown = |time: Option<Duration>| time.map_or(String::from("-"), |time| format!("{time:.1?}"));
        let (p50, p99) = (times.p50().ok().map(|at| at.value), times.p99().ok().map(|at| at.value));
        let counts = [at.answered.get(), at.cut_off.get(), stats.memory_hits, stats.redis_hits, stats.loads];
        let [a, b, c, d, e] = counts.map(|count| count.to_string());
        let mark = if node == restarted { "*" } else { "" };
        text += &line(&format!("{node}{mark}"), [&a, &b, &c, &d, &e, &shown(p50), &shown(p99)]);
        all = all.plus(stats);
        answered += at.answered.get();
        cut_off += at.cut_off.get();
    }
    let [a, b, c, d, e] =
        [answered, cut_off, all.memory_hits, all.redis_hits, all.loads].map(|count| count.to_string());
    text += &line(&"all", [&a, &b, &c, &d, &e, "", ""]);
    text += &format!(
        "* killed and started again; what it counted last is lost. -: too few answers to tell\n\
         {} waits for another's load, {} loads revoked by a removal, {} taken over from the dead\n",
        all.waits, all.revoked, all.takeovers
    );
    Ok(text)
}

fn line(name: &impl Display, columns: [&str; 7]) -> String {
    let [a, b, c, d, e, f, g] = columns;
    format!("{name:<5}{a:>10}{b:>9}{c:>13}{d:>12}{e:>16}{f:>10}{g:>10}\n")
}
