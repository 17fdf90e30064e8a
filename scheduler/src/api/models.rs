//! Models for autoscalers outside: how many replicas each should have, and the few PromQL queries that are asked of them.

use super::{
    Api,
    promql::{self, Expression, Selector, Unanswered},
};
use crate::clock;
use capstan_common::{
    function::ActivitySource,
    id::FunctionKey,
    refusal::{Code, Refusal},
    stats::Stats,
    time::Time,
};
use capstan_verb::{
    function::ScalingView,
    model::{GAUGES, Sample, Vector},
};
use std::collections::{BTreeMap, BTreeSet};

/// Labels of a sample.
type Labels = BTreeMap<String, String>;

/// One series: its name, its labels, and its value of now.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// The metric's name.
    pub name: &'static str,
    /// Labels by name.
    pub labels: BTreeMap<&'static str, String>,
    /// The value.
    pub value: f64,
}

/// Names under which the requests of a model can be asked for.
const REQUESTS: [&str; 2] = ["vllm:request_success_total", "capstan_model_requests_total"];

/// Containers that exist and take, or will take, inputs.
fn current(stats: &Stats) -> u32 {
    use capstan_common::container::ContainerState::{Busy, Idle, Starting};
    [Starting, Idle, Busy].iter().filter_map(|state| stats.containers.get(state)).sum()
}

impl Api {
    /// Gauges of every function that serves a model, under both names and with both sets of labels (decisions D12, D13):
    /// an idle model has an explicit 0.
    pub async fn model_series(&self) -> Vec<Series> {
        let mut all = Vec::new();
        for (key, _) in self.env.registry.functions() {
            let asked = self.ask(&key, |core| (core.deployment().clone(), core.stats())).await;
            let (Ok((deployment, stats)), Ok(home)) = (asked, self.home(key.place())) else { continue };
            let spec = &deployment.spec;
            let Some(model) = spec.model_id.clone() else { continue };
            // A function that is newer than our ownership had no requests before.
            let new = deployment.revision.0 == 1 && deployment.at >= home.opened;
            self.env.telemetry.models.know(&key.namespace, &model, if new { Time(0) } else { home.opened });
            let accelerator = spec.resources.gpu.first().cloned().unwrap_or_else(|| "cpu".into());
            let labels = BTreeMap::from([
                ("variantautoscaling_name", key.name.to_string()),
                ("variantautoscaling_namespace", key.namespace.to_string()),
                ("variant_name", key.name.to_string()),
                ("namespace", key.namespace.to_string()),
                ("model_name", model),
                ("accelerator_type", accelerator),
            ]);
            let (desired, current) = (f64::from(stats.desired), f64::from(current(&stats)));
            let ratio = if current == 0.0 { desired } else { desired / current };
            let both = |inferno, wva, value| {
                let names = if self.config.wva_metrics { vec![inferno, wva] } else { vec![inferno] };
                let of = |name| Series { name, labels: labels.clone(), value };
                names.into_iter().map(of).collect::<Vec<_>>()
            };
            all.extend(both(GAUGES[0], GAUGES[1], desired));
            all.extend(both(GAUGES[2], GAUGES[3], current));
            all.extend(both(GAUGES[4], GAUGES[5], ratio));
        }
        for (namespace, model, total) in self.env.telemetry.models.totals() {
            let labels = BTreeMap::from([("namespace", namespace), ("model_name", model)]);
            all.push(Series { name: REQUESTS[1], labels, value: total as f64 });
        }
        all.sort_by(|a, b| a.name.cmp(b.name));
        all
    }

    /// Models whose requests a Prometheus server is asked for: a zero of Capstan's under the name that it is asked for would be
    /// taken for what the servers themselves have counted.
    async fn asked_elsewhere(&self) -> BTreeSet<(String, String)> {
        let mut found = BTreeSet::new();
        if self.env.prometheus.is_none() {
            return found;
        }
        for (key, _) in self.env.registry.functions() {
            let Ok(spec) = self.ask(&key, |core| core.deployment().spec.clone()).await else { continue };
            let asked = spec.activity.as_ref().is_some_and(|a| a.source == ActivitySource::Prometheus);
            found.extend(spec.model_id.clone().filter(|_| asked).map(|model| (key.namespace.to_string(), model)));
        }
        found
    }

    /// The gauges as Prometheus reads them.
    pub async fn model_metrics(&self) -> String {
        let mut text = String::new();
        let mut last = "";
        let mut series = self.model_series().await;
        if self.config.vllm_metrics {
            let elsewhere = self.asked_elsewhere().await;
            let here = |s: &&Series| {
                let of = |label| s.labels.get(label).cloned().unwrap_or_default();
                s.name == REQUESTS[1] && !elsewhere.contains(&(of("namespace"), of("model_name")))
            };
            let counted: Vec<_> = series.iter().filter(here).cloned().collect();
            series.extend(counted.into_iter().map(|counted| Series { name: REQUESTS[0], ..counted }));
        }
        for Series { name, labels, value } in series {
            let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
            if name != last {
                let family = name.trim_end_matches("_total");
                text.push_str(&format!("# HELP {family} {}\n# TYPE {family} {kind}\n", help(name)));
                last = name;
            }
            let escape = |v: &str| v.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let labels: Vec<_> = labels.iter().map(|(k, v)| format!("{k}=\"{}\"", escape(v))).collect();
            text.push_str(&format!("{name}{{{}}} {value}\n", labels.join(",")));
        }
        text
    }

