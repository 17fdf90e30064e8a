//! Settings that would have kept a bound on waiting at the least cost, with the evidence. They are proposed, never applied.

use crate::{Machine, Summary, Trace, replay};
use capstan_common::function::{AutoscalerSettings, FunctionSpec};
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
pub fn advise(spec: &FunctionSpec, trace: &Trace, machine: &Machine, p95_ms: f64) -> Result<Advice, String> {
    let with = |settings: AutoscalerSettings| -> Result<Tried, String> {
        let spec = FunctionSpec { autoscaler: settings.clone(), ..spec.clone() };
        Ok(Tried { settings, summary: replay(&spec, trace, machine)?.summary() })
    };
    let now = with(spec.autoscaler.clone())?;
    let most = spec.autoscaler.max_containers.unwrap_or(u32::MAX);
    let mut minima: Vec<u32> = [0, 1, 2, now.summary.peak_containers / 4, now.summary.peak_containers / 2].into();
    minima.retain(|min| *min <= most);
    minima.sort_unstable();
    minima.dedup();
    let mut tried = Vec::new();
    for window in WINDOWS {
        for min in &minima {
            for buffer in BUFFERS {
                let settings = AutoscalerSettings {
                    min_containers: *min,
                    buffer_containers: buffer,
                    scaledown_window: window,
                    ..spec.autoscaler.clone()
                };
                tried.push(with(settings)?);
            }
        }
    }
    let keeps = |tried: &Tried| tried.summary.wait_p95_ms <= p95_ms;
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
