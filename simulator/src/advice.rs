//! Settings that would have kept a bound on waiting at the least cost, with the evidence. They are proposed, never applied.

use crate::{Machine, Scenario, Summary, Trace, replay};
use capstan_common::{
    function::{AutoscalerSettings, Overrides},
    time::Time,
};
use serde::Serialize;

/// Windows that are tried, in seconds.
const WINDOWS: [u32; 6] = [5, 15, 60, 300, 900, 1800];
/// Buffers that are tried.
const BUFFERS: [u32; 5] = [0, 1, 2, 4, 8];

/// One set of settings and what it comes to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Tried {
    /// The settings.
    pub settings: AutoscalerSettings,
    /// What they come to.
    pub summary: Summary,
}

/// A proposal.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Advice {
    /// What holds now.
    pub now: Tried,
    /// The cheapest settings that keep the bound; `None` if none that was tried does.
    pub proposed: Option<Tried>,
    /// The best for each window, the cheapest first.
    pub others: Vec<Tried>,
}

/// One set of settings, when its traffic was over, and the containers that it kept then.
struct Played {
    tried: Tried,
    end: Time,
    alive: u32,
}

impl Played {
    fn until(mut self, end: Time) -> Tried {
        self.tried.summary.container_s += end.since_us(self.end) as f64 / 1e6 * f64::from(self.alive);
        self.tried
    }
}

/// Tries settings on recorded traffic: which keep the wait of 95 of 100 inputs under `p95_ms`, and which of those is cheapest?
/// They are tried as an operator would set them, over what is deployed and over profiles.
///
/// # Errors
/// The spec is one that could not be deployed.
pub fn advise(scenario: &Scenario, trace: &Trace, machine: &Machine, p95_ms: f64) -> Result<Advice, String> {
    let with = |overrides: Overrides| -> Result<Played, String> {
        let settings = overrides.over(&scenario.spec.autoscaler);
        let scenario = Scenario { overrides, ..scenario.clone() };
        let outcome = replay(&scenario, trace, machine)?;
        Ok(Played { end: outcome.span.1, alive: outcome.alive, tried: Tried { settings, summary: outcome.summary() } })
    };
    let live = with(scenario.overrides.clone())?;
    let now = &live.tried;
    let most = now.settings.max_containers.unwrap_or(scenario.most);
    let mut minima: Vec<u32> = [0, 1, 2, now.summary.peak_containers / 4, now.summary.peak_containers / 2].into();
    minima.retain(|min| *min <= most);
    minima.sort_unstable();
    minima.dedup();
    let mut played = Vec::new();
    for window in WINDOWS {
        for min in &minima {
            for buffer in BUFFERS {
                played.push(with(Overrides {
                    min_containers: Some(*min),
                    buffer_containers: Some(buffer),
                    scaledown_window: Some(window),
                    ..scenario.overrides.clone()
                })?);
            }
        }
    }
    played.push(live);
    // All are looked at equally long: a minimum goes on to cost while other settings' containers have left.
    let end = played.iter().map(|played| played.end).max().unwrap_or_default();
    let mut tried: Vec<Tried> = played.into_iter().map(|played| played.until(end)).collect();
    let now = tried.pop().ok_or("nothing was tried")?;
    // An input that never began has waited longer than any bound.
    let keeps = |tried: &Tried| tried.summary.unserved == 0 && tried.summary.wait_p95_ms <= p95_ms;
    let cheaper = |a: &Tried, b: &Tried| a.summary.container_s.total_cmp(&b.summary.container_s);
    let proposed = tried.iter().filter(|t| keeps(t)).min_by(|a, b| cheaper(a, b)).cloned();
    let mut others: Vec<Tried> = WINDOWS
        .iter()
        .filter_map(|window| {
            let of = tried.iter().filter(|t| t.settings.scaledown_window == *window);
            of.min_by(|a, b| keeps(b).cmp(&keeps(a)).then(cheaper(a, b))).cloned()
        })
        .collect();
    others.sort_by(cheaper);
    Ok(Advice { now, proposed, others })
}