    /// What KEDA's `metrics-api` trigger reads: `valueLocation: desired`.
    pub async fn scaling(&self, key: &FunctionKey) -> Result<ScalingView, Refusal> {
        let stats = self.stats(key).await?;
        Ok(ScalingView {
            desired: stats.desired,
            current: current(&stats),
            backlog: stats.backlog,
            running: stats.running,
        })
    }

    /// Answers the queries of the guide as Prometheus would: a selector, `increase` of a model's requests, and a sum of either.
    /// Only the present is known: a query for another time, `at`, is refused.
    pub async fn promql(&self, query: &str, at: Option<&str>) -> Result<Vector, Refusal> {
        if let Some(at) = at {
            of_now(at)?;
        }
        let asked = promql::read(query).map_err(|unanswered| match unanswered {
            Unanswered::Wrong(detail) => Refusal::field("query", format!("is not PromQL: {detail}")),
            Unanswered::Unsupported(what) => unsupported(&what),
        })?;
        let series = self.model_series().await;
        let found = self.evaluate(&asked, &series)?;
        let at = clock::now().0 as f64 / 1e6;
        Ok(Vector { samples: found.into_iter().map(|(metric, value)| Sample { metric, at, value }).collect() })
    }

    fn evaluate(&self, asked: &Expression, series: &[Series]) -> Result<Vec<(Labels, f64)>, Refusal> {
        let matches =
            |selector: &Selector, s: &Series| selector.matches(|label| s.labels.get(label).map_or("", String::as_str));
        match asked {
            Expression::Now(selector) => {
                let name = selector.name.as_str();
                let of_name =
                    series.iter().filter(|s| s.name == name || (name == REQUESTS[0] && s.name == REQUESTS[1]));
                let matching = of_name.filter(|s| matches(selector, s));
                Ok(matching.map(|s| (metric(name, &s.labels), s.value)).collect())
            }
            Expression::Increase(selector, seconds) => {
                if !REQUESTS.contains(&selector.name.as_str()) {
                    return Err(unsupported(&format!("increase is known of {}", REQUESTS.join(" and "))));
                }
                let models = &self.env.telemetry.models;
                let matching = series.iter().filter(|s| s.name == REQUESTS[1] && matches(selector, s));
                Ok(matching
                    .filter_map(|s| {
                        let (namespace, model) = (&s.labels["namespace"], &s.labels["model_name"]);
                        let count = models.within(namespace, model, *seconds, clock::now())?;
                        Some((metric("", &s.labels), count as f64))
                    })
                    .collect())
            }
            Expression::Sum(inner) => {
                let found = self.evaluate(inner, series)?;
                // The sum of nothing is nothing: unknown is not zero.
                let sum = (!found.is_empty()).then(|| (Labels::new(), found.iter().map(|(_, value)| value).sum()));
                Ok(sum.into_iter().collect())
            }
        }
    }
}

fn help(name: &str) -> &'static str {
    match name.split_once('_').map_or(name, |(_, rest)| rest) {
        "desired_replicas" => "Containers that the model's function wants",
        "current_replicas" => "Containers that it has",
        "desired_ratio" => "Wanted containers against those that there are",
        _ => "Requests of the model that succeeded, through Capstan",
    }
}

/// How far a query's time may lie from ours: clients send their own now.
const PRESENT_S: f64 = 60.0;

/// Refuses a time, in seconds or as RFC 3339, that is not now.
fn of_now(at: &str) -> Result<(), Refusal> {
    let seconds = at.parse::<f64>().ok().filter(|seconds| seconds.is_finite());
    let written = || chrono::DateTime::parse_from_rfc3339(at).ok().map(|at| at.timestamp_micros() as f64 / 1e6);
    let wrong = || Refusal::field("time", format!("must be a time in seconds or RFC 3339, is `{at}`"));
    let seconds = seconds.or_else(written).ok_or_else(wrong)?;
    if (seconds - clock::now().0 as f64 / 1e6).abs() > PRESENT_S {
        return Err(unsupported(&format!("time={at}: only the present is known")));
    }
    Ok(())
}

fn unsupported(what: &str) -> Refusal {
    let detail = format!("{what}: only selectors, increase of a model's requests, and sum of either are answered here");
    Refusal::new(Code::Unsupported, detail)
}

fn metric(name: &str, labels: &BTreeMap<&'static str, String>) -> Labels {
    let mut metric: Labels = labels.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    if !name.is_empty() {
        metric.insert("__name__".into(), name.into());
    }
    metric
}
