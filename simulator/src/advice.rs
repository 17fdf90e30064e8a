//! Settings that would have kept a bound on waiting at the least cost, with the evidence. They are proposed, never applied.

use crate::{Machine, Scenario, Summary, Trace, replay};
use capstan_common::function::{AutoscalerSettings, Overrides};
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

/// Tries settings on recorded traffic: which keep the wait of 95 of 100 inputs under `p95_ms`, and which of those is cheapest?
/// They are tried as an operator would set them, over what is deployed and over profiles.
///
/// # Errors
/// The spec is one that could not be deployed.
pub fn advise(scenario: &Scenario, trace: &Trace, machine: &Machine, p95_ms: f64) -> Result<Advice, String> {
    let with = |overrides: Overrides| -> Result<Tried, String> {
        let settings = overrides.over(&scenario.spec.autoscaler);
        let scenario = Scenario { overrides, ..scenario.clone() };
        Ok(Tried { settings, summary: replay(&scenario, trace, machine)?.summary() })
    };
    let now = with(scenario.overrides.clone())?;
    let most = now.settings.max_containers.unwrap_or(scenario.most);
    let mut minima: Vec<u32> = [0, 1, 2, now.summary.peak_containers / 4, now.summary.peak_containers / 2].into();
    minima.retain(|min| *min <= most);
    minima.sort_unstable();
    minima.dedup();
    let mut tried = Vec::new();
    for window in WINDOWS {
        for min in &minima {
            for buffer in BUFFERS {
                tried.push(with(Overrides {
                    min_containers: Some(*min),
                    buffer_containers: Some(buffer),
                    scaledown_window: Some(window),
                    ..scenario.overrides.clone()
                })?);
            }
        }
    }
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
